package recipe

import (
	"slices"
	"time"

	"gantry/internal/isolator"
	"gantry/internal/unit"
)

const (
	// startTime bounds a start; kubelet gives up after two minutes.
	startTime = 110 * time.Second
	// stopTime is the grace of an app that has none of its own.
	stopTime = 30 * time.Second
	sigTERM  = 15
	// minStopTime is the least that systemd is told: the time also bounds the
	// recorder of the exit, which may have a hundredth of a CPU. A shorter grace is
	// kept by the engine, which stops apps itself.
	minStopTime = 30 * time.Second

	stdioService = "gantry-stdio.service"
	stdioSocket  = "gantry-stdio.socket"
)

// defaultLimits are an app's rlimits where it says nothing. They are stated so
// that no app depends on how PID 1 was configured, and an exec gets the same as
// the app. Processes are limited by the cgroup: RLIMIT_NPROC would count those of
// all pods with the same user.
var defaultLimits = []struct {
	name       string
	soft, hard unit.Uint64
}{
	{"CORE", unit.Infinity, unit.Infinity},
	{"MEMLOCK", 8 << 20, 8 << 20},
	{"NOFILE", 1 << 20, 1 << 20},
	{"NPROC", unit.Infinity, unit.Infinity},
}

// Limits are an app's limits, as its unit takes them, and Files of its cgroup.
type Limits struct {
	properties []unit.Property
	Files      []isolator.CgroupFile
	oomPolicy  string
}

// oomContinue is the policy for an app whose processes may be killed for memory one
// by one.
const oomContinue = "continue"

// LimitsOf adds to Resources what only a start can set.
func LimitsOf(in isolator.App) (Limits, error) {
	props, files, err := Resources(in.Resources)
	if err != nil {
		return Limits{}, err
	}
	r := Limits{properties: props, oomPolicy: "kill"}
	for _, f := range files {
		if f.Name != memoryOOMGroup {
			r.Files = append(r.Files, f)
		} else if f.Value == "0" {
			r.oomPolicy = oomContinue
		}
	}
	if !slices.ContainsFunc(props, func(p unit.Property) bool { return p.Name == "TasksMax" }) {
		r.properties = append(r.properties, unit.Property{Name: "TasksMax", Value: unit.Infinity})
	}
	return r, nil
}

// Service is the app's unit. Where a property looks superfluous, systemd's default
// was wrong for an app; docs/decisions says which trap it was.
func (r Recipe) Service(in isolator.App, l Limits) unit.Unit {
	u := unit.Unit{Name: unit.App(string(in.App.ID))}
	add := func(name string, v unit.Value) {
		u.Properties = append(u.Properties, unit.Property{Name: name, Value: v})
	}
	r.addCommands(in, l, add)
	r.addOrder(in, add)

	add("Delegate", unit.Bool(true))
	add("OOMPolicy", unit.String(l.oomPolicy))
	add("OOMScoreAdjust", unit.Int32(in.Resources.OOMScoreAdj))
	u.Properties = append(u.Properties, l.properties...)
	for _, l := range defaultLimits {
		add("Limit"+l.name, l.hard)
		add("Limit"+l.name+"Soft", l.soft)
	}
	policy, rules := deviceRules(in.App)
	add("DevicePolicy", unit.String(policy))
	if len(rules) > 0 {
		add("DeviceAllow", rules)
	}
	if !HasShared(in.App) {
		add("PrivateMounts", unit.Bool(true))
	}
	return u
}

// addCommands adds what runs and how it ends.
func (r Recipe) addCommands(in isolator.App, l Limits, add func(string, unit.Value)) {
	signal, grace := in.App.StopSignal, in.App.StopTimeout
	if signal == 0 {
		signal = sigTERM
	}
	if grace == 0 {
		grace = stopTime
	}
	add("Description", unit.String(Describe(in.Pod.Namespace, in.Pod.Name, in.App.Name)))
	add("Type", unit.String("notify"))
	add("NotifyAccess", unit.String("all"))
	add("ExecStart", unit.Commands{r.Run("start", in.Dir.App)})
	add("ExecStopPost", r.recorders(in, l))
	add("TimeoutStartUSec", unit.Duration(startTime))
	add("TimeoutStopUSec", unit.Duration(max(grace, minStopTime)))
	add("KillMode", unit.String("mixed"))
	add("KillSignal", unit.Int32(signal))
	add("Restart", unit.String("no"))
	add("CollectMode", unit.String("inactive-or-failed"))
	add("StandardInput", unit.String("null"))
	add("StandardOutput", unit.String("journal"))
	add("StandardError", unit.String("journal"))
	add("SyslogIdentifier", unit.String(syslogName))
	add("IgnoreSIGPIPE", unit.Bool(false))
	add("UMask", unit.Uint32(0o022))
}

// recorders are what records the end. It lives in the app's cgroup and may be
// killed there: then the unit has failed, and its OnFailure= records the end from
// outside. That one sees no memory.events, and systemd does not tell of memory
// either where it is to go on after a process was killed for it: there the recorder
// runs twice, and the "-" of the first forgives its end.
func (r Recipe) recorders(in isolator.App, l Limits) unit.Commands {
	exited := r.Run("exited", in.Dir.App)
	if l.oomPolicy != oomContinue {
		return unit.Commands{exited}
	}
	first := exited
	first.IgnoreFailure = true
	return unit.Commands{first, exited}
}

// addOrder adds where the app's unit stands among others. Requisite, for the pod:
// to require it would start it again, without a network.
func (r Recipe) addOrder(in isolator.App, add func(string, unit.Value)) {
	podUnit := unit.Pod(string(in.Pod.ID))
	after := unit.Strings{podUnit}
	var trees unit.Strings
	for _, t := range imageTrees(in) {
		if t.Unit != "" && !slices.Contains(trees, t.Unit) {
			trees = append(trees, t.Unit)
		}
	}
	slices.Sort(trees)
	after = append(after, trees...)
	if r.StdioSocket != "" {
		after = append(after, stdioService, stdioSocket)
	}
	add("Slice", unit.String(in.Pod.Slice))
	add("After", after)
	add("Requisite", unit.Strings{podUnit})
	if len(trees) > 0 {
		add("Requires", trees)
	}
	if r.StdioSocket != "" {
		add("Wants", unit.Strings{stdioService, stdioSocket})
	}
	// Whoever kills all of the pod's slice kills the recorder in it, too.
	add("OnFailure", unit.Strings{unit.Exit(string(in.App.ID))})
	add("IgnoreOnIsolate", unit.Bool(true))
}

// imageTrees are the image trees the app uses.
func imageTrees(in isolator.App) []isolator.Tree {
	out := []isolator.Tree{in.Rootfs}
	for _, m := range in.App.Mounts {
		if m.Image != nil {
			out = append(out, in.ImageVolumes[m.Image.ID])
		}
	}
	return out
}
