package guest

import (
	"context"
	"fmt"
	"os"
	"time"
)

// The host keeps something for each file of a volume that the kernel here remembers, in memory
// that is not the machine's: who walks through a big tree would have the host end the pod.
const (
	// mostInodes is how many files are remembered before they are forgotten.
	mostInodes = 24 << 10
	// inodesOften is the time between looks. A walk that is quicker than that costs the
	// host some tens of megabytes, for a while.
	inodesOften = 2 * time.Second
)

// keepFewInodes has the kernel forget files, as long as the machine runs.
func keepFewInodes(ctx context.Context) {
	tick := time.NewTicker(inodesOften)
	defer tick.Stop()
	for f := (forgetting{most: mostInodes}); ; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		if err := f.look(inodes, dropCaches); err != nil {
			fmt.Fprintln(os.Stderr, "gantry-guest: forget files that are not in use:", err)
			return
		}
	}
}

// forgetting is what was found out about files that the kernel cannot forget.
type forgetting struct {
	most uint64
	// kept is how many stayed the last time, if those were too many. There may be as many as
	// most beside them.
	kept uint64
}

// look has files forgotten if there are too many: first those of which nothing is cached,
// and the others with what is cached of them only if that was not enough. What is in use
// stays, and is looked at again when there is as much again.
func (f *forgetting) look(count func() (uint64, error), drop func(what string) error) error {
	n, err := count()
	if err != nil || n <= f.most+f.kept {
		f.kept = min(f.kept, n)
		return err
	}
	for _, what := range []string{namesOnly, all} {
		if err := drop(what); err != nil {
			return err
		}
		f.kept = 0
		if n, err = count(); err != nil || n <= f.most {
			return err
		}
	}
	f.kept = n
	return nil
}

// inodes is how many files the kernel remembers, of whichever file system.
func inodes() (n uint64, err error) {
	data, err := os.ReadFile("/proc/sys/fs/inode-nr")
	if err != nil {
		return 0, err
	}
	_, err = fmt.Sscan(string(data), &n)
	return n, err
}

func dropCaches(what string) error {
	return os.WriteFile("/proc/sys/vm/drop_caches", []byte(what), 0o200)
}
