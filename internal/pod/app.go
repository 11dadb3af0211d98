package pod

import "time"

// App is one container of a pod: what was asked for, with everything that had to
// be looked up (users by name, the image's defaults) already looked up. It holds
// no environment values: those are in Secret. Annotations are kept apart.
type App struct {
	Version int       `json:"version"`
	ID      ID        `json:"id"`
	Pod     ID        `json:"pod"`
	Name    string    `json:"name"`
	Attempt uint32    `json:"attempt,omitempty"`
	Created time.Time `json:"created"`

	Labels      map[string]string `json:"labels,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`

	Image Image `json:"image"`

	// Argv is the whole command line, after the image's entrypoint and command
	// were merged with what the caller gave.
	Argv       []string `json:"argv"`
	WorkingDir string   `json:"workingDir"`

	Mounts  []Mount  `json:"mounts,omitempty"`
	Devices []Device `json:"devices,omitempty"`
	// CDI are the names of the devices that some of the above, and Hooks, came from.
	CDI   []string `json:"cdi,omitempty"`
	Hooks []Hook   `json:"hooks,omitempty"`

	// LogPath is the absolute path of the CRI log file; "" keeps no file.
	LogPath   string `json:"logPath,omitempty"`
	Stdin     bool   `json:"stdin,omitempty"`
	StdinOnce bool   `json:"stdinOnce,omitempty"`
	TTY       bool   `json:"tty,omitempty"`

	// StopSignal is the signal's number; StopTimeout the grace that systemd itself
	// gives when somebody stops the unit without saying how long.
	StopSignal  int           `json:"stopSignal"`
	StopTimeout time.Duration `json:"stopTimeout"`

	// Namespaces of this app; PID may differ from the pod's (NamespaceTarget).
	Namespaces Namespaces `json:"namespaces"`
	Security   Security   `json:"security"`
	Resources  Resources  `json:"resources"`
	Rlimits    []Rlimit   `json:"rlimits,omitempty"`
}

// Secret is what of an app nobody but root may read.
type Secret struct {
	Env []string `json:"env,omitempty"` // NAME=value, in order
}

// Image is the image an app runs.
type Image struct {
	ID   string `json:"id"`   // sha256:… of the config; Image.id everywhere
	Ref  string `json:"ref"`  // repository@digest, "" if unknown
	Name string `json:"name"` // as the user wrote it
}

// Process is a command to run inside a running app.
type Process struct {
	Argv []string
	Env  []string // added to the app's own
	TTY  bool
}

// Propagation of mounts between host and app.
type Propagation string

// The propagations, in the kernel's words.
const (
	PropagationPrivate Propagation = "rprivate"
	PropagationSlave   Propagation = "rslave"
	PropagationShared  Propagation = "rshared"
)

// Mount puts a path of the host, or an image, into the app.
type Mount struct {
	Path              string      `json:"path"`             // in the app
	Source            string      `json:"source,omitempty"` // on the host, symlinks resolved
	Image             *Image      `json:"image,omitempty"`  // instead of Source
	ImageSubPath      string      `json:"imageSubPath,omitempty"`
	ReadOnly          bool        `json:"readOnly,omitempty"`
	RecursiveReadOnly bool        `json:"recursiveReadOnly,omitempty"`
	Propagation       Propagation `json:"propagation,omitempty"`   // "" is private
	Relabel           bool        `json:"relabel,omitempty"`       // with the app's SELinux label
	RelabelShared     bool        `json:"relabelShared,omitempty"` // or with one that all apps may use
	UIDs              []IDMap     `json:"uids,omitempty"`          // idmapped mount
	GIDs              []IDMap     `json:"gids,omitempty"`
	Options           []string    `json:"options,omitempty"` // noexec, nodev, nosuid
	// HostPath is the source as the caller wrote it, for status.
	HostPath string `json:"hostPath,omitempty"`
}

// Device gives a device of the host to the app. Type, Major, Minor, Mode and the
// owner are read from the host when the app is created, so that the plan is pure.
type Device struct {
	Path        string `json:"path"`        // in the app
	Source      string `json:"source"`      // on the host
	Permissions string `json:"permissions"` // of r, w, m
	Type        string `json:"type"`        // c or b
	Major       int64  `json:"major"`
	Minor       int64  `json:"minor"`
	Mode        uint32 `json:"mode,omitempty"`
	UID         uint32 `json:"uid,omitempty"`
	GID         uint32 `json:"gid,omitempty"`
}

// Hook is a program of the host that runs at a stage of the app's life, as OCI
// runtimes know them: createRuntime, createContainer, startContainer, poststart,
// poststop, or the old prestart.
type Hook struct {
	Stage   string   `json:"stage"`
	Path    string   `json:"path"`
	Args    []string `json:"args,omitempty"`
	Env     []string `json:"env,omitempty"`
	Timeout int      `json:"timeout,omitempty"` // seconds; 0 is none
}

// Rlimit is a resource limit, named as in getrlimit(2): RLIMIT_NOFILE.
type Rlimit struct {
	Type string `json:"type"`
	Soft uint64 `json:"soft"`
	Hard uint64 `json:"hard"`
}

// ProfileKind tells where a security profile comes from.
type ProfileKind string

// The kinds of profile.
const (
	ProfileRuntimeDefault ProfileKind = "runtime/default"
	ProfileUnconfined     ProfileKind = "unconfined"
	ProfileLocalhost      ProfileKind = "localhost"
)

// Profile is a seccomp or AppArmor profile. Localhost is a file's absolute path
// (seccomp) or a loaded profile's name (AppArmor).
type Profile struct {
	Kind      ProfileKind `json:"kind"`
	Localhost string      `json:"localhost,omitempty"`
}

// SELinux is a process label in parts.
type SELinux struct {
	User  string `json:"user,omitempty"`
	Role  string `json:"role,omitempty"`
	Type  string `json:"type,omitempty"`
	Level string `json:"level,omitempty"`
}

// Security says as whom and under which restrictions processes run. The IDs are
// resolved: names were looked up in the image when the app was created.
type Security struct {
	UID    uint32   `json:"uid"`
	GID    uint32   `json:"gid"`
	Groups []uint32 `json:"groups,omitempty"`
	// User is the name or number the caller or the image gave, for status.
	User string `json:"user,omitempty"`

	Privileged      bool     `json:"privileged,omitempty"`
	ReadOnlyRootfs  bool     `json:"readOnlyRootfs,omitempty"`
	NoNewPrivileges bool     `json:"noNewPrivileges,omitempty"`
	AddCaps         []string `json:"addCaps,omitempty"` // without CAP_, or ALL
	DropCaps        []string `json:"dropCaps,omitempty"`
	AmbientCaps     []string `json:"ambientCaps,omitempty"`

	Seccomp  Profile  `json:"seccomp"`
	AppArmor Profile  `json:"appArmor"`
	SELinux  *SELinux `json:"selinux,omitempty"`

	// MaskedPaths and ReadOnlyPaths: nil means the defaults, empty really none.
	MaskedPaths   []string `json:"maskedPaths"`
	ReadOnlyPaths []string `json:"readOnlyPaths"`
}

// HugepageLimit limits one page size, written as the kernel does: 2MB, 1GB.
type HugepageLimit struct {
	PageSize string `json:"pageSize"`
	Limit    uint64 `json:"limit"`
}

// Resources are cgroup v2 limits in the terms of the CRI. Zero means not set.
type Resources struct {
	CPUPeriod   int64             `json:"cpuPeriod,omitempty"` // microseconds
	CPUQuota    int64             `json:"cpuQuota,omitempty"`  // microseconds a period; <0 no limit
	CPUShares   int64             `json:"cpuShares,omitempty"` // v1 shares, 2..262144
	CPUSet      string            `json:"cpuset,omitempty"`    // list format: 0-3,7
	MemorySet   string            `json:"memoryNodes,omitempty"`
	Memory      int64             `json:"memory,omitempty"` // bytes
	MemorySwap  int64             `json:"memorySwap,omitempty"`
	Pids        int64             `json:"pids,omitempty"`
	OOMScoreAdj int               `json:"oomScoreAdj,omitempty"`
	Hugepages   []HugepageLimit   `json:"hugepages,omitempty"`
	Unified     map[string]string `json:"unified,omitempty"` // cgroup v2 files, verbatim
}
