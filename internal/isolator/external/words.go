package external

import (
	"encoding/json"

	"gantry/internal/isolator"
	"gantry/internal/pod"
)

// Version is that of the contract. Within a version fields are only added: to requests
// at any time, and to answers such that who leaves them out is understood as before.
const Version = 1

// The verbs: what an executable is called with, as its only argument.
const (
	verbFeatures = "features"
	verbSandbox  = "sandbox"
	verbApp      = "app"
	verbExec     = "exec"
	verbCleanup  = "cleanup"
)

// request is what an executable reads. What it does not know in one it may pass over.
type request struct {
	Version int    `json:"version"`
	Verb    string `json:"verb"`
	Pod     *Pod   `json:"pod,omitempty"`
	App     *App   `json:"app,omitempty"`
	Exec    *Exec  `json:"exec,omitempty"`
}

// Pod is the pod, in all verbs but features and the cleanup of an app.
type Pod struct {
	ID          string            `json:"id"`
	Name        string            `json:"name"`
	Namespace   string            `json:"namespace"`
	Hostname    string            `json:"hostname"`
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations"`
	Privileged  bool              `json:"privileged"`
	HostNetwork bool              `json:"hostNetwork"`
	HostIPC     bool              `json:"hostIPC"`
	// Namespaces are files that hold those of the pod, by net, uts and ipc: what is not
	// there is the host's.
	Namespaces map[string]string `json:"namespaces"`
}

// App is the app, with all that it is to be looked up already.
type App struct {
	ID   string `json:"id"`
	Name string `json:"name,omitempty"`
	// Directory is where the plan's files will be.
	Directory string `json:"directory,omitempty"`
	// Rootfs is where the app's file system is mounted when the plan's program begins,
	// in a mount namespace of the unit's own.
	Rootfs     string `json:"rootfs,omitempty"`
	Privileged bool   `json:"privileged"`
	TTY        bool   `json:"tty"`
	// HostPID asks for the host's processes. PIDNamespaceOf, if not 0, is the process
	// whose PID namespace the app joins.
	HostPID        bool           `json:"hostPID"`
	PIDNamespaceOf int            `json:"pidNamespaceOf"`
	Process        *Process       `json:"process,omitempty"`
	Mounts         []Mount        `json:"mounts,omitempty"`
	Devices        []pod.Device   `json:"devices,omitempty"`
	MaskedPaths    []string       `json:"maskedPaths,omitempty"`
	ReadOnlyPaths  []string       `json:"readOnlyPaths,omitempty"`
	ReadOnlyRootfs bool           `json:"readOnlyRootfs"`
	Resources      *pod.Resources `json:"resources,omitempty"`
}

// Process is what runs in the app.
type Process struct {
	Argv            []string        `json:"argv"`
	Env             []string        `json:"env"` // secret: all of it, NAME=value
	WorkingDir      string          `json:"workingDir"`
	UID             uint32          `json:"uid"`
	GID             uint32          `json:"gid"`
	Groups          []uint32        `json:"groups"`
	Capabilities    Capabilities    `json:"capabilities"`
	NoNewPrivileges bool            `json:"noNewPrivileges"`
	AppArmor        string          `json:"appArmor,omitempty"`
	Seccomp         json.RawMessage `json:"seccomp,omitempty"` // the OCI's linux.seccomp
	Rlimits         []pod.Rlimit    `json:"rlimits,omitempty"`
}

// Capabilities are CAP_ names. A root has all of Bounding in force.
type Capabilities struct {
	Bounding []string `json:"bounding"`
	Ambient  []string `json:"ambient"`
}

// Mount is a part of the app's file system that is not of its image.
type Mount struct {
	Target      string   `json:"target"`
	Type        string   `json:"type,omitempty"` // "" shows the host's Source
	Source      string   `json:"source"`
	Recursive   bool     `json:"recursive,omitempty"`
	Sub         string   `json:"sub,omitempty"` // a part of Source, looked up with Source as the root
	ReadOnly    bool     `json:"readOnly,omitempty"`
	AllReadOnly bool     `json:"allReadOnly,omitempty"`
	Propagation string   `json:"propagation,omitempty"`
	Options     []string `json:"options,omitempty"`
}

// Exec is a process to run in a running app.
type Exec struct {
	Process Process `json:"process"`
	TTY     bool    `json:"tty"`
	// PID is the app's process, as the host counts; 0 if it does not run.
	PID int `json:"pid"`
}

// answer is what an executable writes: an error, or what its verb is to give.
type answer struct {
	Version  int       `json:"version"`
	Error    *failure  `json:"error"`
	Features *features `json:"features"`
	Plan     *plan     `json:"plan"`
	Exec     *execPlan `json:"exec"`
}

type failure struct {
	Kind    string `json:"kind"`
	Message string `json:"message"`
}

// features are isolator.Features, but for what Gantry does not leave to third parties:
// user namespaces, bidirectional mounts, hooks.
type features struct {
	Isolation               string `json:"isolation"`
	PodNetwork              bool   `json:"podNetwork"`
	HostNetwork             bool   `json:"hostNetwork"`
	HostPID                 bool   `json:"hostPID"`
	HostIPC                 bool   `json:"hostIPC"`
	SharedPID               bool   `json:"sharedPID"`
	Privileged              bool   `json:"privileged"`
	RecursiveReadOnlyMounts bool   `json:"recursiveReadOnlyMounts"`
	ImageVolumes            bool   `json:"imageVolumes"`
	MountOptions            bool   `json:"mountOptions"`
	TTY                     bool   `json:"tty"`
	Devices                 bool   `json:"devices"`
}

var isolations = map[string]isolator.Isolation{
	"none": isolator.IsolationNone, "namespaces": isolator.IsolationNamespaces, "kernel": isolator.IsolationKernel, "machine": isolator.IsolationMachine,
}

func (f *features) domain() isolator.Features {
	return isolator.Features{
		Isolation:  isolations[f.Isolation],
		PodNetwork: f.PodNetwork, HostNetwork: f.HostNetwork, HostPID: f.HostPID, HostIPC: f.HostIPC, SharedPID: f.SharedPID,
		Privileged: f.Privileged, RecursiveReadOnlyMounts: f.RecursiveReadOnlyMounts, ImageVolumes: f.ImageVolumes,
		MountOptions: f.MountOptions, TTY: f.TTY, Devices: f.Devices,
	}
}

type plan struct {
	Run        run             `json:"run"`
	Files      []file          `json:"files"`
	Devices    []device        `json:"devices"`
	Properties map[string]bool `json:"properties"`
}

// run is the program that is the unit's main process. With appArg among its arguments it
// stands around the app; without, it is all of it.
type run struct {
	Argv []string `json:"argv"`
	Env  []string `json:"env"`
}

type file struct {
	Path       string `json:"path"`
	Text       string `json:"text"`
	Public     bool   `json:"public"`
	Executable bool   `json:"executable"`
}

// device is one that the program needs for itself.
type device struct {
	Path        string `json:"path"`
	Permissions string `json:"permissions"`
}

// execPlan is a command that runs a process in an app. Input is what the file is to hold
// that stands for isolator.ProcessArg.
type execPlan struct {
	Argv  []string `json:"argv"`
	Input *string  `json:"input"`
}
