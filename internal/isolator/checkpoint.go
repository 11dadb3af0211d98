package isolator

// The parts of the directory that an isolator writes a checkpoint to.
const (
	// CheckpointImages is where the state of the processes is written.
	CheckpointImages = "checkpoint"
	// CheckpointLog is what the runtime said.
	CheckpointLog = "runtime.log"
	// CheckpointWork has criu's own log, dump.log, and its statistics, stats-dump.
	CheckpointWork = "work"
)
