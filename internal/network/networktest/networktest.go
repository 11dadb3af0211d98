// Package networktest is a CNI plugin that does what a file beside it says: hang,
// fail, die, fork, be slow, print garbage. It drives the paths that a well-behaved
// plugin never takes.
//
// A binary named fake reads fake.json in its own directory for every call.
package networktest
