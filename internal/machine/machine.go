// Package machine is the host's side of a pod's virtual machine: what has to be there before it
// boots, and the proxies that stand for its apps and their execs among the host's
// processes.
//
//	needs.go    what the node has to have for all that
//	prepare.go  the share, the writable disk, what the machine is to be
//	files.go    the program that becomes the server of its files
//	failed.go   why a machine does not come up
//	boot.go     what a machine boots
//	network.go  the way from the pod's interface into the machine
//	client.go   calls of the agent
//	app.go      an app's process on the host; exec.go, an exec's; proxy.go, what both do
//	inbox.go    input on its way to an app
//	end.go      how a machine ended
//	share.go    what an app sees of the host
package machine

import (
	"fmt"
	"hash/fnv"
	"path/filepath"

	"gantry/internal/guest"
	"gantry/internal/namespace"
)

const (
	// ShareDir, below the pod's run directory, is what the machine sees of the host.
	ShareDir = namespace.Share
	// SocketFile, below the pod's run directory, is where the file server listens.
	SocketFile = namespace.FilesSocket
	// Disk, below the pod's directory, is what its apps write to.
	Disk = "scratch.img"
	// PlanFile, below the pod's directory, is the Plan.
	PlanFile = "machine.json"
	// KeyFile, below the pod's directory, has what the machine's agent wants to hear first of
	// all. It is root's.
	KeyFile = "machine.key"
)

// Plan is what is known of a machine before the pod has a network.
type Plan struct {
	Machine guest.Machine `json:"machine"`
	// Sysctls are the machine's, once it has the network.
	Sysctls map[string]string `json:"sysctls,omitempty"`
	// Size is what it is booted with, whatever the pod's limits become.
	Size Size `json:"size"`
	// Run is the pod's run directory.
	Run string `json:"run"`
	// Cgroup is the pod's, on the host.
	Cgroup string `json:"cgroup"`
	// Boot is what the machine boots, if that is not there yet.
	Boot Boot `json:"boot"`
	// DiskBytes is the size of the writable disk; 0 leaves the apps memory to write to.
	DiskBytes int64 `json:"diskBytes,omitempty"`
}

// Size is what a machine has for as long as it runs.
type Size struct {
	Memory int64 `json:"memory"` // bytes
	CPUs   int   `json:"cpus"`
	// Limit is the pod's memory limit that it was made for; 0 is none.
	Limit int64 `json:"limit,omitempty"`
}

// SizeOf is that of a pod's machine.
func SizeOf(podDir string) (Size, error) {
	var plan Plan
	if err := readJSON(filepath.Join(podDir, PlanFile), &plan); err != nil {
		return Size{}, fmt.Errorf("size of the machine: %w", err)
	}
	return plan.Size, nil
}

// Boot is what a machine boots, and what that is made of.
type Boot struct {
	Kernel    string   `json:"kernel"`
	Initramfs string   `json:"initramfs"`
	From      string   `json:"from"`    // the distribution's kernel
	Guest     string   `json:"guest"`   // the first process
	Modules   string   `json:"modules"` // the kernel's
	Load      []string `json:"load"`
}

// Address is where a pod's machine is on vsock. The kernel refuses a second machine of the
// same address: one in four thousand millions, and the pod is made again with another ID.
func Address(podID string) uint32 {
	const reserved = 3 // and below: any, the hypervisor, the host
	h := fnv.New32a()
	fmt.Fprint(h, podID)
	sum := h.Sum32()
	if sum <= reserved || sum == 1<<32-1 {
		return reserved + 1
	}
	return sum
}
