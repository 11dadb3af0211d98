package main

import "context"

// metric is a line of the table.
type metric struct {
	name  string
	title string
	unit  string
	// goal is the share of containerd's number that Gantry is to reach, 0 for none.
	goal float64
	// most is a bound in the metric's own unit, where it does not depend on how
	// fast the machine is; 0 for none.
	most float64
	// floor names the metric that no engine can go below.
	floor string
	// own names a metric of Gantry's, or a floor, that this one is compared with instead
	// of containerd's number, which has no such thing.
	own string
}

const (
	floorEngine = "floor"

	mStart      = "start"
	mStartHost  = "start-host"
	mStartFly   = "start-fly"
	mStartFirst = "start-first"
	mParallel   = "start-16"
	mStop       = "stop"
	mRemove     = "stop-remove"
	mExec       = "exec"
	mMemory     = "memory"
	mIdle       = "idle-cpu"
	mLines      = "lines"
	mLinesQuiet = "lines-no-journal"
	mPull       = "pull"

	mMachine       = "start-machine"
	mMachineMemory = "machine-memory"

	mFork       = "fork-exec"
	mCrun       = "crun-run"
	mSystemdRun = "systemd-run"
	mBridge     = "cni-bridge"
	mPipe       = "pipe-lines"
	mUnpack     = "download-gunzip"
	mBoot       = "bare-boot"
)

// metrics are the table's lines in order. The goals are those that Gantry set
// itself before it was written, see docs/benchmarks.md.
func metrics() []metric {
	return []metric{
		{mStart, "pod start to first log line", "ms", 0.37, 0, mBridge, ""},
		{mStartHost, "the same in the host's network", "ms", 0.27, 0, mSystemdRun, ""},
		{mStartFly, "the same by fly, against oci", "ms", 0.8, 0, mSystemdRun, mStartHost},
		{mStartFirst, "the first pod of an image", "ms", 0, 0, mBridge, ""},
		{mParallel, "16 pods, 8 at a time", "ms", 0.47, 0, "", ""},
		{mStop, "StopPodSandbox", "ms", 0.49, 0, "", ""},
		{mRemove, "StopPodSandbox and RemovePodSandbox", "ms", 0, 0, "", ""},
		{mExec, "ExecSync of true", "ms", 0.68, 0, mFork, ""},
		{mMemory, "memory per idle pod", "KB", 0.0083, 200, "", ""},
		{mIdle, "CPU while idle, lists once a second", "ms/s", 0.041, 0, "", ""},
		{mLines, "300,000 log lines, in the journal too", "ms", 0.47, 0, mPipe, ""},
		{mLinesQuiet, "300,000 log lines", "ms", 0.47, 0, mPipe, ""},
		{mPull, "pull of a 150 MB layer", "ms", 0.24, 0, mUnpack, ""},
		{mMachine, "pod start in a machine, against a bare boot", "ms", 1.5, 0, "", mBoot},
		{mMachineMemory, "memory per idle pod in a machine", "KB", 0, 0, "", ""},
	}
}

// floors are measured beside the engines: what the parts cost that any engine is
// made of.
func floors() []metric {
	return []metric{
		{name: mFork, title: "fork and exec of a small program", unit: "ms"},
		{name: mCrun, title: "crun run of true", unit: "ms"},
		{name: mSystemdRun, title: "systemd-run --wait true", unit: "ms"},
		{name: mBridge, title: "ADD of the CNI plugin bridge alone", unit: "ms"},
		{name: mPipe, title: "300,000 lines through a pipe to a file", unit: "ms"},
		{name: mBoot, title: "boot of the same kernel to its first process", unit: "ms"},
		{name: mUnpack, title: "download of that layer and gunzip to a file", unit: "ms"},
	}
}

// group is what is measured together in one turn of an engine.
type group struct {
	name    string
	percent int // of the rounds that are asked for
	do      func(context.Context, *bench, *engine) error
	floor   func(context.Context, *bench) error
}

func groups() []group {
	return []group{
		{"pods", 100, measurePods, floorPods},
		{"parallel", 60, measureParallel, nil},
		{"lines", 60, measureLines, floorLines},
		{"pull", 60, measurePull, floorPull},
		{"idle", 40, measureIdle, nil},
		{"machines", 40, measureMachines, floorMachines},
	}
}

func groupNames() []string {
	var names []string
	for _, g := range groups() {
		names = append(names, g.name)
	}
	return names
}
