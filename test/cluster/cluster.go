// Package cluster tests a node of a Kubernetes cluster: a stock kubelet that has an API
// server, with Gantry below it. It is for what a kubelet alone has no use for: the
// RuntimeClass of a pod, events, volumes of ConfigMaps, sessions through the server. What
// needs only a CRI client is tested in package node.
//
// "go run ./test/trial test --suite cluster" builds it with the tag e2e and runs it as
// root in the trial VM. Every test starts with guard(t), see package machine.
package cluster
