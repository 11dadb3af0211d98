package cri

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/cri/critest"
	"gantry/internal/pod"
)

const imageA = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

func refused(t *testing.T, err error, field string) {
	t.Helper()
	if !errors.Is(err, pod.ErrInvalid) || !strings.HasPrefix(err.Error(), field+":") {
		t.Errorf("got %v, want %s refused", err, field)
	}
}

func TestMountsThereAndBack(t *testing.T) {
	t.Parallel()
	in := []*runtimeapi.Mount{
		{ContainerPath: "/data", HostPath: "/mnt/data"},
		{ContainerPath: "//odd/./path", HostPath: "/mnt/x", Readonly: true, RecursiveReadOnly: true, SelinuxRelabel: true},
		{ContainerPath: "/s", HostPath: "/s", Propagation: runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER, MountOptions: []string{"noexec", "nosuid", "nodev"}},
		{ContainerPath: "/b", HostPath: "/b", Propagation: runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL},
		{
			ContainerPath: "/m", HostPath: "/m", UidMappings: []*runtimeapi.IDMapping{{HostId: 5, Length: 6}},
			GidMappings: []*runtimeapi.IDMapping{{HostId: 7, ContainerId: 1, Length: 8}},
		},
		{ContainerPath: "/i", Readonly: true, Image: &runtimeapi.ImageSpec{Image: imageA, UserSpecifiedImage: "data:1"}, ImageSubPath: "a/b"},
	}
	mounts, err := Mounts("f", in)
	if err != nil {
		t.Fatal(err)
	}
	got := FromMounts(mounts)
	for i := range in {
		if !proto.Equal(got[i], in[i]) {
			t.Errorf("%d: got %v, want %v", i, got[i], in[i])
		}
	}
	if diff := cmp.Diff(pod.Mount{
		Path: "/i", ReadOnly: true, Propagation: pod.PropagationPrivate, Image: &pod.Image{ID: imageA, Name: "data:1"}, ImageSubPath: "a/b",
	}, mounts[5]); diff != "" {
		t.Errorf("image (-want +got)\n%s", diff)
	}
}

func TestMountsRefuse(t *testing.T) {
	t.Parallel()
	img := &runtimeapi.ImageSpec{Image: "data:1"}
	for want, m := range map[string]*runtimeapi.Mount{
		"f[0].container_path":       {ContainerPath: "data", HostPath: "/a"},
		"f[0].container_path ":      {ContainerPath: "/a/../..", HostPath: "/a"},
		"f[0].container_path  ":     {ContainerPath: "//.", HostPath: "/a"},
		"f[0].host_path":            {ContainerPath: "/a"},
		"f[0].host_path ":           {ContainerPath: "/a", HostPath: "b"},
		"f[0].host_path  ":          {ContainerPath: "/a", HostPath: "/b", Readonly: true, Image: img},
		"f[0].readonly":             {ContainerPath: "/a", Image: img},
		"f[0].image.image":          {ContainerPath: "/a", Readonly: true, Image: &runtimeapi.ImageSpec{}},
		"f[0].image_sub_path":       {ContainerPath: "/a", HostPath: "/b", ImageSubPath: "c"},
		"f[0].image_sub_path ":      {ContainerPath: "/a", Readonly: true, Image: img, ImageSubPath: "a/../../b"},
		"f[0].image_sub_path  ":     {ContainerPath: "/a", Readonly: true, Image: img, ImageSubPath: "/b"},
		"f[0].propagation":          {ContainerPath: "/a", Readonly: true, Image: img, Propagation: 1},
		"f[0].recursive_read_only":  {ContainerPath: "/a", HostPath: "/b", RecursiveReadOnly: true},
		"f[0].recursive_read_only ": {ContainerPath: "/a", HostPath: "/b", RecursiveReadOnly: true, Readonly: true, Propagation: 1},
		"f[0].mount_options[1]":     {ContainerPath: "/a", HostPath: "/b", MountOptions: []string{"nodev", "suid"}},
		"f[0].uidMappings":          {ContainerPath: "/a", HostPath: "/b", UidMappings: []*runtimeapi.IDMapping{{Length: 1}}},
		"f[0].gidMappings":          {ContainerPath: "/a", HostPath: "/b", GidMappings: []*runtimeapi.IDMapping{{}}},
	} {
		_, err := Mounts("f", []*runtimeapi.Mount{m})
		refused(t, err, strings.TrimSpace(want))
	}
	_, err := Mounts("f", []*runtimeapi.Mount{nil})
	refused(t, err, "f[0].container_path")
}

func TestImageOf(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		in   *runtimeapi.ImageSpec
		want pod.Image
	}{
		{&runtimeapi.ImageSpec{Image: imageA, UserSpecifiedImage: "nginx"}, pod.Image{ID: imageA, Name: "nginx"}},
		{&runtimeapi.ImageSpec{Image: imageA}, pod.Image{ID: imageA, Name: imageA}},
		{&runtimeapi.ImageSpec{Image: "nginx:1"}, pod.Image{Name: "nginx:1"}},
		{&runtimeapi.ImageSpec{Image: "nginx:1", UserSpecifiedImage: "nginx"}, pod.Image{Name: "nginx:1"}},
	} {
		if got := *ImageOf(c.in); got != c.want {
			t.Errorf("%v: got %+v, want %+v", c.in, got, c.want)
		}
	}
}

func TestLogPath(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ dir, file, want string }{
		{"/var/log/pods/a", "web/0.log", "/var/log/pods/a/web/0.log"},
		{"/var/log/pods/a", "", ""},
		{"", "", ""},
		{"/a", "/b.log", "refused"},
		{"/a", "../b.log", "refused"},
		{"/a", "b/", "refused"},
		{"/a", ".", "refused"},
		{"", "b.log", "refused"},
	} {
		got, err := LogPath("f", c.dir, c.file)
		if c.want == "refused" {
			refused(t, err, "f")
		} else if got != c.want || err != nil {
			t.Errorf("%q, %q: got %q, %v", c.dir, c.file, got, err)
		}
	}
}

func TestDevicesAndEnv(t *testing.T) {
	t.Parallel()
	for want, d := range map[string]*runtimeapi.Device{
		"f[0].host_path":      {ContainerPath: "/dev/a", Permissions: "r"},
		"f[0].container_path": {HostPath: "/dev/a", ContainerPath: "a", Permissions: "r"},
		"f[0].permissions":    {HostPath: "/dev/a", ContainerPath: "/dev/a", Permissions: "rx"},
		"f[0].permissions ":   {HostPath: "/dev/a", ContainerPath: "/dev/a"},
	} {
		_, err := Devices("f", []*runtimeapi.Device{d})
		refused(t, err, strings.TrimSpace(want))
	}
	got, err := Env("f", []*runtimeapi.KeyValue{{Key: "A", Value: []byte("=b\xff")}, {Key: "A"}})
	if diff := cmp.Diff([]string{"A==b\xff", "A="}, got); err != nil || diff != "" {
		t.Errorf("%v\n%s", err, diff)
	}
	for _, kv := range []*runtimeapi.KeyValue{nil, {Value: []byte("x")}, {Key: "A=B"}} {
		_, err := Env("f", []*runtimeapi.KeyValue{kv})
		refused(t, err, "f[0].key")
	}
}

func TestSecurity(t *testing.T) {
	t.Parallel()
	got, err := Security("f", critest.Container().Linux.SecurityContext)
	if err != nil {
		t.Fatal(err)
	}
	want := pod.Security{
		AddCaps: []string{"NET_ADMIN"}, DropCaps: []string{"ALL"}, AmbientCaps: []string{"NET_BIND_SERVICE"},
		Seccomp:     pod.Profile{Kind: pod.ProfileLocalhost, Localhost: "/var/lib/kubelet/seccomp/a.json"},
		AppArmor:    pod.Profile{Kind: pod.ProfileLocalhost, Localhost: "my-profile"},
		SELinux:     &pod.SELinux{User: "system_u", Role: "system_r", Type: "container_t", Level: "s0:c1,c2"},
		MaskedPaths: []string{"/proc/kcore"}, ReadOnlyPaths: []string{"/proc/sys"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	unmasked, err := Security("f", &runtimeapi.LinuxContainerSecurityContext{})
	if err != nil || unmasked.MaskedPaths == nil || len(unmasked.MaskedPaths) != 0 || unmasked.ReadOnlyPaths == nil {
		t.Errorf("an empty list must stay an empty list: %+v, %v", unmasked, err)
	}
	defaults, err := Security("f", nil)
	if err != nil || defaults.MaskedPaths != nil || defaults.Seccomp.Kind != pod.ProfileUnconfined || defaults.AppArmor.Kind != pod.ProfileRuntimeDefault {
		t.Errorf("without a context: %+v, %v", defaults, err)
	}
	free, err := Security("f", &runtimeapi.LinuxContainerSecurityContext{
		Privileged: true, Seccomp: &runtimeapi.SecurityProfile{}, Apparmor: &runtimeapi.SecurityProfile{},
	})
	if err != nil || free.Seccomp.Kind != pod.ProfileUnconfined || free.AppArmor.Kind != pod.ProfileUnconfined {
		t.Errorf("privileged: %+v, %v", free, err)
	}
}

func TestProfiles(t *testing.T) {
	t.Parallel()
	local := func(ref string) *runtimeapi.SecurityProfile {
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: ref}
	}
	for _, c := range []struct {
		now  *runtimeapi.SecurityProfile
		old  string
		want pod.Profile
		err  string
	}{
		{nil, "", pod.Profile{Kind: pod.ProfileUnconfined}, ""},
		{nil, "runtime/default", pod.Profile{Kind: pod.ProfileRuntimeDefault}, ""},
		{nil, "docker/default", pod.Profile{Kind: pod.ProfileRuntimeDefault}, ""},
		{nil, "localhost//a", pod.Profile{Kind: pod.ProfileLocalhost, Localhost: "/a"}, ""},
		{&runtimeapi.SecurityProfile{}, "", pod.Profile{Kind: pod.ProfileRuntimeDefault}, ""},
		{&runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}, "unconfined", pod.Profile{Kind: pod.ProfileUnconfined}, ""},
		{local("/a"), "localhost//a", pod.Profile{Kind: pod.ProfileLocalhost, Localhost: "/a"}, ""},
		{local("/a"), "unconfined", pod.Profile{}, "f.seccomp_profile_path"},
		{local("a"), "", pod.Profile{}, "f.seccomp.localhost_ref"},
		{local("/../a"), "", pod.Profile{}, "f.seccomp.localhost_ref"},
		{local(""), "", pod.Profile{}, "f.seccomp.localhost_ref"},
		{&runtimeapi.SecurityProfile{LocalhostRef: "/a"}, "", pod.Profile{}, "f.seccomp.localhost_ref"},
		{nil, "localhost/", pod.Profile{}, "f.seccomp_profile_path"},
		{nil, "whatever", pod.Profile{}, "f.seccomp_profile_path"},
	} {
		got, err := seccomp("f", c.now, c.old)
		if c.err != "" {
			refused(t, err, c.err)
		} else if got != c.want || err != nil {
			t.Errorf("%v, %q: got %v, %v", c.now, c.old, got, err)
		}
	}
}

func TestRunAs(t *testing.T) {
	t.Parallel()
	n := func(v int64) *runtimeapi.Int64Value { return &runtimeapi.Int64Value{Value: v} }
	for _, c := range []struct {
		in   *runtimeapi.LinuxContainerSecurityContext
		want Identity
		err  string
	}{
		{nil, Identity{}, ""},
		{&runtimeapi.LinuxContainerSecurityContext{RunAsUser: n(0), RunAsGroup: n(0)}, Identity{User: "0", Group: "0"}, ""},
		{&runtimeapi.LinuxContainerSecurityContext{RunAsUsername: "www", RunAsGroup: n(5)}, Identity{User: "www", Group: "5"}, ""},
		{&runtimeapi.LinuxContainerSecurityContext{SupplementalGroups: []int64{7, 8}, SupplementalGroupsPolicy: 1}, Identity{Groups: []uint32{7, 8}, GroupsStrict: true}, ""},
		{&runtimeapi.LinuxContainerSecurityContext{RunAsUser: n(1), RunAsUsername: "a"}, Identity{}, "f.run_as_username"},
		{&runtimeapi.LinuxContainerSecurityContext{RunAsUsername: "a:b"}, Identity{}, "f.run_as_username"},
		{&runtimeapi.LinuxContainerSecurityContext{RunAsGroup: n(1)}, Identity{}, "f.run_as_group"},
		{&runtimeapi.LinuxContainerSecurityContext{RunAsUser: n(-1)}, Identity{}, "f.run_as_user"},
		{&runtimeapi.LinuxContainerSecurityContext{RunAsUser: n(1<<32 - 1)}, Identity{}, "f.run_as_user"},
		{&runtimeapi.LinuxContainerSecurityContext{RunAsUser: n(1), RunAsGroup: n(1 << 40)}, Identity{}, "f.run_as_group"},
		{&runtimeapi.LinuxContainerSecurityContext{SupplementalGroups: []int64{7, -8}}, Identity{}, "f.supplemental_groups[1]"},
	} {
		got, err := RunAs("f", c.in)
		if c.err != "" {
			refused(t, err, c.err)
		} else if diff := cmp.Diff(c.want, got); diff != "" || err != nil {
			t.Errorf("%v: %v\n%s", c.in, err, diff)
		}
	}
}

func TestCapabilityNames(t *testing.T) {
	t.Parallel()
	got, err := capabilities("f", []string{"NET_ADMIN", "CAP_SYS_ADMIN", "all", "bpf"})
	if diff := cmp.Diff([]string{"NET_ADMIN", "SYS_ADMIN", "ALL", "BPF"}, got); diff != "" || err != nil {
		t.Errorf("%v\n%s", err, diff)
	}
	for _, bad := range []string{"", "CAP_", "A B", "1", "Ü"} {
		_, err := capabilities("f", []string{"CHOWN", bad})
		refused(t, err, "f[1]")
	}
}

func TestResourcesThereAndBack(t *testing.T) {
	t.Parallel()
	in := critest.Resources()
	r, err := Resources("f", in)
	if err != nil {
		t.Fatal(err)
	}
	if got := FromResources(r); !proto.Equal(got, in) {
		t.Errorf("got %v, want %v", got, in)
	}
}

func TestResourcesRefuse(t *testing.T) {
	t.Parallel()
	for want, r := range map[string]*runtimeapi.LinuxContainerResources{
		"f.cpu_period":                    {CpuPeriod: 999},
		"f.cpu_quota":                     {CpuQuota: 5},
		"f.cpu_shares":                    {CpuShares: -2},
		"f.memory_limit_in_bytes":         {MemoryLimitInBytes: -5},
		"f.memory_swap_limit_in_bytes":    {MemorySwapLimitInBytes: 1, MemoryLimitInBytes: 2},
		"f.oom_score_adj":                 {OomScoreAdj: 1001},
		"f.cpuset_cpus":                   {CpusetCpus: "0-"},
		"f.cpuset_mems":                   {CpusetMems: "all"},
		"f.hugepage_limits[0].page_size":  {HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2M"}}},
		"f.hugepage_limits[0].page_size ": {HugepageLimits: []*runtimeapi.HugepageLimit{nil}},
		"f.unified":                       {Unified: map[string]string{"../memory.max": "1"}},
		"f.unified ":                      {Unified: map[string]string{"cgroup.procs": "1"}},
		"f.unified  ":                     {Unified: map[string]string{"memory": "1"}},
	} {
		_, err := Resources("f", r)
		refused(t, err, strings.TrimSpace(want))
	}
	got, err := Resources("f", &runtimeapi.LinuxContainerResources{CpuQuota: -1, MemoryLimitInBytes: -1, MemorySwapLimitInBytes: -1})
	if err != nil || got.CPUQuota != -1 || got.Memory != -1 || got.MemorySwap != -1 {
		t.Errorf("no limit: %+v, %v", got, err)
	}
}

func TestStopSignals(t *testing.T) {
	t.Parallel()
	alias := map[runtimeapi.Signal]runtimeapi.Signal{
		runtimeapi.Signal_SIGNAL_SIGCLD: runtimeapi.Signal_SIGNAL_SIGCHLD, runtimeapi.Signal_SIGNAL_SIGIOT: runtimeapi.Signal_SIGNAL_SIGABRT,
		runtimeapi.Signal_SIGNAL_SIGPOLL: runtimeapi.Signal_SIGNAL_SIGIO,
	}
	seen := map[int]bool{}
	for n, name := range runtimeapi.Signal_name {
		s := runtimeapi.Signal(n)
		got, err := StopSignal("f", s)
		if err != nil || got < 0 || got > 64 || got == 0 && n != 0 {
			t.Errorf("%s: %d, %v", name, got, err)
		}
		want := s
		if a, ok := alias[s]; ok {
			want = a
		} else {
			if seen[got] {
				t.Errorf("%s: %d again", name, got)
			}
			seen[got] = true
		}
		if back := FromStopSignal(got); back != want {
			t.Errorf("%s: %d is %s on the way back", name, got, back)
		}
	}
	for s, want := range map[runtimeapi.Signal]int{
		runtimeapi.Signal_SIGNAL_SIGTERM: 15, runtimeapi.Signal_SIGNAL_SIGQUIT: 3, runtimeapi.Signal_SIGNAL_SIGRTMIN: 34,
		runtimeapi.Signal_SIGNAL_SIGRTMINPLUS3: 37, runtimeapi.Signal_SIGNAL_SIGRTMAXMINUS1: 63, runtimeapi.Signal_SIGNAL_SIGRTMAX: 64,
	} {
		if got, _ := StopSignal("f", s); got != want {
			t.Errorf("%s: got %d, want %d", s, got, want)
		}
	}
	if _, err := StopSignal("f", 1000); err == nil {
		t.Error("signal 1000 is taken")
	}
}
