package fly

import (
	"testing"

	"gantry/internal/isolator"
	"gantry/internal/isolator/isolatortest"
	"gantry/internal/pod"
)

func newFly(t testing.TB) *Fly {
	f, err := New(Config{Init: "/usr/libexec/gantry/gantry-init", StdioSocket: "/run/gantry/stdio.sock", Arch: "amd64", SELinux: true})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestContract(t *testing.T) {
	t.Parallel()
	isolatortest.Run(t, newFly(t), func(in *isolator.App) {
		in.Pod.Namespaces.Network, in.App.Namespaces.Network = pod.NamespaceNode, pod.NamespaceNode
	})
}
