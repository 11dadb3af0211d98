// Package arch holds the tests that keep the shape of this module: who may import
// whom, what may not be called and why, that everything is documented. It has no
// code of its own.
//
// The tests read the sources themselves. A test that asks "go list" is answered
// from go test's cache, which knows the files that the test opened and not those
// that a child process read; it would pass when it should not.
package arch
