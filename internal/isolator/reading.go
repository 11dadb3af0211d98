package isolator

// Reading is what is read of an app that the host's kernel does not count.
type Reading struct {
	Files     map[string]string // of the app's cgroup, those that are there
	Processes uint64
	// The file system of its writable layer.
	FSBytes, FSInodes, FSFreeInodes uint64
}
