package engine

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"log"
	"log/slog"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"gantry/internal/disk"
	"gantry/internal/image"
	"gantry/internal/isolator"
	"gantry/internal/isolator/oci"
	"gantry/internal/network"
	"gantry/internal/pod"
	"gantry/internal/stdio"
	"gantry/internal/systemd/systemdtest"
	"gantry/internal/unit"
)

// TestOperationsAreListed reads the package: whatever makes an operation is in the
// list that FailpointNames is made of, so that no boundary is left untested.
func TestOperationsAreListed(t *testing.T) {
	t.Parallel()
	var makers, listed []string
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range files {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range f.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok {
				continue
			}
			switch {
			case fn.Name.Name == "operations":
				listed = calledIn(fn)
			case returnsOperation(fn):
				makers = append(makers, fn.Name.Name)
			case makesOperation(fn):
				t.Errorf("%s makes an operation and does not return it: operations cannot list it", fn.Name.Name)
			}
		}
	}
	slices.Sort(makers)
	slices.Sort(listed)
	if !slices.Equal(makers, listed) || len(makers) == 0 {
		t.Errorf("functions that make operations are %v, operations lists %v", makers, listed)
	}
}

func returnsOperation(fn *ast.FuncDecl) bool {
	if fn.Type.Results == nil || len(fn.Type.Results.List) != 1 {
		return false
	}
	id, ok := fn.Type.Results.List[0].Type.(*ast.Ident)
	return ok && id.Name == "operation"
}

func makesOperation(fn *ast.FuncDecl) (found bool) {
	ast.Inspect(fn, func(n ast.Node) bool {
		if lit, ok := n.(*ast.CompositeLit); ok {
			id, ok := lit.Type.(*ast.Ident)
			found = found || ok && id.Name == "operation"
		}
		return true
	})
	return found
}

func calledIn(fn *ast.FuncDecl) (names []string) {
	ast.Inspect(fn.Body, func(n ast.Node) bool {
		if call, ok := n.(*ast.CallExpr); ok {
			if s, ok := call.Fun.(*ast.SelectorExpr); ok {
				names = append(names, s.Sel.Name)
			}
		}
		return true
	})
	return names
}

// bench is an engine on a fake PID 1, with pods in the host's network: those need
// no privilege.
type bench struct {
	*Engine
	t     *testing.T
	dir   string
	pid1  *systemdtest.Fake
	image string

	mu     sync.Mutex
	passed []string // boundaries
	// stepped, if set, is called after each step, by whoever runs it.
	stepped func(step string)
}

func newBench(t *testing.T, live bool, fail Failpoints) *bench {
	t.Helper()
	b := &bench{t: t, dir: t.TempDir()}
	b.pid1 = systemdtest.New(b.program)
	t.Cleanup(func() { b.pid1.Close() })
	images := b.store()
	pods, err := network.New(network.Config{ConfDir: b.dir, BinDirs: []string{b.dir}, CacheDir: b.dir + "/cni", Timeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	iso, err := oci.New(oci.Config{Runtime: []string{"/bin/false", "--root=" + b.dir + "/crun"}})
	if err != nil {
		t.Fatal(err)
	}
	b.Engine, err = New(t.Context(), Config{
		Root: b.dir + "/root", Run: b.dir + "/run", Cgroups: b.dir + "/cgroup", Init: "/gantry-init",
		Log: slog.New(b), Systemd: b.pid1, Images: images, Network: pods,
		Isolators: []isolator.Isolator{iso}, Isolator: "oci", Failpoints: fail, Stdio: agreeing(t),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	if live {
		if err := b.Watch(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

// agreeing is a gantry-stdio that has done whatever it is asked for.
func agreeing(t *testing.T) stdio.Client {
	t.Helper()
	dir, err := os.MkdirTemp("", "stdio") // names of sockets are short
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Net: "unixpacket", Name: dir + "/sock"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		l.Close()
		os.RemoveAll(dir)
	})
	go func() {
		for {
			conn, err := l.AcceptUnix()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				for buf := make([]byte, 1<<16); ; {
					if n, err := conn.Read(buf); err != nil || n == 0 {
						return
					}
					if _, err := conn.Write([]byte("{}")); err != nil {
						return
					}
				}
			}()
		}
	}()
	return stdio.Client{Socket: dir + "/sock"}
}

// The engine tells each step at the debug level; bench notes which there were.

func (b *bench) Enabled(context.Context, slog.Level) bool { return true }
func (b *bench) WithAttrs([]slog.Attr) slog.Handler       { return b }
func (b *bench) WithGroup(string) slog.Handler            { return b }

func (b *bench) Handle(_ context.Context, r slog.Record) error {
	var op, step string
	r.Attrs(func(a slog.Attr) bool {
		switch a.Key {
		case "op":
			op = a.Value.String()
		case "step":
			step = a.Value.String()
		}
		return true
	})
	if r.Message != "step" {
		return nil
	}
	b.mu.Lock()
	b.passed = append(b.passed, op+"/"+step)
	stepped := b.stepped
	b.mu.Unlock()
	if stepped != nil {
		stepped(op + "/" + step)
	}
	return nil
}

// store has one image, of one small file.
func (b *bench) store() *image.Store {
	b.t.Helper()
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	b.t.Cleanup(server.Close)
	host := strings.TrimPrefix(server.URL, "http://")
	ref, err := name.ParseReference(host+"/app:1", name.Insecure)
	if err != nil {
		b.t.Fatal(err)
	}
	if err := remote.Write(ref, smallImage(b.t)); err != nil {
		b.t.Fatal(err)
	}
	for name, text := range map[string]string{
		"registries.conf": fmt.Sprintf("[[registry]]\nlocation = %q\ninsecure = true\n", host),
		"policy.json":     `{"default":[{"type":"insecureAcceptAnything"}]}`,
		"auth.json":       `{}`,
	} {
		if err := os.WriteFile(filepath.Join(b.dir, name), []byte(text), 0o644); err != nil {
			b.t.Fatal(err)
		}
	}
	if err := os.Mkdir(b.dir+"/registries.conf.d", 0o755); err != nil {
		b.t.Fatal(err)
	}
	s, err := image.Open(b.t.Context(), image.Config{
		Root: b.dir + "/root", Run: b.dir + "/run", Mount: image.MountFile,
		RegistriesConf: b.dir + "/registries.conf", RegistriesConfDir: b.dir + "/registries.conf.d",
		PolicyFile: b.dir + "/policy.json", AuthFile: b.dir + "/auth.json",
	})
	if err != nil {
		b.t.Fatal(err)
	}
	img, err := s.Pull(b.t.Context(), ref.String(), image.PullOptions{})
	if err != nil {
		b.t.Fatal(err)
	}
	b.image = img.ID
	return s
}

func smallImage(t *testing.T) v1.Image {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: "app", Mode: 0o755, Size: 3}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("app")); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	img, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		t.Fatal(err)
	}
	cf, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	cf = cf.DeepCopy()
	cf.OS, cf.Architecture = "linux", "amd64"
	if img, err = mutate.ConfigFile(img, cf); err != nil {
		t.Fatal(err)
	}
	return img
}

// program plays gantry-init: it leaves the records that the real one leaves.
func (b *bench) program(ctx context.Context, p systemdtest.Process) systemdtest.Exit {
	if len(p.Args) != 3 {
		return systemdtest.Exit{}
	}
	dir := p.Args[2]
	switch p.Args[1] {
	case "start":
		slice, _ := p.Unit.Get("Slice").(unit.String)
		group := filepath.Join(b.dir, "cgroup", unit.CgroupOf(string(slice)), p.Unit.Name)
		if err := os.MkdirAll(group, 0o755); err != nil {
			b.t.Error(err)
		}
		b.put(filepath.Join(dir, "run.json"), pod.Run{BootID: b.bootID, Unit: p.Unit.Name, InvocationID: p.InvocationID, PID: p.PID, Started: time.Now()})
		p.Ready()
		return untilKilled(ctx, p, group)
	case "exited":
		b.put(filepath.Join(dir, "exit.json"), pod.Exit{Code: 137, Signal: 9, Reason: pod.ReasonError, BootID: b.bootID, Finished: time.Now()})
		spool := filepath.Join(b.dir, "run", "exits", filepath.Base(dir))
		b.put(spool, dir)
	}
	return systemdtest.Exit{}
}

// untilKilled is an app that runs until it is told to end, or its cgroup is killed.
func untilKilled(ctx context.Context, p systemdtest.Process, group string) systemdtest.Exit {
	look := time.NewTicker(time.Millisecond)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return systemdtest.Exit{Signal: 9}
		case s := <-p.Signals:
			return systemdtest.Exit{Signal: s}
		case <-look.C:
		}
		if _, err := os.Lstat(filepath.Join(group, "cgroup.kill")); err == nil {
			return systemdtest.Exit{Signal: 9}
		}
	}
}

// put writes a record in one piece, as the real ones are.
func (b *bench) put(path string, v any) {
	data, err := json.Marshal(v)
	if err == nil {
		err = disk.WriteFile(path, data, 0o644)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		b.t.Error(err)
	}
}

// left lists all that a pod leaves, but the image.
func (b *bench) left() []string {
	b.t.Helper()
	var out []string
	for _, dir := range []string{"root/pods", "root/prepare", "root/garbage", "run/pods", "run/exits", "crun"} {
		entries, err := os.ReadDir(filepath.Join(b.dir, dir))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			b.t.Fatal(err)
		}
		for _, e := range entries {
			out = append(out, dir+"/"+e.Name())
		}
	}
	units, err := b.pid1.Units(b.t.Context(), "gantry-*")
	if err != nil {
		b.t.Fatal(err)
	}
	for _, u := range units {
		if u.Name != "gantry.slice" {
			out = append(out, u.Name)
		}
	}
	return out
}
