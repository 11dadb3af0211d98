package engine

import (
	"context"
	"errors"
	"io"
	"time"

	"gantry/internal/image"
	"gantry/internal/isolator"
	"gantry/internal/network"
	"gantry/internal/pod"
)

// AppSpec is what CreateApp is asked for. Names are resolved by the engine: users
// in the image, sources of mounts and devices on the host.
type AppSpec struct {
	Name    string
	Attempt uint32
	// ImageID or any name the image store knows.
	Image string
	// UserImage is the image as the user wrote it, for status.
	UserImage string

	Command []string // replaces the image's entrypoint, and drops its command
	Args    []string // replaces the image's command
	Env     []string // NAME=value, added to the image's
	WorkDir string

	User  string // name or number, "" for the image's; NAME:GROUP is allowed
	Group string // number; needs User
	// Groups added; GroupsStrict leaves out those of the image's /etc/group.
	Groups       []uint32
	GroupsStrict bool

	Labels, Annotations map[string]string
	Mounts              []pod.Mount  // HostPath or Image is set; Source is resolved
	Devices             []pod.Device // Path, Source and Permissions are set
	CDI                 []string     // names of devices: vendor/class=device
	Rlimits             []pod.Rlimit

	LogPath               string // absolute
	Stdin, StdinOnce, TTY bool
	StopSignal            string // "", SIGTERM, TERM or a number; "" for the image's
	StopTimeout           time.Duration
	Namespaces            pod.Namespaces // zero: the pod's
	Security              pod.Security   // UID, GID, Groups are set by the engine
	Resources             pod.Resources
}

// Streams are the ends of an interactive session.
type Streams struct {
	Stdin          io.Reader // nil: none
	Stdout, Stderr io.Writer
	TTY            bool
	Resize         <-chan Size
	// Start is for Attach alone. If it is set an app that was only created may be
	// attached to: it is called when that is done, to start the app.
	Start func() error
}

// Size of a terminal.
type Size struct{ Width, Height uint16 }

// Filter selects pods. The zero Filter selects all.
type Filter struct {
	Owner  pod.Owner
	ID     pod.ID
	Labels map[string]string // all must be equal
}

// ErrRecursiveReadOnly is the isolators' error of that name.
var ErrRecursiveReadOnly = isolator.ErrRecursiveReadOnly

// ErrImageVolume: an image cannot be mounted as a volume of an app.
var ErrImageVolume = errors.New("image volume")

// API is what adapters need of an Engine; it is listed here so that a reader
// finds all use cases on one page.
type API interface {
	// Ready returns nil when the engine's view is complete (after a start or a lost
	// connection it is not, for a moment): adapters answer Unavailable until then.
	Ready() error

	// CreatePod makes the pod, its namespaces and its network, and returns it ready.
	// The same (owner, namespace, name, uid, attempt) again joins the call in flight
	// or returns the pod that is there.
	CreatePod(ctx context.Context, p pod.Pod) (*pod.Pod, error)
	StopPod(ctx context.Context, id pod.ID) error   // idempotent; stops its apps first
	RemovePod(ctx context.Context, id pod.ID) error // idempotent; forces
	Pod(id pod.ID) (pod.PodStatus, error)
	Pods(f Filter) ([]pod.PodStatus, error) // with their apps
	// Changed is closed when Pods or Ready may answer otherwise than before the call, in
	// a program that watches.
	Changed() <-chan struct{}
	// ImagesOf tells which images the apps of one owner's pods need. It is cheap.
	ImagesOf(owner pod.Owner) (map[string]bool, error)

	CreateApp(ctx context.Context, podID pod.ID, spec AppSpec) (*pod.App, error)
	// StartApp starts a prepared app. One that runs is left running: no error.
	StartApp(ctx context.Context, id pod.ID) error
	// StopApp sends the stop signal and kills after grace; 0 kills at once, <0 uses
	// the app's own grace. Overlapping stops: the shorter grace wins. Idempotent.
	StopApp(ctx context.Context, id pod.ID, grace time.Duration) error
	RemoveApp(ctx context.Context, id pod.ID) error // idempotent; kills if it runs
	App(id pod.ID) (pod.AppStatus, error)
	UpdateApp(ctx context.Context, id pod.ID, r pod.Resources) error
	CheckpointApp(ctx context.Context, id pod.ID, to string, limit time.Duration) error
	UpdatePod(ctx context.Context, id pod.ID, r pod.PodResources) error

	// Exec runs a process in a running app and returns its exit code. When ctx ends
	// its whole cgroup is killed and ctx's error returned.
	Exec(ctx context.Context, id pod.ID, p pod.Process, s Streams) (int, error)
	Attach(ctx context.Context, id pod.ID, s Streams) error
	PortForward(ctx context.Context, podID pod.ID, port uint16, stream io.ReadWriteCloser) error
	ReopenLog(ctx context.Context, id pod.ID) error

	MeasureLayers(apps []pod.AppStatus)
	// LayersUsed is what all writable layers held when they were looked at last.
	LayersUsed(ctx context.Context) (bytes, inodes uint64)
	AppStats(ctx context.Context, id pod.ID) (Stats, error)
	PodStats(ctx context.Context, id pod.ID) (PodStats, error)
	AppMetrics(ctx context.Context, id pod.ID) (Metrics, error)

	Images() *image.Store
	Network() *network.Network
	GC(ctx context.Context, opts GCOptions) (GCReport, error)
}

// Stats of an app, read from its cgroup and its writable layer.
type Stats struct {
	Time                                     time.Time
	CPUNanos                                 uint64
	MemoryUsage, MemoryWorkingSet, MemoryRSS uint64
	MemoryLimit                              uint64 // 0: none
	PageFaults, MajorPageFaults              uint64
	SwapUsage, SwapLimit                     uint64
	Pids                                     uint64
	RootfsBytes, RootfsInodes                uint64
	CPUPressure, MemoryPressure, IOPressure  *Pressure
}

// PodStats of a pod: of its cgroup, which holds all that its apps and their helpers
// use, and of its network. It has no writable layer.
type PodStats struct {
	Stats
	Processes  uint64
	Cgroup     string                   // below the root of all cgroups
	Interfaces []network.InterfaceUsage // none in the host's network
}

// Pressure is PSI. Totals are nanoseconds, averages percents.
type Pressure struct{ Some, Full PressureLine }

// PressureLine is one line of a pressure file.
type PressureLine struct {
	Total                uint64
	Avg10, Avg60, Avg300 float64
}

// GCOptions say what gc may take.
type GCOptions struct {
	DryRun bool
	// ExitedPods of the CLI older than this are removed; 0 keeps them.
	ExitedPods time.Duration
	Images     bool // remove images that nothing refers to
}

// GCReport lists what was, or would be, removed, and why, and the networks that are
// not as they were made.
type GCReport struct {
	Items    []GCItem
	Networks []GCNetwork
}

// GCNetwork is the network of a pod that is up, and what is wrong with it.
type GCNetwork struct {
	Pod  *pod.Pod
	Why  string
	Gone bool // we have seen it ourselves; else only a plugin complains
}

// GCItem is one thing that gc takes.
type GCItem struct {
	Kind  string // pod, app, unit, namespaces, netns, lease, mount, directory, exec, socket, image, layer, blob
	Name  string
	Why   string
	Bytes int64
}
