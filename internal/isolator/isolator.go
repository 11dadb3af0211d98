// Package isolator is the contract between the engine and the ways to isolate a
// pod (rkt called them stage1): namespaces, the host's namespaces, a VM.
//
// An isolator does not act. It turns a pod into a Plan: files to write and units
// to start. The engine writes and starts them; systemd supervises. Same pod in,
// same plan out, on any machine: whatever has to be looked up on the machine is
// looked up before and stands in the pod, the app or the Input.
package isolator

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"strings"

	"gantry/internal/pod"
	"gantry/internal/unit"
)

// Isolator turns pods into plans. All methods but Cleanup are pure.
type Isolator interface {
	// Name is the word users choose the isolator by; also its CRI handler.
	Name() string
	// Features tells what it honours. The engine refuses the rest at create.
	Features() Features
	// Sandbox plans what exists before any app: files and the pod unit.
	Sandbox(Sandbox) (Plan, error)
	// App plans one app.
	App(App) (Plan, error)
	// Exec plans a process inside a running app. Its seccomp profile is the one that the
	// app was started with: the Input has none.
	Exec(App, pod.Process) (Exec, error)
	// Cleanup undoes what systemd does not own. It is idempotent.
	Cleanup(ctx context.Context, p *pod.Pod) error
}

// Belated is an isolator whose pods have late units.
type Belated interface {
	// LateUnits are the names of those that a pod has, the last one first.
	LateUnits(id pod.ID) []string
	// LateErrors are files in which they say why they did not come up: the first that is
	// there counts.
	LateErrors(d Dirs) []string
	// Networked tells those of a pod that it has its network, which is made while they start.
	Networked(d Dirs) error
	// Furnish makes what the late units of all pods need, unless it is there. That is the
	// node's, so no pod's limits are to hold it up.
	Furnish(ctx context.Context) error
}

// Isolation is how much stands between an app and the machine, more of it a larger number.
type Isolation int

const (
	// IsolationNone: an app is a process of the host.
	IsolationNone Isolation = iota
	// IsolationNamespaces: it has the host's kernel and its own view of it.
	IsolationNamespaces
	// IsolationKernel: a program in user space is its kernel, and the host's is that program's.
	IsolationKernel
	// IsolationMachine: it has a kernel of its own, on a processor of its own.
	IsolationMachine
)

// OnHost are the namespaces of a pod or app whose isolation is IsolationNone. The
// network is left as it was asked for: with another one than that the pod is another.
func OnHost(n pod.Namespaces) pod.Namespaces {
	switch n.PID {
	case pod.NamespacePod, pod.NamespaceApp, pod.NamespaceTarget:
		n.PID, n.Target = pod.NamespaceNode, ""
	}
	if n.IPC == pod.NamespacePod {
		n.IPC = pod.NamespaceNode
	}
	return n
}

// Features an isolator honours.
type Features struct {
	Isolation               Isolation
	PodNetwork              bool // a network of the pod's own
	HostNetwork             bool
	HostPID                 bool
	HostIPC                 bool
	UserNamespaces          bool
	SharedPID               bool
	Privileged              bool
	RecursiveReadOnlyMounts bool
	BidirectionalMounts     bool
	ImageVolumes            bool
	MountOptions            bool
	TTY                     bool
	Devices                 bool
	Hooks                   bool // of the OCI, that devices of vendors bring
	// OwnKernel: the pod boots one. PID namespaces and what sysctls change are in there: no
	// process of the host holds the one, and the host's kernel is not asked for the other.
	OwnKernel bool
}

// Sandbox is the input of a pod's plan.
type Sandbox struct {
	Pod *pod.Pod
	Dir Dirs
	// Unlimited tells where Pod.Resources is no limit of the whole pod.
	Unlimited Unlimited
}

// ErrCannotUndo: who has made something for a pod or an app cannot be asked any more. What
// it made stays, and the pod can be removed all the same.
var ErrCannotUndo = errors.New("what it made stays")

// Unlimited tells of what the pod's slice has no limit. Kubelet adds up the limits that
// containers have, also where others have none.
type Unlimited struct {
	Memory, CPU bool
}

// App is the input of an app's plan.
type App struct {
	Pod    *pod.Pod
	App    *pod.App
	Secret pod.Secret
	Dir    Dirs
	// Rootfs is the image's read-only tree, mounted on the host by Rootfs.Unit.
	Rootfs Tree
	// ImageVolumes are the trees of Mount.Image, by image ID.
	ImageVolumes map[string]Tree
	// HolderPID is the process that holds the pod's shared PID namespace, and
	// TargetPID the one whose namespace a NamespaceTarget app joins. With a kernel of the
	// pod's own there are none on the host.
	HolderPID, TargetPID int
	// PID is the app's process, where it runs: for an Exec.
	PID int
	// Resources in force (the App's, or those of a later update).
	Resources pod.Resources
	// SeccompProfile is what the file Security.Seccomp.Localhost holds.
	SeccompProfile []byte
}

// Tree is a read-only directory tree that a mount unit keeps in place.
type Tree struct {
	Path string // on the host
	Unit string // the mount unit an app must require
}

// Dirs are the places a plan may speak of. They are fixed by the disk layout and
// given here so that plans can be tested with any.
type Dirs struct {
	Pod string // /var/lib/gantry/pods/<id>
	App string // /var/lib/gantry/pods/<id>/apps/<id>; "" for a sandbox
	Run string // /run/gantry/pods/<id>: namespaces and /dev/shm are pinned here
}

// File is a file of a plan, below Dirs.App (or Dirs.Pod for a sandbox).
type File struct {
	Path   string // relative
	Mode   uint32
	Data   []byte
	Secret bool // Data is never printed
	// Shown gives what is printed instead of the Data of a secret file. Nearly no plan
	// is ever printed, so it is made only then.
	Shown func() []byte `json:"-"`
}

// Plan is what has to be there for a pod or an app to run.
type Plan struct {
	Files []File
	// Units: the last one is the pod's or app's own, those before it are units it
	// needs and that may exist already.
	Units []unit.Unit
	// Late are units of a pod that need its unit and its network, the last after those
	// before it. They are started when the unit is up, while the network is made, and are
	// told when that is there. The pod is ready when they are up.
	Late []unit.Unit
	// Cgroup holds files of the unit's cgroup that systemd has no property for, or
	// rounds, with their exact values.
	Cgroup []CgroupFile
}

// CgroupFile is a value to write into a file of the unit's cgroup.
type CgroupFile struct{ Name, Value string }

// Exec is how to run a process inside an app: the command that the engine spawns
// in a cgroup of its own below the app's, and a file it must have before.
type Exec struct {
	Path string
	Args []string // with argv[0]
	// Process is the content of the file whose path replaces ProcessArg in Args.
	Process []byte
	// Group is AppGroup if the process's cgroup is to be made there, "" if in the unit's.
	Group string
	// Outside tells that the command puts the process into its cgroup itself, which GroupArg
	// or GroupPathArg names, and stays outside: what it uses is not the app's, and the app's
	// limits do not hold it up.
	Outside bool
	// Terminal tells that the command wants a terminal for its standard files.
	Terminal bool
}

// AppGroup is the cgroup below its unit's that an app is in if its runtime wants one for
// itself.
const AppGroup = "gantry"

// ProcessArg stands in Exec.Args for the path of the process file, and ConsoleArg
// (only with Process.TTY) for that of a socket which is sent the terminal's fd.
const (
	ProcessArg = "{process}"
	ConsoleArg = "{console}"
	// LogArg is where the runtime is to say why it could not run the process: its
	// standard error is the process's.
	LogArg = "{log}"
	// GroupArg is the name of the process's cgroup, below the app's, and GroupPathArg its
	// path from the root of all.
	GroupArg     = "{group}"
	GroupPathArg = "{group-path}"
)

// Text prints the plan, as --dry-run, golden tests and bug reports show it.
func (p Plan) Text() string {
	var b strings.Builder
	files := append([]File(nil), p.Files...)
	sort.SliceStable(files, func(i, j int) bool { return files[i].Path < files[j].Path })
	for _, f := range files {
		fmt.Fprintf(&b, "-- %s (mode %04o) --\n", f.Path, f.Mode)
		data := f.Data
		if f.Secret {
			data = []byte("(secret)\n")
			if f.Shown != nil {
				data = append(data, f.Shown()...)
			}
		}
		b.Write(data)
		if len(data) > 0 && data[len(data)-1] != '\n' {
			b.WriteByte('\n')
		}
	}
	for _, u := range p.Units {
		fmt.Fprintf(&b, "-- unit %s --\n%s", u.Name, u.Text())
	}
	for _, u := range p.Late {
		fmt.Fprintf(&b, "-- late unit %s --\n%s", u.Name, u.Text())
	}
	for _, c := range p.Cgroup {
		fmt.Fprintf(&b, "-- cgroup %s --\n%s\n", c.Name, c.Value)
	}
	return b.String()
}
