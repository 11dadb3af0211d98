package stdio

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gantry/internal/pod"
)

// serverEnv makes the test binary be the server, as systemd would start it.
const serverEnv = "GANTRY_STDIO_TEST_SERVER"

func TestMain(m *testing.M) {
	if dir := os.Getenv(serverEnv); dir != "" {
		if err := serve(dir); err != nil {
			fmt.Fprintln(os.Stderr, "server:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func serve(dir string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	pid := strconv.Itoa(os.Getpid()) // its parent could not know it
	files, err := ListenFiles(pid, os.Getenv("LISTEN_FDS"), os.Getenv("LISTEN_FDNAMES"))
	if err != nil {
		return err
	}
	store, err := OpenStore(os.Getenv("NOTIFY_SOCKET"))
	if err != nil {
		return err
	}
	debug.SetGCPercent(40) // as the program does
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))
	s, err := New(Config{RunDir: filepath.Join(dir, "run"), Files: files, Store: store, Log: log, Patience: 300 * time.Millisecond})
	if err != nil {
		return err
	}
	return s.Run(ctx)
}

// supervisor does for a server what systemd does: it holds the listening socket
// and the descriptor store, and starts the server again whenever it dies.
type supervisor struct {
	t      testing.TB
	dir    string
	client Client
	notify int
	listen *os.File

	mu      sync.Mutex
	store   []stored // in the order of their arrival
	arrived func()   // called for what comes into the store, before the server goes on
	cmd     *exec.Cmd
	stopped bool
	starts  int
	done    chan struct{}
}

type stored struct {
	name string
	file *os.File
}

func supervise(t testing.TB) *supervisor {
	t.Helper()
	dir, err := os.MkdirTemp("", "stdio") // t.TempDir is too long for a socket's path
	if err != nil {
		t.Fatal(err)
	}
	s := &supervisor{t: t, dir: dir, done: make(chan struct{}), client: Client{Socket: filepath.Join(dir, "sock")}}
	if err := os.Mkdir(filepath.Join(dir, "run"), 0o700); err != nil {
		t.Fatal(err)
	}
	fd, err := Listen(s.client.Socket, unix.SOCK_SEQPACKET)
	if err != nil {
		t.Fatal(err)
	}
	s.listen = os.NewFile(uintptr(fd), "listen")
	s.notify, err = unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(s.notify, &unix.SockaddrUnix{Name: filepath.Join(dir, "notify")}); err != nil {
		t.Fatal(err)
	}
	ready := make(chan struct{})
	go s.run(ready)
	<-ready
	t.Cleanup(s.stop)
	return s
}

// run starts the server for as long as the test lasts.
func (s *supervisor) run(ready chan struct{}) {
	defer close(s.done)
	for {
		s.mu.Lock()
		if s.stopped {
			s.mu.Unlock()
			return
		}
		cmd, err := s.command()
		if err == nil {
			err = cmd.Start()
		}
		s.cmd = cmd
		s.starts++
		s.mu.Unlock()
		if err != nil {
			s.t.Error(err)
			return
		}
		if ready != nil {
			close(ready)
			ready = nil
		}
		exited := make(chan error)
		go func() { exited <- cmd.Wait() }()
		for open := true; open; {
			select {
			case err := <-exited:
				if ee := (*exec.ExitError)(nil); errors.As(err, &ee) && ee.ExitCode() > 0 {
					s.t.Errorf("server: %v", err)
				}
				open = false
			default:
				s.receive(5 * time.Millisecond)
			}
		}
		for s.receive(0) { // as systemd does: what it said last counts
		}
	}
}

func (s *supervisor) command() (*exec.Cmd, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(exe)
	cmd.Stderr = os.Stderr
	cmd.ExtraFiles = []*os.File{s.listen}
	names := []string{SocketName}
	for _, f := range s.store {
		cmd.ExtraFiles = append(cmd.ExtraFiles, f.file)
		names = append(names, f.name)
	}
	cmd.Env = append(os.Environ(), serverEnv+"="+s.dir, "NOTIFY_SOCKET="+filepath.Join(s.dir, "notify"),
		"LISTEN_FDS="+strconv.Itoa(len(names)), "LISTEN_FDNAMES="+strings.Join(names, ":"))
	return cmd, nil
}

// receive handles one message of the server.
func (s *supervisor) receive(wait time.Duration) bool {
	if n, _ := unix.Poll([]unix.PollFd{{Fd: int32(s.notify), Events: unix.POLLIN}}, int(wait.Milliseconds())); n <= 0 {
		return false
	}
	buf, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(64*4))
	n, oobn, _, _, err := unix.Recvmsg(s.notify, buf, oob, unix.MSG_CMSG_CLOEXEC|unix.MSG_DONTWAIT)
	if err != nil {
		return false
	}
	fds := parseRights(oob[:oobn])
	msg := map[string]string{}
	for _, l := range strings.Split(string(buf[:n]), "\n") {
		k, v, _ := strings.Cut(l, "=")
		msg[k] = v
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case msg["BARRIER"] == "1":
		closeAll(fds)
	case msg["FDSTORE"] == "1":
		if msg["FDPOLL"] != "0" || len(msg["FDNAME"]) > 8 || msg["FDNAME"] == "" {
			s.t.Errorf("bad message: %v", msg)
		}
		for _, fd := range fds {
			s.store = append(s.store, stored{msg["FDNAME"], os.NewFile(uintptr(fd), msg["FDNAME"])})
		}
		if s.arrived != nil {
			s.arrived()
		}
	case msg["FDSTOREREMOVE"] == "1":
		var kept []stored
		for _, f := range s.store {
			if f.name == msg["FDNAME"] {
				f.file.Close()
			} else {
				kept = append(kept, f)
			}
		}
		s.store = kept
	}
	return true
}

// kill is kill -9.
func (s *supervisor) kill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	_ = s.cmd.Process.Kill()
}

// arm has the server die at a failpoint after it was killed once.
func (s *supervisor) arm(point string, count int) {
	s.t.Helper()
	data := fmt.Sprintf("%s %d", point, count)
	if err := os.WriteFile(filepath.Join(s.dir, "run", failpointName), []byte(data), 0o600); err != nil {
		s.t.Fatal(err)
	}
	n := s.count()
	s.kill()
	for s.count() == n {
		time.Sleep(time.Millisecond)
	}
	s.status("") // the file is read by now
}

func (s *supervisor) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.starts
}

func (s *supervisor) storeSize() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.store)
}

func (s *supervisor) stop() {
	s.mu.Lock()
	s.stopped = true
	_ = s.cmd.Process.Kill()
	s.mu.Unlock()
	<-s.done
	if n := s.storeSize(); n != 0 {
		s.t.Errorf("%d descriptors are left in the store", n)
	}
	for _, f := range s.store {
		f.file.Close()
	}
	left, err := filepath.Glob(filepath.Join(s.dir, "run", "*"))
	if err != nil || len(left) != 1 || filepath.Base(left[0]) != recordsName {
		s.t.Errorf("left in the run directory: %v %v", left, err)
	}
	unix.Close(s.notify)
	s.listen.Close()
	if err := os.RemoveAll(s.dir); err != nil {
		s.t.Error(err)
	}
}

func (s *supervisor) status(app pod.ID) Status {
	s.t.Helper()
	st, err := s.client.Status(s.t.Context(), app)
	if err != nil {
		s.t.Fatal(err)
	}
	return st
}

// app is a pretended app: the test holds its ends.
type app struct {
	spec           Spec
	dir            string
	stdin          *os.File
	stdout, stderr *os.File
	console        string
}

// newApp writes the spec of an app.
func (s *supervisor) newApp(change func(*Spec)) *app {
	s.t.Helper()
	id := pod.NewID()
	a := &app{dir: filepath.Join(s.dir, string(id))}
	a.spec = Spec{
		App: id, AppName: "app", Pod: pod.NewID(), PodName: "pod", Namespace: "default",
		Unit: "gantry-app-" + string(id) + ".service", Log: filepath.Join(a.dir, "logs", "app", "0.log"),
	}
	if change != nil {
		change(&a.spec)
	}
	data, err := json.Marshal(a.spec)
	if err == nil {
		err = errors.Join(os.MkdirAll(a.dir, 0o700), os.WriteFile(filepath.Join(a.dir, SpecName), data, 0o600))
	}
	if err != nil {
		s.t.Fatal(err)
	}
	return a
}

// start does what gantry-init does, until it has an answer.
func (s *supervisor) start(a *app) {
	s.t.Helper()
	var err error
	for range 50 {
		if err = s.tryStart(a); err == nil {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	s.t.Fatal(err)
}

func (s *supervisor) tryStart(a *app) error {
	conn, err := dial(s.client.Socket)
	if err != nil {
		return err
	}
	defer conn.close()
	data, err := json.Marshal(request{Op: "start", Dir: a.dir})
	if err != nil {
		return err
	}
	if err := conn.send(data); err != nil {
		return err
	}
	buf := make([]byte, maxSpec)
	n, fds, err := conn.recv(buf)
	if err != nil {
		return err
	}
	var r reply
	if err := json.Unmarshal(buf[:n], &r); err != nil {
		return err
	}
	if r.err() != nil {
		return r.err()
	}
	a.console = r.Console
	if len(fds) == 3 {
		a.close()
		a.stdin, a.stdout, a.stderr = os.NewFile(uintptr(fds[0]), "in"), os.NewFile(uintptr(fds[1]), "out"), os.NewFile(uintptr(fds[2]), "err")
	}
	return nil
}

// written checks how much was written to an app's outputs.
func (s *supervisor) written(a *app, stdout, stderr int) {
	s.t.Helper()
	got, err := s.client.Written(s.t.Context(), a.spec.App)
	if want := [2]uint64{uint64(stdout), uint64(stderr)}; err != nil || got != want {
		s.t.Errorf("written %v, %v, want %v", got, err, want)
	}
}

func (a *app) close() {
	for _, f := range []*os.File{a.stdin, a.stdout, a.stderr} {
		if f != nil {
			f.Close()
		}
	}
}

func (s *supervisor) drain(a *app) {
	s.t.Helper()
	if err := s.client.Drain(s.t.Context(), a.spec.App, 20*time.Second); err != nil {
		s.t.Error(err)
	}
}

// content reads CRI log files as kubelet does: the bytes of each stream.
func content(t *testing.T, paths ...string) (streams [2]string) {
	t.Helper()
	var last string
	var text [2]strings.Builder
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if len(data) > 0 && data[len(data)-1] != '\n' {
			t.Errorf("%s: the last line is torn", path)
		}
		for i, l := range strings.SplitAfter(string(data), "\n") {
			if l == "" {
				continue
			}
			f := strings.SplitN(strings.TrimSuffix(l, "\n"), " ", 4)
			if len(f) != 4 || len(f[0]) != len(stampLayout) || len(f[3]) > maxLine {
				t.Fatalf("%s:%d: bad line %.80q", path, i+1, l)
			}
			if _, err := time.Parse(time.RFC3339Nano, f[0]); err != nil || f[0] < last {
				t.Fatalf("%s:%d: time %q after %q: %v", path, i+1, f[0], last, err)
			}
			last = f[0]
			id := stdout
			if f[1] == "stderr" {
				id = stderr
			}
			text[id].WriteString(f[3])
			if f[2] == "F" {
				text[id].WriteByte('\n')
			}
		}
	}
	return [2]string{text[0].String(), text[1].String()}
}
