package pod

import "time"

// Phase is the one word for where an app or a pod is in its life.
//
//	            create               start               exit / kill / reboot
//	(nothing) ----------> prepared ----------> running ----------> exited
//	     |                    |                    |                  |
//	     v                    +---------+----------+------------------+
//	  preparing                         v remove
//	(half made; gc)                  removing (renamed into garbage/)
type Phase string

// The phases. Unknown means that the sources could not be read: it is never
// used to hide that they disagree.
const (
	Prepared Phase = "prepared"
	Running  Phase = "running"
	Exited   Phase = "exited"
	Unknown  Phase = "unknown"
)

// Run is the record of an app's one start: an app that ended is never started
// again. gantry-init writes it when the app's process exists and waits to be let
// go, so whatever has a Run has, or had, a process.
type Run struct {
	BootID       string    `json:"bootID"`
	Unit         string    `json:"unit"`
	InvocationID string    `json:"invocationID,omitempty"`
	PID          int       `json:"pid"`
	Started      time.Time `json:"started"`
}

// The reasons of an exit, in the CRI's words.
const (
	ReasonCompleted  = "Completed"
	ReasonError      = "Error"
	ReasonOOMKilled  = "OOMKilled"
	ReasonStartError = "StartError"
	ReasonCannotRun  = "ContainerCannotRun"
	ReasonUnknown    = "Unknown"
	ReasonUnkillable = "Unkillable" // killed, but the kernel does not let go of it
)

// Exit is the record of how an app ended. gantry-init writes it while systemd
// stops the unit; the engine writes one only where the machine went down first.
type Exit struct {
	Code         int       `json:"code"`
	Signal       int       `json:"signal,omitempty"`
	Reason       string    `json:"reason"`
	Message      string    `json:"message,omitempty"`
	Started      time.Time `json:"started,omitzero"`
	Finished     time.Time `json:"finished"`
	BootID       string    `json:"bootID"`
	InvocationID string    `json:"invocationID,omitempty"`
}

// AppFacts is everything Observe looks at.
type AppFacts struct {
	App     *App
	Run     *Run       // nil: never started
	Exit    *Exit      // nil: no exit record
	Updated *Resources // nil: the App's own are in force
	Unit    UnitState
	// BootID of the running system.
	BootID string
}

// UnitState is what systemd says of a unit. Active is "" when it was not asked.
type UnitState struct {
	Loaded       bool
	Active       string // active, activating, deactivating, inactive, failed; "" if unknown
	InvocationID string
	MainPID      int
}

// AppStatus is an app as observed.
type AppStatus struct {
	*App
	Phase    Phase
	Started  time.Time
	Finished time.Time
	Exit     *Exit
	PID      int
	// Lost: nobody saw the end, and no record of it was made since. Exit and Finished
	// say then what is known of an end, but not when it came.
	Lost bool
	// Current are the limits in force.
	Current Resources
}

// PodStatus is a pod as observed.
type PodStatus struct {
	*Pod
	// Ready: its namespaces, network and unit are there.
	Ready bool
	// Making: the program that is asked makes it just now for somebody, or takes back what it
	// made.
	Making bool
	IPs    []string
	Apps   []AppStatus
}
