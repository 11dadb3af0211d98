// Package node tests a machine with Gantry installed from outside, as a kubelet,
// an operator or an attacker would: over CRI, through systemd, with images that
// attack. It uses nothing of Gantry's code, so that it can be tried on another
// engine: a test of CRI that containerd fails is a wrong test.
//
// "go run ./test/trial test" builds it with the tag e2e and runs it as root in
// the trial VM. Every test starts with guard(t), see package machine.
package node
