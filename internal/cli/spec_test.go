package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
	"github.com/spf13/pflag"

	"gantry/internal/image"
	"gantry/internal/manifest"
	"gantry/internal/pod"
)

// TestSpec: each testdata/spec/*.txtar holds the words behind "gantry run", or a
// manifest, and what the engine is asked for.
func TestSpec(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/spec/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no golden files: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			t.Parallel()
			ar, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := txtar.File{Name: "spec.json", Data: specText(t, ar.Files[0])}
			if *update {
				ar.Files = append(ar.Files[:1], got)
				if err := os.WriteFile(file, txtar.Format(ar), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if len(ar.Files) != 2 {
				t.Fatalf("want two files in %s: run the test with -update", file)
			}
			if d := cmp.Diff(string(ar.Files[1].Data), string(got.Data)); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

func specText(t *testing.T, in txtar.File) []byte {
	t.Helper()
	var c createFlags
	f := pflag.NewFlagSet("run", pflag.ContinueOnError)
	f.SetInterspersed(false)
	c.add(f)
	args := strings.Split(strings.TrimSpace(string(in.Data)), "\n")
	if in.Name == "pod.yaml" {
		args = []string{"--file", "-"}
	}
	if err := f.Parse(args); err != nil {
		t.Fatal(err)
	}
	s, err := c.spec(&Env{Stdin: bytes.NewReader(in.Data)}, f, f.Args())
	if err != nil {
		t.Fatal(err)
	}
	data, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	var v any
	if err := json.Unmarshal(data, &v); err != nil {
		t.Fatal(err)
	}
	out, err := json.MarshalIndent(prune(v), "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return append(out, '\n')
}

// prune drops what is unset, to keep the golden files readable.
func prune(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			if v[k] = prune(e); v[k] == nil {
				delete(v, k)
			}
		}
		if len(v) == 0 {
			return nil
		}
	case []any:
		for i := range v {
			v[i] = prune(v[i])
		}
		if len(v) == 0 {
			return nil
		}
	case string:
		if v == "" || v == "0001-01-01T00:00:00Z" {
			return nil
		}
	case bool:
		if !v {
			return nil
		}
	case float64:
		if v == 0 {
			return nil
		}
	}
	return v
}

func TestPublish(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]pod.Port{
		"8080:80":           {Protocol: pod.TCP, HostPort: 8080, PodPort: 80},
		"53:53/udp":         {Protocol: pod.UDP, HostPort: 53, PodPort: 53},
		"1:2/SCTP":          {Protocol: pod.SCTP, HostPort: 1, PodPort: 2},
		"127.0.0.1:8080:80": {Protocol: pod.TCP, HostIP: "127.0.0.1", HostPort: 8080, PodPort: 80},
		"[::1]:8080:80/tcp": {Protocol: pod.TCP, HostIP: "::1", HostPort: 8080, PodPort: 80},
	} {
		got, err := parsePublish(in)
		if err != nil || got != want {
			t.Errorf("%s: got %+v, %v", in, got, err)
		}
	}
	for _, bad := range []string{"", "80", ":80", "80:", "0:80", "80:65536", "a:b", "80:80/icmp", "::1:80:80", "[::1:80:80", "[127.0.0.1]:1:2", "host:80:80", "1-2:3-4"} {
		if got, err := parsePublish(bad); err == nil {
			t.Errorf("%q: parsed as %+v", bad, got)
		}
	}
}

func TestVolume(t *testing.T) {
	t.Parallel()
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for in, want := range map[string]pod.Mount{
		"/a:/b":                      {HostPath: "/a", Path: "/b"},
		"./a:/b:ro":                  {HostPath: here + "/a", Path: "/b", ReadOnly: true},
		"..:/b:rro,noexec":           {HostPath: filepath.Dir(here), Path: "/b", ReadOnly: true, RecursiveReadOnly: true, Options: []string{"noexec"}},
		"/a:/b:rw,rslave":            {HostPath: "/a", Path: "/b", Propagation: pod.PropagationSlave},
		"/with space:/and/more here": {HostPath: "/with space", Path: "/and/more here"},
	} {
		got, err := parseVolume(in)
		if err != nil {
			t.Errorf("%s: %v", in, err)
		} else if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s: %s", in, d)
		}
	}
	for _, bad := range []string{"", "/a", ":/b", "/a:", "data:/b", "/a:b", "/a:/b:ro:x", "/a:/b:no", "/a:/b:"} {
		if got, err := parseVolume(bad); err == nil {
			t.Errorf("%q: parsed as %+v", bad, got)
		}
	}
}

func TestDevice(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]pod.Device{
		"/dev/fuse":        {Source: "/dev/fuse", Path: "/dev/fuse", Permissions: "rwm"},
		"/dev/a:/dev/b":    {Source: "/dev/a", Path: "/dev/b", Permissions: "rwm"},
		"/dev/a:/dev/b:rw": {Source: "/dev/a", Path: "/dev/b", Permissions: "rw"},
	} {
		if got, err := parseDevice(in); err != nil || got != want {
			t.Errorf("%s: got %+v, %v", in, got, err)
		}
	}
	for _, bad := range []string{"", "fuse", "/dev/a:b", "/dev/a:/dev/b:x", "/dev/a:/dev/b:", "/a:/b:r:w"} {
		if _, err := parseDevice(bad); err == nil {
			t.Errorf("%q: parsed", bad)
		}
	}
}

func TestEnvFile(t *testing.T) {
	t.Setenv("GANTRY_TEST_PASSED", "on")
	got, err := parseEnvFile("# comment\n\nA=1\r\n  B= two # kept \nGANTRY_TEST_PASSED\nGANTRY_TEST_UNSET\nC=\n")
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"A=1", "B= two # kept ", "GANTRY_TEST_PASSED=on", "C="}, got); d != "" {
		t.Error(d)
	}
	if _, err := parseEnvFile("A=1\n=2\n"); err == nil || !strings.Contains(err.Error(), "line 2") {
		t.Errorf("got %v", err)
	}
}

func TestWords(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"busybox": "busybox", "registry.example.org:5000/team/Web_app:1.2": "web-app", "a/b@sha256:00": "b", "x/---": "app",
		"i/" + strings.Repeat("y", 80): strings.Repeat("y", 40),
	} {
		if got := imageWord(in); got != want || !manifest.IsLabel(got) {
			t.Errorf("imageWord(%q) = %q, want %q", in, got, want)
		}
	}
	if got := hostnameOf(strings.Repeat("a", 62) + ".b.c"); got != strings.Repeat("a", 62) {
		t.Errorf("hostname %q", got)
	}
}

func TestDNS(t *testing.T) {
	t.Parallel()
	host := resolvConf(strings.NewReader("# x\nnameserver 10.0.0.1\nnameserver fd00::1\nsearch a.example b.example\noptions ndots:2 edns0\ndomain x\nnameserver\n"))
	want := &pod.DNS{Servers: []string{"10.0.0.1", "fd00::1"}, Searches: []string{"a.example", "b.example"}, Options: []string{"ndots:2", "edns0"}}
	if d := cmp.Diff(want, host); d != "" {
		t.Error(d)
	}
	got := mergeDNS(&pod.DNS{Servers: []string{"1.1.1.1"}}, host)
	if d := cmp.Diff(&pod.DNS{Servers: []string{"1.1.1.1"}, Searches: want.Searches, Options: want.Options}, got); d != "" {
		t.Error(d)
	}
	if !allLoopback([]string{"127.0.0.53", "::1"}) || allLoopback([]string{"127.0.0.53", "10.0.0.1"}) {
		t.Error("loopback")
	}
}

func TestFreeUsers(t *testing.T) {
	t.Parallel()
	last := func(int) int { return userRanges - 1 }
	first, err := freeUsers(nil, last)
	if err != nil || first.UIDs[0] != (pod.IDMap{Host: firstUser + (userRanges-1)*usersPerPod, Length: usersPerPod}) {
		t.Fatalf("got %+v, %v", first, err)
	}
	taken := []pod.PodStatus{{Pod: &pod.Pod{Namespaces: pod.Namespaces{User: first}}}}
	next, err := freeUsers(taken, last)
	if err != nil || next.UIDs[0].Host != firstUser {
		t.Errorf("got %+v, %v", next, err)
	}
	for i := range userRanges {
		m := []pod.IDMap{{Host: uint32(firstUser + i*usersPerPod)}}
		taken = append(taken, pod.PodStatus{Pod: &pod.Pod{Namespaces: pod.Namespaces{User: &pod.UserNS{UIDs: m}}}})
	}
	if _, err := freeUsers(taken, last); !errors.Is(err, pod.ErrUnavailable) {
		t.Errorf("got %v", err)
	}
}

func TestPorts(t *testing.T) {
	t.Parallel()
	web := pod.PodStatus{Pod: &pod.Pod{Name: "web", Ports: []pod.Port{{Protocol: pod.TCP, PodPort: 1, HostPort: 80, HostIP: "10.0.0.1"}}}, Ready: true}
	gone := pod.PodStatus{Pod: &pod.Pod{Name: "gone", Ports: []pod.Port{{Protocol: pod.TCP, PodPort: 1, HostPort: 81}}}}
	pods := []pod.PodStatus{web, gone}
	for _, c := range []struct {
		name  string
		ports []pod.Port
		want  error
	}{
		{"free", []pod.Port{{Protocol: pod.TCP, PodPort: 1, HostPort: 82}, {Protocol: pod.UDP, PodPort: 1, HostPort: 82}, {Protocol: pod.UDP, PodPort: 1, HostPort: 80}}, nil},
		{"of a stopped pod", []pod.Port{{Protocol: pod.TCP, PodPort: 1, HostPort: 81}}, nil},
		{"another address", []pod.Port{{Protocol: pod.TCP, PodPort: 1, HostPort: 80, HostIP: "10.0.0.2"}}, nil},
		{"any address", []pod.Port{{Protocol: pod.TCP, PodPort: 1, HostPort: 80}}, pod.ErrExists},
		{"twice", []pod.Port{{Protocol: pod.TCP, PodPort: 1, HostPort: 82}, {Protocol: pod.TCP, PodPort: 1, HostPort: 82, HostIP: "10.0.0.2"}}, pod.ErrInvalid},
		{"none", []pod.Port{{Protocol: pod.TCP}, {Protocol: pod.TCP}}, nil},
	} {
		if err := checkPorts(pods, c.ports); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v", c.name, err)
		}
	}
}

// What may run is not removed without --force.
func TestRemoveUnknown(t *testing.T) {
	t.Parallel()
	for _, phase := range []pod.Phase{pod.Running, pod.Unknown} {
		p := pod.PodStatus{Pod: &pod.Pod{Name: "web", Owner: pod.OwnerCLI}, Apps: []pod.AppStatus{{Phase: phase}}}
		if err := (&rmOptions{}).remove(t.Context(), &Backend{Engine: removed{t: t}}, p); !errors.Is(err, pod.ErrState) {
			t.Errorf("%s: %v", phase, err)
		}
	}
}

// removed is an engine that must not be asked to remove anything.
type removed struct {
	Engine
	t *testing.T
}

func (r removed) RemovePod(context.Context, pod.ID) error {
	r.t.Error("the pod was removed")
	return nil
}

func TestPullPolicyOfManifest(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]image.PullPolicy{
		"busybox": image.Always, "busybox:latest": image.Always, "busybox:1": image.IfMissing, "r:5000/busybox": image.Always,
		"r:5000/busybox:1": image.IfMissing, "busybox@sha256:00": image.IfMissing,
	} {
		if got := pullFromManifest(&manifest.Container{Image: in}); got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
	if got := pullFromManifest(&manifest.Container{Image: "x", ImagePullPolicy: "Never"}); got != image.Never {
		t.Error(got)
	}
}

func TestExitCode(t *testing.T) {
	t.Parallel()
	for want, exit := range map[int]*pod.Exit{
		0:                   {Code: 0, Reason: pod.ReasonCompleted},
		3:                   {Code: 3, Reason: pod.ReasonError},
		137:                 {Code: 137, Signal: 9, Reason: pod.ReasonOOMKilled},
		exitNotFound:        {Code: 128, Reason: pod.ReasonStartError, Message: "executable file `x` not found in $PATH: No such file or directory"},
		exitCannotRun:       {Code: 128, Reason: pod.ReasonCannotRun, Message: "the path `/x` exists but it is not executable"},
		exitError:           {Code: 128, Reason: pod.ReasonStartError, Message: "mount overlay: no such file or directory"},
		pod.ExitCodeUnknown: {Code: pod.ExitCodeUnknown, Reason: pod.ReasonUnknown},
	} {
		if got := exitCode(pod.AppStatus{Exit: exit}); got != want {
			t.Errorf("%+v: %d, want %d", exit, got, want)
		}
	}
}
