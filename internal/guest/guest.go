// Package guest is the agent in a virtual machine: its first process. It finds what the
// host shares with it, sets up the network, and runs the apps of the pod that the
// machine is. The host tells it what to do over vsock; package guestpb has the words.
//
// An app is a process in a cgroup, a mount namespace and a PID namespace of its own, or in
// one that the pod's apps share; the
// machine's network, IPC and hostname are the pod's. Everything that a plan asks for in
// matters of security is done here, by the code that does it for apps which are processes
// of the host. What an app says and how it ended is kept until the host has it.
//
//	boot.go      what the first process does before there is an app
//	random.go    its random numbers
//	network.go   the machine's interface
//	agent.go     the calls; exec.go and limits.go, those of execs, limits and statistics
//	door.go      who is let in
//	forward.go   connections from the host to the machine's loopback
//	process.go   a process, from its start to its end
//	holder.go    the PID namespace that apps share
//	cgroup.go    limits and statistics
//	output.go    what processes say; input.go, what is said to them
package guest

const (
	// Port is where the agent listens, on vsock.
	Port = 1024
	// ForwardPort is where connections come that go on to a port of the loopback.
	ForwardPort = 1025
	// Tag is the name of the file system that the host shares.
	Tag = "gantry"
	// Share is where it is in the machine.
	Share = "/run/share"
	// Scratch is where the disk is that apps write to.
	Scratch = "/run/scratch"
	// ScratchSerial names that disk.
	ScratchSerial = "gantry-scratch"
	// MachineFile tells, in the share, what the machine is to be.
	MachineFile = "machine.json"
	// LastWordsFile has, in the share, why the agent has failed.
	LastWordsFile = "agent-failed"
	// Shm is what the apps of the pod share as /dev/shm.
	Shm = "/run/shm"
)

// Machine is what a machine is to be: the content of MachineFile.
type Machine struct {
	Hostname string `json:"hostname,omitempty"`
	ShmBytes int64  `json:"shmBytes,omitempty"`
	// Seed has random bytes of the host's, new for each boot.
	Seed []byte `json:"seed,omitempty"`
	// Key is said by who may tell the machine what to do.
	Key []byte `json:"key,omitempty"`
}

// Connection is what the machine is told when the pod has its network, which is made while
// it boots.
type Connection struct {
	Network *Interface `json:"network,omitempty"`
	// Sysctls may be of that interface.
	Sysctls map[string]string `json:"sysctls,omitempty"`
}

// Interface is the machine's network: the addresses and routes that CNI gave the pod.
type Interface struct {
	Name      string   `json:"name"`
	MAC       string   `json:"mac"` // the pod's interface has it, and the machine takes it
	MTU       int      `json:"mtu,omitempty"`
	Addresses []string `json:"addresses,omitempty"` // with the length of their prefix
	Routes    []Route  `json:"routes,omitempty"`    // in the order in which they can be made
	// Neighbours are those whose hardware address was given.
	Neighbours []Neighbour `json:"neighbours,omitempty"`
}

// Route leads to a network by a gateway, or by the interface alone.
type Route struct {
	To     string `json:"to"`
	Via    string `json:"via,omitempty"`
	OnLink bool   `json:"onLink,omitempty"` // no route need lead to the gateway
	Source string `json:"source,omitempty"`
	Metric int    `json:"metric,omitempty"`
	MTU    int    `json:"mtu,omitempty"`
}

// Neighbour is an address on the network with its hardware address.
type Neighbour struct {
	IP  string `json:"ip"`
	MAC string `json:"mac"`
}
