package initproc

// PodPIDs stands for the PID namespace that apps of a pod share.
const PodPIDs = "pod"

// Start is the content of start.json, written by an isolator's plan into the
// app's directory and read by "gantry-init start DIR".
type Start struct {
	Pod string `json:"pod"`
	App string `json:"app"`
	// Self has gantry-init run the app itself; without it the OCI runtime does.
	Self *Self `json:"self,omitempty"`
	// PIDs tells, in a machine, whose PID namespace the app is in: "" is its own, PodPIDs the
	// pod's, and anything else the ID of another app.
	PIDs string `json:"pids,omitempty"`
	// Around is the command line of a program that is put around the app: gantry-init
	// becomes it, and what it runs in place of AppArg becomes the app. It needs Self.
	Around []string `json:"around,omitempty"`
	// End is the command that ends an app whose processes are not the unit's, and records
	// how. It is told the unit's result, "" where nothing follows this end; with the exit
	// code GoesOn the app runs, and so will the unit.
	End []string `json:"end,omitempty"`
	// Program has gantry-init become what process.json says as it is, a program of the
	// host. The rootfs is mounted, and all else is that program's.
	Program bool `json:"program,omitempty"`
	// Runtime is the OCI runtime's command line up to the subcommand.
	Runtime []string `json:"runtime,omitempty"`
	// RuntimeMS is how long, in milliseconds, the runtime may take to create or start
	// a container; 0 is as long as the start of a unit allows.
	RuntimeMS int64 `json:"runtimeMS,omitempty"`
	// State is the directory of the app in the runtime's state, where that is all the
	// runtime keeps: removing it is as good as asking the runtime, and no process. ""
	// asks the runtime.
	State string `json:"state,omitempty"`
	// Group is where the runtime puts the app below the unit's cgroup; "" leaves it in
	// that.
	Group string `json:"group,omitempty"`
	// Bundle is the directory with config.json.
	Bundle string `json:"bundle,omitempty"`
	Rootfs Rootfs `json:"rootfs"`
	// Trees are parts of read-only trees that are mounted into the unit's mount
	// namespace before the runtime runs, for image volumes.
	Trees []Tree `json:"trees,omitempty"`
	Stdio Stdio  `json:"stdio"`
	// Cgroup files are written, exactly, before the app exists.
	Cgroup []CgroupFile `json:"cgroup,omitempty"`
	// Relabel is what gets an SELinux label, none where SELinux is off.
	Relabel []Relabel `json:"relabel,omitempty"`
	// PodSlice is the cgroup directory that must exist already: systemd would
	// make it again, without its limits.
	PodSlice string `json:"podSlice,omitempty"`
}

// Rootfs is the overlay to mount in the unit's private mount namespace.
type Rootfs struct {
	Lower  []string `json:"lower"` // top first
	Upper  string   `json:"upper,omitempty"`
	Work   string   `json:"work,omitempty"`
	Target string   `json:"target"`
	// UserNS is the pinned user namespace to map the lower trees for, "" for none.
	// Upper belongs to UID and GID then: those of its root, on the host.
	UserNS string `json:"userNS,omitempty"`
	UID    int    `json:"uid,omitempty"`
	GID    int    `json:"gid,omitempty"`
	// Label is the SELinux label of all files in it, "" for none.
	Label string `json:"label,omitempty"`
	// Shared tells that we run in the host's mount namespace, for an app with
	// bidirectional volumes: the rootfs is mounted in a copy of it that keeps its
	// peer groups.
	Shared bool `json:"shared,omitempty"`
	// NoDev makes device files that the app makes in it be none: where there is no cgroup
	// that says which an app may open.
	NoDev bool `json:"noDev,omitempty"`
}

// Relabel gives files, and directories with all below them, an SELinux label.
type Relabel struct {
	Label string   `json:"label"`
	Paths []string `json:"paths"`
}

// Tree is a directory, or what is at Sub in it, cloned and mapped onto Target. Sub
// is the image's and the user's word: it is looked up with Source as the root.
type Tree struct {
	Source string `json:"source"`
	Sub    string `json:"sub,omitempty"`
	Target string `json:"target"`
	UserNS string `json:"userNS,omitempty"`
}

// Stdio tells where to fetch the app's stdin, stdout and stderr.
type Stdio struct {
	Socket string `json:"socket"` // of gantry-stdio; "" gives the unit's own
	TTY    bool   `json:"tty,omitempty"`
}

// CgroupFile is a file of the unit's cgroup and its value.
type CgroupFile struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}
