package guest

import (
	"bytes"
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
	// contentsSeldom is the least time between two losses of what is cached of files: a
	// program that works with many of them reads them again.
	contentsSeldom = time.Minute
)

// keepFewInodes has the kernel forget files of volumes, as long as the machine runs.
func keepFewInodes(ctx context.Context) {
	tick := time.NewTicker(inodesOften)
	defer tick.Stop()
	told := false
	for f := (forgetting{most: mostInodes}); ; {
		select {
		case now := <-tick.C:
			if err := f.look(now, sharedInodes, dropCaches); err != nil && !told {
				fmt.Fprintln(os.Stderr, "gantry-guest: forget files that are not in use:", err)
				told = true
			}
		case <-ctx.Done():
			return
		}
	}
}

// forgetting is what was found out about files that the kernel cannot forget.
type forgetting struct {
	most uint64
	// kept is how many stayed the last time, if those were too many. There may be as many as
	// most beside them.
	kept     uint64
	contents time.Time // when what is cached of files was dropped
}

// look has files forgotten if there are too many: first those of which nothing is cached,
// and the others with what is cached of them only if that was not enough. What is in use
// stays, and is looked at again when there is as much again.
func (f *forgetting) look(now time.Time, count func() (uint64, error), drop func(what string) error) error {
	n, err := count()
	if err != nil || n <= f.most+f.kept {
		f.kept = min(f.kept, n)
		return err
	}
	for _, what := range []string{namesOnly, all} {
		if what == all && now.Sub(f.contents) < contentsSeldom {
			return nil
		}
		if err := drop(what); err != nil {
			return err
		}
		f.kept = 0
		if what == all {
			f.contents = now
		}
		if n, err = count(); err != nil || n <= f.most {
			return err
		}
	}
	f.kept = n
	return nil
}

// sharedInodes is how many files of the host's the kernel remembers.
func sharedInodes() (uint64, error) {
	data, err := os.ReadFile("/proc/slabinfo")
	if err != nil {
		return 0, err
	}
	return sharedIn(data)
}

// sharedIn reads how many there are out of what the kernel tells of its objects. There are
// none of a kind that has not been used.
func sharedIn(slabs []byte) (n uint64, err error) {
	const kind = "fuse_inode "
	for line := range bytes.Lines(slabs) {
		if rest, ok := bytes.CutPrefix(line, []byte(kind)); ok {
			_, err = fmt.Sscan(string(rest), &n)
			return n, err
		}
	}
	return 0, nil
}

func dropCaches(what string) error {
	return os.WriteFile("/proc/sys/vm/drop_caches", []byte(what), 0o200)
}
