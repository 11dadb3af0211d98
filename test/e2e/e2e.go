// Package e2e tests Gantry's own packages on a real machine: systemd as PID 1,
// cgroup v2, real mounts and namespaces. "go run ./test/trial test" builds it with
// the tag e2e and runs it as root in the trial VM, after package node, which
// tests the installed product from outside.
//
// Every test starts with guard(t), which compares the machine after the test
// with the machine before it. Tests share one machine, so none is parallel. A
// test that cannot run calls notRun, which says so loudly; the harness counts it
// apart.
package e2e
