//go:build e2e

package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gantry/internal/image"
	"gantry/internal/node"
	"gantry/internal/pod"
	"gantry/internal/systemd"
	"gantry/internal/unit"
)

const imageRegistry = "127.0.0.1:5000/"

// imageStore opens a store of its own on the machine's disk: EROFS images cannot
// be mounted from a tmpfs.
func imageStore(t *testing.T, change func(*image.Config)) *image.Store {
	t.Helper()
	dir, err := os.MkdirTemp("/var/lib", "gantry-image-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	run, err := os.MkdirTemp("/run", "gantry-image-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(run); err != nil {
			t.Error(err)
		}
	})
	cfg := image.Config{Root: dir, Run: run, Log: slog.New(slog.NewTextHandler(t.Output(), nil))}
	if change != nil {
		change(&cfg)
	}
	s, err := image.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func pullImage(t *testing.T, s *image.Store, name string) *image.Image {
	t.Helper()
	began := time.Now()
	img, err := s.Pull(t.Context(), imageRegistry+name, image.PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("pulled %s in %v: %d layers, %d bytes on disk", name, time.Since(began).Round(time.Millisecond), len(img.Layers), img.Size)
	return img
}

// mountTree lets systemd mount an image for a service that needs it, as an app
// does, and returns the tree's path.
func mountTree(t *testing.T, m *systemd.Manager, s *image.Store, img *image.Image) string {
	t.Helper()
	tree := s.Tree(img)
	if err := s.EnsureTree(t.Context(), img.ID); err != nil {
		t.Fatal(err)
	}
	u := unit.Unit{Name: "gantry-image-test.service", Properties: []unit.Property{
		{Name: "Description", Value: unit.String("needs an image")},
		{Name: "ExecStart", Value: unit.Commands{{Path: "/usr/bin/sleep", Args: []string{"sleep", "infinity"}}}},
		{Name: "Requires", Value: unit.Strings{tree.Mount.Name}},
		{Name: "After", Value: unit.Strings{tree.Mount.Name}},
		{Name: "CollectMode", Value: unit.String("inactive-or-failed")},
	}}
	began := time.Now()
	if _, err := m.Start(t.Context(), u, tree.Mount); err != nil {
		out, _ := exec.Command("journalctl", "-n", "20", "-u", tree.Mount.Name).CombinedOutput()
		t.Fatalf("%v\n%s", err, out)
	}
	t.Logf("service and mount up in %v", time.Since(began).Round(time.Millisecond))
	return tree.Path
}

// unmountTree stops the service; the mount must go by itself.
func unmountTree(t *testing.T, m *systemd.Manager, path string) {
	t.Helper()
	if err := m.Stop(context.WithoutCancel(t.Context()), "gantry-image-test.service"); err != nil {
		t.Fatal(err)
	}
	eventually(t, 5*time.Second, "the tree is unmounted", func() bool {
		mounts, err := os.ReadFile("/proc/self/mountinfo")
		return err == nil && !strings.Contains(string(mounts), path)
	})
	eventually(t, 5*time.Second, "no loop device is left", func() bool {
		return !strings.Contains(sh(t, "losetup -l -n -O BACK-FILE"), "gantry-image-test")
	})
}

// mountModes opens one store in both ways a kernel can mount images. What the
// first pulls, the second has to make ready, as after a boot of an older kernel.
func mountModes(t *testing.T) map[image.MountMode]*image.Store {
	t.Helper()
	var cfg image.Config
	file := imageStore(t, func(c *image.Config) { c.Mount = image.MountFile; cfg = *c })
	cfg.Mount = image.MountLoop
	loop, err := image.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return map[image.MountMode]*image.Store{image.MountFile: file, image.MountLoop: loop}
}

func TestImageProbe(t *testing.T) {
	guard(t)
	s := imageStore(t, nil)
	img := pullImage(t, s, "layers:2")
	if tree := s.Tree(img); !strings.Contains(tree.Mount.Text(), "device=") {
		t.Errorf("this kernel mounts files, and the probe says it does not:\n%s", tree.Mount.Text())
	}
}

// TestImageLayers mounts images of many layers, in both ways, and looks at what
// the layers of the registry's images write: one file each and one they share.
func TestImageLayers(t *testing.T) {
	guard(t)
	m := dialSystemd(t)
	t.Cleanup(func() { m.Close() })
	stores := mountModes(t)
	for _, n := range []int{1, 2, 10, 127} {
		img := pullImage(t, stores[image.MountFile], fmt.Sprintf("layers:%d", n))
		for mode, s := range stores {
			path := mountTree(t, m, s, img)
			files, err := os.ReadDir(filepath.Join(path, "layers"))
			if n > 1 && err != nil {
				t.Error(err)
			}
			t.Logf("%s: %d layers: %d files in /layers; mounted as %s", mode, n, len(files), sh(t, "findmnt -no FSTYPE,OPTIONS "+path))
			if out, err := exec.Command("chroot", path, "/bin/sh", "-c", "echo runs").CombinedOutput(); err != nil || string(out) != "runs\n" {
				t.Errorf("%s: %d layers: %v: %s", mode, n, err, out)
			}
			sh(t, "find "+path+" -xdev -type f -print0 | xargs -0 cat >/dev/null") // every byte can be read
			unmountTree(t, m, path)
		}
	}
}

// TestImageOdd checks the trees of unusual images with the kernel's own eyes.
func TestImageOdd(t *testing.T) {
	guard(t)
	m := dialSystemd(t)
	t.Cleanup(func() { m.Close() })
	for mode, s := range mountModes(t) {
		for name, check := range map[string]struct{ command, want string }{
			"whiteout":       {"ls a", "kept\nnew\n"},
			"opaque":         {"ls a", "new\n"},
			"replaced":       {"cat a; ls b; readlink c", "file\nx\nb\n"},
			"twice":          {"cat a; stat -c %a a", "second\n600\n"},
			"no-parents":     {"cat a/b/c/d; stat -c %a:%u a/b", "deep\n755:0\n"},
			"dot-slash":      {"ls -d a b", "a\nb\n"},
			"absolute-links": {"chroot . /bin/cat /f", "right\n"},
			"links-up":       {"readlink up", "../../../../etc/passwd\n"},
			"modes": {
				"stat -c '%n %a %u:%g' suid sgid sticky none other high-id; getcap capable",
				"suid 4755 0:0\nsgid 2755 0:0\nsticky 1777 0:0\nnone 0 0:0\nother 644 1234:1235\nhigh-id 644 2000000000:2000000001\ncapable cap_net_bind_service=ep\n",
			},
			"fifo":      {"stat -c '%F %a' fifo", "fifo 600\n"},
			"hardlinks": {"stat -c %h a b d/c d/across; stat -c %i a b d/c d/across | sort -u | wc -l", "4\n4\n4\n4\n1\n"},
			"wide":      {"ls wide | wc -l; ls wide | sed -n '1p;$p'", "5000\n0000\n4999\n"},
			"names":     {"ls -d mit* with* -- -dash %s '\\x41' | wc -l; find d -type f | wc -c", "9\n1005\n"},
		} {
			img := pullImage(t, s, "odd/"+name)
			path := mountTree(t, m, s, img)
			out, err := exec.Command("sh", "-c", "cd "+path+" && "+check.command).CombinedOutput()
			if err != nil || string(out) != check.want {
				t.Errorf("%s, %s: %v: got\n%s\nwant\n%s", mode, name, err, out, check.want)
			}
			if name == "modes" && !slices.Equal(xattrsOf(t, filepath.Join(path, "attr")), []string{"user.note=trial"}) {
				t.Errorf("%s, %s: attributes %v", mode, name, xattrsOf(t, filepath.Join(path, "attr")))
			}
			unmountTree(t, m, path)
		}
	}
}

// xattrsOf lists a file's extended attributes.
func xattrsOf(t *testing.T, path string) []string {
	t.Helper()
	names, value := make([]byte, 4096), make([]byte, 4096)
	n, err := unix.Llistxattr(path, names)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, name := range strings.FieldsFunc(string(names[:n]), func(r rune) bool { return r == 0 }) {
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, name+"="+string(value[:n]))
	}
	return out
}

// TestImageBlobs asks the tools of EROFS itself about what we write.
func TestImageBlobs(t *testing.T) {
	guard(t)
	s := imageStore(t, func(c *image.Config) { c.Mount = image.MountLoop })
	for _, name := range []string{"busybox:docker", "busybox:zstd", "layers:10", "odd/modes", "odd/names", "odd/wide", "nginx"} {
		img := pullImage(t, s, name)
		tree := s.Tree(img)
		dir := filepath.Dir(stringOf(tree.Mount.Get("What")))
		images := []string{filepath.Join(dir, "flat.erofs")}
		var devices []string
		for _, l := range img.Layers {
			blob := filepath.Join(dir, "../../layers/sha256", strings.TrimPrefix(l.DiffID, "sha256:")+".erofs")
			images = append(images, blob)
			devices = append(devices, "--device="+blob)
		}
		for _, path := range images {
			if out, err := exec.Command("fsck.erofs", path).CombinedOutput(); err != nil {
				t.Errorf("%s: fsck.erofs %s: %v: %s", name, path, err, out)
			}
		}
		if out, err := exec.Command("fsck.erofs", append(devices, filepath.Join(dir, "merged.erofs"))...).CombinedOutput(); err != nil {
			t.Errorf("%s: fsck.erofs of the merged image: %v: %s", name, err, out)
		}
	}
}

func stringOf(v unit.Value) string {
	s, _ := v.(unit.String)
	return string(s)
}

// TestImageReproducible pulls the same images into two stores.
func TestImageReproducible(t *testing.T) {
	guard(t)
	var sums []string
	for range 2 {
		var dir string
		s := imageStore(t, func(c *image.Config) { dir = c.Root })
		for _, name := range []string{"layers:10", "odd/hardlinks", "nginx"} {
			pullImage(t, s, name)
		}
		sums = append(sums, sh(t, "cd "+dir+" && find . -name '*.erofs' -type f | sort | xargs sha256sum"))
	}
	if sums[0] != sums[1] {
		t.Errorf("two pulls made\n%s\nand\n%s", sums[0], sums[1])
	}
}

// TestImageHostile pulls what no one should: a clear error, and nothing left.
func TestImageHostile(t *testing.T) {
	guard(t)
	var root string
	s := imageStore(t, func(c *image.Config) { root = c.Root })
	base := pullImage(t, s, "busybox:docker") // the layer below most of them
	before := sh(t, "cd "+root+" && find . | sort")
	stage := regexp.MustCompile(`(read manifest|fetch layer \d+ of \d+|store image).*\(after `)
	for name, want := range map[string]error{
		"absolute-path": pod.ErrInvalid, "dotdot": pod.ErrInvalid, "dotdot-inside": pod.ErrInvalid, "dotdot-name": pod.ErrInvalid,
		"whiteout-dotdot": pod.ErrInvalid, "hardlink-absolute": pod.ErrInvalid, "hardlink-dotdot": pod.ErrInvalid, "hardlink-missing": pod.ErrInvalid,
		"hardlink-loop": pod.ErrInvalid, "symlink-loop": pod.ErrInvalid, "devices": pod.ErrInvalid, "passwd-device": pod.ErrInvalid,
		"name-too-long": pod.ErrInvalid, "no-tar": pod.ErrInvalid, "half-tar": pod.ErrInvalid, "truncated": pod.ErrUnavailable, "wrong-digest": pod.ErrInvalid,
		"wrong-size": pod.ErrInvalid, "wrong-diffid": pod.ErrInvalid, "wrong-config": pod.ErrInvalid, "missing-blob": pod.ErrNotFound,
		"few-diffids": pod.ErrInvalid, "huge-manifest": pod.ErrInvalid, "zeros": pod.ErrInvalid,
	} {
		began := time.Now()
		img, err := s.Pull(t.Context(), imageRegistry+"hostile/"+name, image.PullOptions{})
		took := time.Since(began)
		if err == nil {
			t.Errorf("%s was pulled: %+v", name, img)
			continue
		}
		t.Logf("%s (%v): %v", name, took.Round(time.Millisecond), err)
		if !errors.Is(err, want) {
			t.Errorf("%s: error is no %v: %v", name, want, err)
		}
		if !stage.MatchString(err.Error()) {
			t.Errorf("%s: error names no stage and duration: %v", name, err)
		}
		if took > patience(10*time.Second) {
			t.Errorf("%s: refused after %v", name, took)
		}
		if after := sh(t, "cd "+root+" && find . | sort"); after != before {
			t.Errorf("%s changed the store:\n%s\nwas\n%s", name, after, before)
		}
	}
	if _, err := s.Image(base.ID); err != nil {
		t.Error(err)
	}
}

// TestImageTamed pulls what looks like an attack and is harmless here: all of it
// stays inside of the image's own tree.
func TestImageTamed(t *testing.T) {
	guard(t)
	m := dialSystemd(t)
	t.Cleanup(func() { m.Close() })
	s := imageStore(t, nil)
	for name, check := range map[string]struct{ command, want string }{
		"through-link":          {"cat etc/trial-pwned; readlink link", "pwned\n/etc\n"},
		"through-relative-link": {"cat etc/trial-pwned", "pwned\n"},
		"through-lower-link":    {"cat etc/trial-pwned; readlink link", "pwned\n/etc\n"},
		"overlay-whiteout":      {"ls a", ""},
		"overlay-xattr":         {"cat r", "x"},
		"etc-link":              {"readlink etc", "/etc\n"},
	} {
		img := pullImage(t, s, "hostile/"+name)
		path := mountTree(t, m, s, img)
		out, err := exec.Command("sh", "-c", "cd "+path+" && "+check.command).CombinedOutput()
		if err != nil || string(out) != check.want {
			t.Errorf("%s: %v: got\n%s\nwant\n%s", name, err, out, check.want)
		}
		for _, file := range []string{"a", "r", "m"} {
			if name == "overlay-xattr" && len(xattrsOf(t, filepath.Join(path, file))) > 0 {
				t.Errorf("%s has %v", file, xattrsOf(t, filepath.Join(path, file)))
			}
		}
		unmountTree(t, m, path)
	}
	for _, name := range []string{"passwd-link", "passwd-fifo", "etc-link", "proc-link"} {
		img := pullImage(t, s, "hostile/"+name)
		if u, err := s.ResolveUser(img, "1234", "", false, nil); err != nil || u.UID != 1234 {
			t.Errorf("%s: user = %+v, %v", name, u, err)
		}
		if u, err := s.ResolveUser(img, "nobody-here", "", false, nil); !errors.Is(err, pod.ErrInvalid) {
			t.Errorf("%s: user = %+v, %v", name, u, err)
		}
	}
}

// TestImageFullDisk pulls onto a disk that is too small. The disk is in memory:
// nothing is mounted from it.
func TestImageFullDisk(t *testing.T) {
	guard(t)
	disk := t.TempDir()
	sh(t, "mount -t tmpfs -o size=64M tmpfs "+disk)
	t.Cleanup(func() { sh(t, "umount "+disk) })
	s := imageStore(t, func(c *image.Config) { c.Root = filepath.Join(disk, "store") })
	pullImage(t, s, "busybox:docker")
	before := sh(t, "cd "+disk+" && find . | sort")
	_, err := s.Pull(t.Context(), imageRegistry+"bench/big", image.PullOptions{})
	t.Log(err)
	if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "the disk is full") || !strings.Contains(err.Error(), "fetch layer") {
		t.Errorf("error = %v", err)
	}
	if after := sh(t, "cd "+disk+" && find . | sort"); after != before {
		t.Errorf("left:\n%s\nwas\n%s", after, before)
	}
	pullImage(t, s, "layers:10") // and there is room again
}

// TestImageKilled kills processes in the middle of pulls, again and again. Every
// image that is listed is whole, and the next pull and GC leave nothing over.
func TestImageKilled(t *testing.T) {
	guard(t)
	var root, run string
	s := imageStore(t, func(c *image.Config) { root, run = c.Root, c.Run })
	// How long it takes when nobody kills it; the registry makes its images meanwhile.
	killPull(t, root, run, time.Hour)
	whole := killPull(t, root, run, time.Hour)
	removeImages(t, s)
	whole = max(whole, killPull(t, root, run, time.Hour))
	removeImages(t, s)
	t.Logf("the pulls take %v when nobody kills them", whole.Round(time.Millisecond))
	const rounds = 24
	for i := range rounds {
		killPull(t, root, run, whole*time.Duration(i)/rounds)
		images, err := s.Images()
		if err != nil {
			t.Fatal(err)
		}
		for _, img := range images {
			for _, l := range img.Layers {
				if _, err := os.Stat(filepath.Join(root, "layers/sha256", strings.TrimPrefix(l.DiffID, "sha256:")+".erofs")); err != nil {
					t.Errorf("round %d: %s lacks a layer: %v", i, img.ID, err)
				}
			}
		}
		if i%6 == 5 {
			items, err := s.GC(t.Context(), image.GCOptions{})
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("round %d: %d images, gc took %d items", i, len(images), len(items))
			removeImages(t, s)
		}
	}
	img := pullImage(t, s, "layers:10")
	if err := s.Remove(t.Context(), img.ID); err != nil {
		t.Error(err)
	}
	if _, err := s.GC(t.Context(), image.GCOptions{Images: true, Keep: func(string) bool { return false }}); err != nil {
		t.Error(err)
	}
	var left []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && (!d.IsDir() || strings.HasPrefix(d.Name(), "layer-") || strings.HasPrefix(d.Name(), "pull-") || strings.HasPrefix(d.Name(), "image-")) {
			left = append(left, path)
		}
		return err
	})
	if err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func removeImages(t *testing.T, s *image.Store) {
	t.Helper()
	images, err := s.Images()
	if err != nil {
		t.Fatal(err)
	}
	for _, img := range images {
		if err := s.Remove(t.Context(), img.ID); err != nil {
			t.Error(err)
		}
	}
}

// killPull pulls in another process, kills that after so long, and returns how
// long it lived since its first pull began.
func killPull(t *testing.T, root, run string, after time.Duration) time.Duration {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestImagePullHelper$", "-test.timeout=5m")
	cmd.Env = append(os.Environ(), "GANTRY_TEST_PULL="+root+","+run)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() && !strings.Contains(lines.Text(), "pulling") {
	}
	began := time.Now()
	timer := time.AfterFunc(after, func() { cmd.Process.Kill() })
	defer timer.Stop()
	for lines.Scan() {
	}
	if err := cmd.Wait(); err != nil && !strings.Contains(err.Error(), "killed") {
		t.Errorf("pull: %v", err)
	}
	return time.Since(began)
}

// TestImagePullHelper is the process that TestImageKilled kills.
func TestImagePullHelper(t *testing.T) {
	guard(t)
	dirs := os.Getenv("GANTRY_TEST_PULL")
	if dirs == "" {
		return // only for TestImageKilled
	}
	root, run, _ := strings.Cut(dirs, ",")
	s, err := image.Open(t.Context(), image.Config{Root: root, Run: run})
	if err != nil {
		t.Fatal(err)
	}
	fmt.Println("pulling")
	for _, name := range []string{"layers:10", "odd/wide", "nginx"} {
		pullImage(t, s, name)
	}
}

// TestImageLarge pulls the benchmark's images, and says what it took.
func TestImageLarge(t *testing.T) {
	guard(t)
	sh(t, "curl -sf -o /dev/null http://"+imageRegistry+"v2/bench/big/manifests/latest; curl -sf -o /dev/null http://"+imageRegistry+"v2/bench/files/manifests/latest")
	s := imageStore(t, nil)
	for _, name := range []string{"bench/big", "bench/files"} {
		for range 2 {
			img := pullImage(t, s, name)
			if err := s.Remove(t.Context(), img.ID); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestImagePulledByAnotherKernel starts an app where images need a loop device, from
// one that was pulled where they do not.
func TestImagePulledByAnotherKernel(t *testing.T) {
	guard(t)
	pull(t, openNode(t), busybox)
	n, err := node.Open(t.Context(), node.Options{
		Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Images: image.Config{Mount: image.MountLoop},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(n.Images().Remove(context.WithoutCancel(t.Context()), busybox), n.Close()); err != nil {
			t.Error(err)
		}
	})
	p := newPod(t, n, hostNetwork)
	a := newApp(t, n, p, command("sleep", "1000"))
	start(t, n, a)
	if out := sh(t, "losetup --list --noheadings --output BACK-FILE"); !strings.Contains(out, "flat.erofs") {
		t.Errorf("nothing is mounted from a loop device:\n%s", out)
	}
}
