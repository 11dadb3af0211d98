package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
)

// passed is the cache's record of a suite that passed: it need not run again while
// all that it could see is the same, as "go test" does with a package.
type passed struct {
	Suite   string
	Commit  string
	When    time.Time
	Seconds float64
	Passed  int
	Skipped int
}

// passedFor is how long a record is believed: what no key can hold, the host's own
// kernel and qemu among it, changes in time.
const passedFor = 7 * 24 * time.Hour

// suiteOnce runs a suite unless it passed before with all that it sees the same.
func (t *trial) suiteOnce(ctx context.Context, name, suite string, options []string, again bool, out *lineWriter) (tally, error) {
	before, err := t.seen(ctx)
	if err != nil {
		out.line(suite, fmt.Sprintf("the result will not be remembered: %v", err))
		return t.child(ctx, name, suite, options, out)
	}
	key := before.key(suite, options)
	if p, ok := t.recall(key, time.Now()); ok && !again {
		out.line(suite, p.String())
		return p.tally(), nil
	}
	start, commit := time.Now(), commitHere(ctx)
	result, err := t.child(ctx, name, suite, options, out)
	if err != nil || result.failed > 0 {
		return result, err
	}
	if result.lacking > 0 { // what was put into the VM is in no key
		out.line(suite, fmt.Sprintf("the result will not be remembered: %d tests could not be run", result.lacking))
		return result, nil
	}
	if result.flaky > 0 {
		out.line(suite, "the result will not be remembered: a test failed at first")
		return result, nil
	}
	p := passed{suite, commit, start, time.Since(start).Seconds(), result.passed, result.skipped}
	if err := t.rememberIf(ctx, before, name, key, p); err != nil {
		out.line(suite, fmt.Sprintf("the result will not be remembered: %v", err))
	}
	return result, nil
}

// rememberIf records a result unless it is that of something else: who edits files
// while their tests run, or tests in a VM of another image, gets no record of it.
func (t *trial) rememberIf(ctx context.Context, before seen, name, key string, p passed) error {
	now, err := t.seen(ctx)
	if err != nil {
		return err
	}
	if now != before {
		return errors.New("the sources have changed meanwhile")
	}
	v := vm{name, t.cache.path("vm", name)}
	accel, _, _ := strings.Cut(v.read("accel"), " ")
	if ran := (seen{before.sources, v.read("image"), accel, v.read("size")}); ran != before {
		return fmt.Errorf("VM %s has %+v, and %+v is wanted", name, ran, before)
	}
	return t.remember(key, p)
}

// commitHere is the commit that is tested, to be told; "" if git does not know.
func commitHere(ctx context.Context) string {
	repo, err := repository()
	if err != nil {
		return ""
	}
	return commitOf(ctx, repo)
}

// seen is what every suite sees: the machine and the sources.
type seen struct {
	sources, image, accel, size string
}

func (t *trial) seen(ctx context.Context) (seen, error) {
	repo, err := repository()
	if err != nil {
		return seen{}, err
	}
	sources, err := sourceDigest(ctx, repo)
	if err != nil {
		return seen{}, err
	}
	image, err := findImage(ctx, t, false)
	if err != nil {
		return seen{}, err
	}
	how, err := chooseAccel(ctx, t, image)
	if err != nil {
		return seen{}, err
	}
	return seen{sources, image.id(), how.name, sizeOfVM()}, nil
}

// key names what one suite sees, its options among it.
func (s seen) key(suite string, options []string) string {
	return digest(suite, strings.Join(options, " "), s.image, s.accel, s.size, runtime.Version(), runtime.GOARCH, s.sources)
}

// sourceDigest is over the name, mode and content of every file of the tree that can
// reach the VM, with those that git does not know yet.
func sourceDigest(ctx context.Context, repo string) (string, error) {
	cmd := exec.CommandContext(ctx, "git", "ls-files", "-z", "-co", "--exclude-standard")
	cmd.Dir = repo
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("list the source files: %w", err)
	}
	names := strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00")
	slices.Sort(names)
	all := sha256.New()
	for _, name := range names {
		if !reachesVM(name) {
			continue
		}
		if err := digestFile(all, filepath.Join(repo, name), name); err != nil {
			return "", err
		}
	}
	return hex.EncodeToString(all.Sum(nil)), nil
}

func digestFile(all io.Writer, path, name string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // removed, and git not told yet
	}
	if err != nil {
		return fmt.Errorf("read the source files: %w", err)
	}
	var content []byte
	if info.Mode().Type() == fs.ModeSymlink {
		var target string
		target, err = os.Readlink(path)
		content = []byte(target)
	} else {
		content, err = os.ReadFile(path)
	}
	if err != nil {
		return fmt.Errorf("read the source files: %w", err)
	}
	_, err = fmt.Fprintf(all, "%q %s %x\n", name, info.Mode(), sha256.Sum256(content))
	return err
}

// reachesVM is true of all but documentation and benchmarks: what is in doubt counts.
func reachesVM(name string) bool {
	for _, dir := range []string{"docs/", "changelog/", "bench/", ".ci/"} {
		if strings.HasPrefix(name, dir) {
			return false
		}
	}
	if name == conformanceResults { // a record of what was run
		return false
	}
	return strings.Contains(name, "/") || !strings.HasSuffix(name, ".md")
}

// recall finds a record that is still believed.
func (t *trial) recall(key string, now time.Time) (passed, bool) {
	data, err := os.ReadFile(t.cache.path("passed", key))
	if err != nil {
		return passed{}, false
	}
	var p passed
	if json.Unmarshal(data, &p) != nil || p.Passed == 0 {
		return passed{}, false
	}
	if age := now.Sub(p.When); age < 0 || age >= passedFor {
		return passed{}, false
	}
	_ = os.Chtimes(t.cache.path("passed", key), now, now) // for "trial clean": it is in use
	return p, true
}

// remember records a suite of which nothing failed.
func (t *trial) remember(key string, p passed) error {
	var data bytes.Buffer
	out := json.NewEncoder(&data)
	out.SetIndent("", "  ")
	if err := out.Encode(p); err != nil {
		return fmt.Errorf("record that %s passed: %w", p.Suite, err)
	}
	path := t.cache.path("passed", key)
	err := os.MkdirAll(filepath.Dir(path), 0o755)
	if err == nil {
		err = os.WriteFile(path+".new", data.Bytes(), 0o644)
	}
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		return fmt.Errorf("record that %s passed: %w", p.Suite, err)
	}
	return nil
}

func (p passed) tally() tally { return tally{passed: p.Passed, skipped: p.Skipped} }

// String says it as "go test" says "(cached)", and how to see it run.
func (p passed) String() string {
	return fmt.Sprintf("ok  \tgantry/test/%s\t(cached: %s in %.0f s on %s, commit %s; nothing it sees has changed; AGAIN=1 runs it)",
		p.Suite, p.tally(), p.Seconds, p.When.UTC().Format("2006-01-02 15:04 MST"), p.Commit)
}
