package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"gantry/internal/pod"
)

// TestUsage: what was quick to find is found anew, what took long is remembered
// for as long as all apps' looks together allow.
func TestUsage(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	u := newUsage(t.Context())
	ask := func(id pod.ID) uint64 {
		t.Helper()
		_, inodes := u.of(t.Context(), id, below(dir))
		return inodes
	}
	if got := ask("a"); got != 1 {
		t.Errorf("an empty directory has %d inodes", got)
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	put := func(id pod.ID, found, asked, took time.Duration) {
		u.known[id] = used{inodes: 77, found: time.Now().Add(-found), asked: time.Now().Add(-asked), took: took}
	}
	put("a", time.Minute, 0, 2*time.Second)
	if got := ask("a"); got != 2 {
		t.Errorf("a look of 2 s, a minute ago: %d inodes", got)
	}
	put("a", time.Minute, 0, 4*time.Second)
	if got := ask("a"); got != 77 {
		t.Errorf("a look of 4 s, a minute ago: %d inodes, want what was remembered", got)
	}
	put("a", time.Minute, 0, 2*time.Second)
	put("b", time.Second, 0, 0)
	if got := ask("a"); got != 77 {
		t.Errorf("a look of 2 s, a minute ago, of one of two: %d inodes, want what was remembered", got)
	}
	put("a", 11*time.Minute, 0, time.Hour)
	if got := ask("a"); got != 2 {
		t.Errorf("a look of an hour, 11 minutes ago: %d inodes", got)
	}
	put("b", time.Hour, 11*time.Minute, time.Hour)
	ask("c")
	if _, ok := u.known["b"]; ok || len(u.known) != 2 {
		t.Errorf("remembered are %v", u.known)
	}
}

// TestUsageOfASlowLook: nobody waits for it, and it is not begun a second time.
func TestUsageOfASlowLook(t *testing.T) {
	t.Parallel()
	u := newUsage(t.Context())
	u.known["a"] = used{inodes: 77, found: time.Now().Add(-time.Hour), took: time.Second}
	slow := &look{begun: time.Now(), done: make(chan struct{})}
	u.looks["a"], u.looks["b"] = slow, slow
	if _, inodes := u.of(t.Context(), "a", below(t.TempDir())); inodes != 77 {
		t.Errorf("while a look is under way: %d inodes, want those of the last one", inodes)
	}
	if _, inodes := u.of(t.Context(), "b", below(t.TempDir())); inodes != 0 {
		t.Errorf("before the first look has ended: %d inodes", inodes)
	}
	clear(u.looks)
	if _, inodes := u.of(t.Context(), "a", below(t.TempDir())); inodes != 1 {
		t.Errorf("after that: %d inodes, want those that are there", inodes)
	}
}

// TestUsageOfALookCutShort: what it did not see was there before.
func TestUsageOfALookCutShort(t *testing.T) {
	t.Parallel()
	ended, end := context.WithCancel(t.Context())
	u := newUsage(ended)
	u.known["a"] = used{bytes: 1 << 40, inodes: 77, found: time.Now().Add(-time.Hour), took: time.Second}
	end()
	u.slots = make(chan struct{}, 1)
	for range 100 { // the select may choose to give up
		<-u.look("a", below(t.TempDir())).done
	}
	if k, _ := u.last("a"); k.inodes != 77 || k.bytes != 1<<40 {
		t.Errorf("remembered are %d bytes in %d files", k.bytes, k.inodes)
	}
}

// TestUsageOfManySlowLooks: they begin at the same time, so that all of them are
// waited for during one second.
func TestUsageOfManySlowLooks(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		life, end := context.WithCancel(t.Context())
		defer end()
		u := newUsage(life)
		for range usageLooks { // nothing gets through
			u.slots <- struct{}{}
		}
		begun := time.Now()
		for i := range 200 {
			u.begin(pod.ID(fmt.Sprint(i)), below("/nowhere"))
		}
		for i := range 200 {
			u.of(life, pod.ID(fmt.Sprint(i)), below("/nowhere"))
		}
		if took := time.Since(begun); took != usageWait {
			t.Errorf("200 apps were waited for during %v", took)
		}
		end()
		synctest.Wait()
		if len(u.looks) != 0 {
			t.Errorf("%d looks are still under way after the end", len(u.looks))
		}
	})
}

// TestDiskUseOfWhatChanges: a directory becomes a pipe and a device of the host in
// the moment before it is opened. Neither may be opened, and nothing may hang.
func TestDiskUseOfWhatChanges(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "a"), 0o700); err != nil {
		t.Fatal(err)
	}
	pipe := filepath.Join(dir, "b")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	if f, err := openDir(unix.AT_FDCWD, pipe); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("a pipe was opened: %v, %v", f, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	exchanged := make(chan int)
	go func() {
		n := 0
		for ; ctx.Err() == nil; n++ {
			_ = unix.Renameat2(unix.AT_FDCWD, filepath.Join(dir, "a"), unix.AT_FDCWD, pipe, unix.RENAME_EXCHANGE)
		}
		exchanged <- n
	}()
	for range 2000 {
		if _, inodes := diskUse(t.Context(), dir); inodes < 1 || inodes > 3 {
			t.Errorf("%d inodes", inodes)
		}
	}
	cancel()
	t.Logf("%d exchanges meanwhile", <-exchanged)
}

// TestDiskUseStaysInside: what an app links to is not its own.
func TestDiskUseStaysInside(t *testing.T) {
	t.Parallel()
	outside, dir := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(outside, "big"), make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, to := range map[string]string{"absolute": outside, "up": "../../../../../../../" + outside, "self": "."} {
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if bytes, inodes := diskUse(t.Context(), dir); bytes >= 1<<20 || inodes != 4 {
		t.Errorf("%d bytes in %d files", bytes, inodes)
	}
}
