//go:build e2e

package node

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// fieldCase is a container with something in its configuration that can be seen from
// inside: what its script prints must match.
type fieldCase struct {
	change func(*cri.ContainerConfig)
	script string // "" leaves the command to the case
	want   string // a regular expression for all of its output
}

// runCases runs containers in one pod, all at the same time.
func (p pod) runCases(t *testing.T, cases map[string]fieldCase) {
	t.Helper()
	started := map[string]container{}
	for name, c := range cases {
		if strings.HasPrefix(name, own) && !ours() {
			continue
		}
		config := containerConfig(name, c.script)
		c.change(config)
		started[name] = p.create(t, config).start(t)
	}
	for name, c := range started {
		s := c.wait(t, 10*time.Second)
		var out strings.Builder
		for _, l := range c.logFile(t) {
			out.WriteString(l.text)
			if !l.partial {
				out.WriteByte('\n')
			}
		}
		if !regexp.MustCompile("^(?s:" + cases[name].want + ")\n?$").MatchString(out.String()) {
			t.Errorf("%s (exit code %d) said %q, want %s", name, s.ExitCode, out.String(), cases[name].want)
		}
		if _, err := p.RemoveContainer(t.Context(), &cri.RemoveContainerRequest{ContainerId: c.id}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// own marks such a case.
const own = "own-"

// ours tells whether Gantry is under test: some cases are promises of its own, which
// other engines do not make.
func ours() bool { return os.Getenv("GANTRY_E2E_CRI") == "" }

// refused wants containers to be refused when they are created, for what they ask.
func (p pod) refused(t *testing.T, cases map[string]func(*cri.ContainerConfig)) {
	t.Helper()
	for name, change := range cases {
		if strings.HasPrefix(name, own) && !ours() {
			continue
		}
		config := containerConfig("refused", "exit 0")
		change(config)
		got, err := p.CreateContainer(t.Context(), &cri.CreateContainerRequest{PodSandboxId: p.id, Config: config, SandboxConfig: p.config})
		if err == nil {
			t.Errorf("%s: was created", name)
			if _, err := p.RemoveContainer(t.Context(), &cri.RemoveContainerRequest{ContainerId: got.ContainerId}); err != nil {
				t.Error(err)
			}
		} else if code := status.Code(err); ours() && code != codes.InvalidArgument && code != codes.NotFound && code != codes.Unimplemented {
			t.Errorf("%s: %v", name, err)
		}
		t.Logf("%s: %v", name, err)
	}
}

func security(c *cri.ContainerConfig) *cri.LinuxContainerSecurityContext {
	return c.Linux.SecurityContext
}

func TestFieldsOfProcess(t *testing.T) {
	guard(t)
	e := dial(t)
	p := e.run(t, onHost(e.podConfig(t, "process")))
	p.runCases(t, map[string]fieldCase{
		"command-args": {func(c *cri.ContainerConfig) {
			c.Command, c.Args = []string{"echo", "-n"}, []string{"a b", "$HOME", ""}
		}, "", `a b \$HOME `},
		"working-dir":   {func(c *cri.ContainerConfig) { c.WorkingDir = "/usr/bin" }, "pwd", "/usr/bin"},
		"working-dir-2": {func(c *cri.ContainerConfig) { c.WorkingDir = "/not/there" }, "pwd", "/not/there"},
		"envs": {func(c *cri.ContainerConfig) {
			c.Envs = []*cri.KeyValue{{Key: "A", Value: []byte("1\n2")}, {Key: "B", Value: []byte("é=$A")}, {Key: "A", Value: []byte("3")}}
		}, `echo "$A|$B"`, `3\|é=\$A`},
		"tty":    {func(c *cri.ContainerConfig) { c.Tty = true }, "tty; [ -t 2 ] && echo yes", "/dev/[a-z/0-9]+\r?\nyes\r?"},
		"no-tty": {func(*cri.ContainerConfig) {}, "tty; true", "not a tty"},
		"stdin":  {func(*cri.ContainerConfig) {}, "cat; echo end", "end"},
	})
	p.refused(t, map[string]func(*cri.ContainerConfig){
		"own-a name with =":          func(c *cri.ContainerConfig) { c.Envs = []*cri.KeyValue{{Key: "A=B"}} },
		"own-a value not in UTF-8":   func(c *cri.ContainerConfig) { c.Envs = []*cri.KeyValue{{Key: "A", Value: []byte("\xff")}} },
		"own-no name":                func(c *cri.ContainerConfig) { c.Metadata.Name = "" },
		"an image that is not there": func(c *cri.ContainerConfig) { c.Image = &cri.ImageSpec{Image: "none:1"} },
	})
	signals := p.create(t, func() *cri.ContainerConfig {
		c := containerConfig("signal", `trap "exit 5" USR1; trap "exit 6" TERM; echo up; while :; do sleep 0.1; done`)
		c.StopSignal = cri.Signal_SIGNAL_SIGUSR1
		return c
	}()).start(t)
	eventually(t, 5*time.Second, "it is up", func() bool { return len(signals.logFile(t)) == 1 })
	if s := signals.status(t); s.StopSignal != cri.Signal_SIGNAL_SIGUSR1 {
		t.Errorf("the status has stop signal %s", s.StopSignal)
	}
	signals.stop(t, 30)
	if s := signals.status(t); s.ExitCode != 5 {
		t.Errorf("stopped with SIGUSR1 it has exit code %d", s.ExitCode)
	}
}

func TestFieldsOfUser(t *testing.T) {
	guard(t)
	e := dial(t)
	p := e.run(t, onHost(e.podConfig(t, "user")))
	const who = "id -u; id -g; id -G"
	id := func(n int64) *cri.Int64Value { return &cri.Int64Value{Value: n} }
	p.runCases(t, map[string]fieldCase{
		"default": {func(*cri.ContainerConfig) {}, who, "0\n0\n0"},
		"user":    {func(c *cri.ContainerConfig) { security(c).RunAsUser = id(1234) }, who, "1234\n1235\n1235 4321 4322"},
		"user-group": {func(c *cri.ContainerConfig) {
			security(c).RunAsUser, security(c).RunAsGroup = id(1234), id(77)
		}, who, "1234\n77\n77 4321 4322"},
		"unknown-user": {func(c *cri.ContainerConfig) { security(c).RunAsUser = id(5000) }, who, "5000\n0\n0"},
		"name":         {func(c *cri.ContainerConfig) { security(c).RunAsUsername = "gantry" }, who, "1234\n1235\n1235 4321 4322"},
		"supplemental": {func(c *cri.ContainerConfig) {
			security(c).RunAsUser, security(c).SupplementalGroups = id(1234), []int64{8, 9}
		}, who, "1234\n1235\n1235 8 9 4321 4322|1234\n1235\n1235 4321 4322 8 9"},
		"strict": {func(c *cri.ContainerConfig) {
			security(c).RunAsUser, security(c).SupplementalGroups = id(1234), []int64{8}
			security(c).SupplementalGroupsPolicy = cri.SupplementalGroupsPolicy_Strict
		}, who, "1234\n1235\n1235 8"},
	})
	p.refused(t, map[string]func(*cri.ContainerConfig){
		"an unknown name":      func(c *cri.ContainerConfig) { security(c).RunAsUsername = "nosuchuser" },
		"a group without user": func(c *cri.ContainerConfig) { security(c).RunAsGroup = id(5) },
	})
	config := containerConfig("status", "sleep 1000000")
	config.Linux.SecurityContext.RunAsUser, config.Linux.SecurityContext.SupplementalGroups = id(1234), []int64{8}
	if u := p.create(t, config).start(t).status(t).User.GetLinux(); u.GetUid() != 1234 || u.GetGid() != 1235 || len(u.GetSupplementalGroups()) < 2 {
		t.Errorf("the status has user %v", u)
	}
}

func TestFieldsOfSecurity(t *testing.T) {
	guard(t)
	e := dial(t)
	p := e.run(t, onHost(e.podConfig(t, "security")))
	caps := func(c *cri.Capability) func(*cri.ContainerConfig) {
		return func(config *cri.ContainerConfig) { security(config).Capabilities = c }
	}
	user := func(c *cri.ContainerConfig) { security(c).RunAsUser = &cri.Int64Value{Value: 1234} }
	const bounding = "grep CapBnd /proc/self/status | cut -f2"
	p.runCases(t, map[string]fieldCase{
		"caps":         {func(*cri.ContainerConfig) {}, bounding, "00000000a80425fb"},
		"caps-drop":    {caps(&cri.Capability{DropCapabilities: []string{"ALL"}}), bounding, "0000000000000000"},
		"caps-add":     {caps(&cri.Capability{DropCapabilities: []string{"ALL"}, AddCapabilities: []string{"NET_ADMIN"}}), bounding, "0000000000001000"},
		"own-caps-low": {caps(&cri.Capability{DropCapabilities: []string{"all"}, AddCapabilities: []string{"cap_net_raw"}}), bounding, "0000000000002000"},
		"own-caps-ambient": {func(c *cri.ContainerConfig) {
			user(c)
			security(c).Capabilities = &cri.Capability{AddCapabilities: []string{"NET_ADMIN"}, AddAmbientCapabilities: []string{"NET_ADMIN"}}
		}, "grep CapAmb /proc/self/status | cut -f2", "0000000000001000"},
		"caps-user":    {user, "grep CapEff /proc/self/status | cut -f2", "0000000000000000"},
		"read-only":    {func(c *cri.ContainerConfig) { security(c).ReadonlyRootfs = true }, "touch /f 2>&1; touch /dev/shm/f && echo shm", ".*Read-only file system\nshm"},
		"writable":     {func(*cri.ContainerConfig) {}, "touch /f && echo yes", "yes"},
		"no-new-privs": {func(c *cri.ContainerConfig) { security(c).NoNewPrivs = true }, "grep NoNewPrivs /proc/self/status | cut -f2", "1"},
		"new-privs":    {func(*cri.ContainerConfig) {}, "grep NoNewPrivs /proc/self/status | cut -f2", "0"},
		"masked":       {func(c *cri.ContainerConfig) { security(c).MaskedPaths = []string{"/proc/keys", "/usr/bin"} }, "wc -c </proc/keys; ls /usr/bin | wc -l", "0\n0"},
		"own-hidden-none": {func(c *cri.ContainerConfig) { // but for the AppArmor profile, which protects the same files
			security(c).Apparmor = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Unconfined}
		}, "grep -c ' /proc/' /proc/mounts; cat /proc/sys/vm/swappiness >/proc/sys/vm/swappiness && echo yes", "0\nyes"},
		"read-only-paths": {func(c *cri.ContainerConfig) { security(c).ReadonlyPaths = []string{"/tmp"} }, "touch /tmp/f 2>&1", ".*Read-only file system"},
		"seccomp-default": {func(c *cri.ContainerConfig) {
			security(c).Seccomp = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault}
		}, "grep Seccomp: /proc/self/status | cut -f2", "2"},
		"seccomp-unconfined": {func(c *cri.ContainerConfig) {
			security(c).Seccomp = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Unconfined}
		}, "grep Seccomp: /proc/self/status | cut -f2", "0"},
		"seccomp-none": {func(*cri.ContainerConfig) {}, "grep Seccomp: /proc/self/status | cut -f2", "0"},
	})
	p.refused(t, map[string]func(*cri.ContainerConfig){
		"own-an unknown capability":       caps(&cri.Capability{AddCapabilities: []string{"NO_SUCH"}}),
		"privileged in a pod that is not": func(c *cri.ContainerConfig) { security(c).Privileged = true },
		"a seccomp profile that is not there": func(c *cri.ContainerConfig) {
			security(c).Seccomp = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: "/no/such/profile"}
		},
		"an AppArmor profile that is not there": func(c *cri.ContainerConfig) {
			security(c).Apparmor = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: "no-such-profile"}
		},
	})
}

func TestFieldsOfProfiles(t *testing.T) {
	guard(t)
	e := dial(t)
	p := e.run(t, onHost(e.podConfig(t, "profiles")))
	profile := filepath.Join(t.TempDir(), "profile.json")
	writeFile(t, profile, `{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}]}`)
	const name = "trial-deny-write"
	writeFile(t, profile+".aa", "profile "+name+" flags=(attach_disconnected) {\n  file,\n  network,\n  capability,\n  signal,\n  ptrace,\n  deny /tmp/** w,\n}\n")
	sh(t, "apparmor_parser -Kr "+profile+".aa")
	t.Cleanup(func() { sh(t, "apparmor_parser -R "+profile+".aa") })
	seccomp := func(kind cri.SecurityProfile_ProfileType, ref string) func(*cri.ContainerConfig) {
		return func(c *cri.ContainerConfig) {
			security(c).Seccomp = &cri.SecurityProfile{ProfileType: kind, LocalhostRef: ref}
		}
	}
	armor := func(kind cri.SecurityProfile_ProfileType, ref string) func(*cri.ContainerConfig) {
		return func(c *cri.ContainerConfig) {
			security(c).Apparmor = &cri.SecurityProfile{ProfileType: kind, LocalhostRef: ref}
		}
	}
	const mkdir, write, current = "mkdir /tmp/d 2>&1 && echo made", "touch /tmp/f 2>&1 && echo written", "cat /proc/self/attr/current"
	p.runCases(t, map[string]fieldCase{
		"seccomp":         {seccomp(cri.SecurityProfile_Localhost, profile), mkdir, ".*Operation not permitted"},
		"own-seccomp-old": {func(c *cri.ContainerConfig) { security(c).SeccompProfilePath = "localhost/" + profile }, mkdir, ".*Operation not permitted"},
		"apparmor":        {armor(cri.SecurityProfile_Localhost, name), write, ".*Permission denied"},
		"apparmor-name":   {armor(cri.SecurityProfile_Localhost, name), current, name + ` \(enforce\)`},
		"apparmor-old":    {func(c *cri.ContainerConfig) { security(c).ApparmorProfile = "localhost/" + name }, write, ".*Permission denied"},
		"apparmor-off":    {armor(cri.SecurityProfile_Unconfined, ""), current, ".*unconfined.*"},
		"apparmor-given":  {armor(cri.SecurityProfile_RuntimeDefault, ""), current, `.+ \(enforce\)`},
	})
}

func TestFieldsOfPrivilegedPod(t *testing.T) {
	guard(t)
	e := dial(t)
	config := onHost(e.podConfig(t, "privileged"))
	config.Linux.SecurityContext.Privileged = true
	p := e.run(t, config)
	privileged := func(c *cri.ContainerConfig) { security(c).Privileged = true }
	p.runCases(t, map[string]fieldCase{
		"caps":    {privileged, "grep CapEff /proc/self/status | cut -f2", "000001ffffffffff"},
		"sys":     {privileged, "mount | grep ' /sys type' | grep -c '(rw'", "1"},
		"devices": {privileged, "ls /dev/vda", "/dev/vda"},
		"masked":  {privileged, "mount | grep -c ' /proc/'", "0"},
		"not":     {func(*cri.ContainerConfig) {}, "ls /dev/vda 2>&1", ".*No such file.*"},
	})
}

func TestFieldsOfResources(t *testing.T) {
	guard(t)
	e := dial(t)
	p := e.run(t, onHost(e.podConfig(t, "resources")))
	limits := func(r *cri.LinuxContainerResources) func(*cri.ContainerConfig) {
		return func(c *cri.ContainerConfig) { c.Linux.Resources = r }
	}
	show := func(files ...string) string { return "cd /sys/fs/cgroup; cat " + strings.Join(files, " ") }
	p.runCases(t, map[string]fieldCase{
		"cpu":        {limits(&cri.LinuxContainerResources{CpuPeriod: 50_000, CpuQuota: 12_300}), show("cpu.max"), "12300 50000"},
		"cpu-shares": {limits(&cri.LinuxContainerResources{CpuShares: 2048}), show("cpu.weight"), "174|79"},
		"memory":     {limits(&cri.LinuxContainerResources{MemoryLimitInBytes: 64 << 20}), show("memory.max"), "67108864"},
		"swap":       {limits(&cri.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, MemorySwapLimitInBytes: 96 << 20}), show("memory.swap.max"), "33554432"},
		"no-swap":    {limits(&cri.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, MemorySwapLimitInBytes: 64 << 20}), show("memory.swap.max"), "0"},
		"oom":        {limits(&cri.LinuxContainerResources{OomScoreAdj: 456}), "cat /proc/self/oom_score_adj", "456"},
		"cpuset":     {limits(&cri.LinuxContainerResources{CpusetCpus: "0", CpusetMems: "0"}), show("cpuset.cpus", "cpuset.mems"), "0\n0"},
		"unified": {limits(&cri.LinuxContainerResources{Unified: map[string]string{
			"memory.low": "1048576", "memory.min": "524288", "memory.high": "33554432", "memory.oom.group": "1", "pids.max": "77",
		}}), show("memory.low", "memory.min", "memory.high", "memory.oom.group", "pids.max"), "1048576\n524288\n33554432\n1\n77"},
		"oom-group":     {limits(&cri.LinuxContainerResources{}), show("memory.oom.group"), "0"},
		"own-hugepages": {limits(&cri.LinuxContainerResources{HugepageLimits: []*cri.HugepageLimit{{PageSize: "2MB", Limit: 4 << 20}}}), show("hugetlb.2MB.max"), "4194304"},
	})
	p.refused(t, map[string]func(*cri.ContainerConfig){
		"own-a CPU that is not there": limits(&cri.LinuxContainerResources{CpusetCpus: "900"}),
		"own-that CPU by its file":    limits(&cri.LinuxContainerResources{Unified: map[string]string{"cpuset.cpus": "900"}}),
		"own-no file of the kernel's": limits(&cri.LinuxContainerResources{Unified: map[string]string{"memory.hihg": "1"}}),
		"own-a list that is none":     limits(&cri.LinuxContainerResources{CpusetCpus: "x"}),
		"own-a file outside":          limits(&cri.LinuxContainerResources{Unified: map[string]string{"../cgroup.procs": "1"}}),
		"own-a page size":             limits(&cri.LinuxContainerResources{HugepageLimits: []*cri.HugepageLimit{{PageSize: "3MB", Limit: 1}}}),
	})
}

func TestFieldsOfMounts(t *testing.T) {
	guard(t)
	e := dial(t)
	p := e.run(t, onHost(e.podConfig(t, "mounts")))
	dir, err := os.MkdirTemp("/var/tmp", "trial-mounts-")
	if err != nil {
		t.Fatal(err)
	}
	sub := filepath.Join(dir, "sub")
	if err := os.Mkdir(sub, 0o755); err != nil {
		t.Fatal(err)
	}
	sh(t, fmt.Sprintf("mount -t tmpfs trial %s && cp /bin/true %s/true && echo text >%s/file", sub, dir, dir))
	t.Cleanup(func() { sh(t, fmt.Sprintf("umount %s && rm -r %s", sub, dir)) })
	mount := func(m *cri.Mount) func(*cri.ContainerConfig) {
		m.HostPath, m.ContainerPath = dir, "/vol"
		return func(c *cri.ContainerConfig) { c.Mounts = []*cri.Mount{m} }
	}
	const devices = "/dev/trial-devices"
	sh(t, fmt.Sprintf("mkdir -p %[1]s/deep && mknod %[1]s/none c 1 3 && mknod %[1]s/deep/zero c 1 5", devices))
	t.Cleanup(func() { sh(t, "rm -r "+devices) })
	const write = "touch /vol/f 2>&1 && echo yes; touch /vol/sub/f 2>&1 && echo yes; true"
	p.runCases(t, map[string]fieldCase{
		"writable":    {mount(&cri.Mount{}), write, "yes\nyes"},
		"read-only":   {mount(&cri.Mount{Readonly: true}), write, ".*Read-only file system\nyes"},
		"recursive":   {mount(&cri.Mount{Readonly: true, RecursiveReadOnly: true}), write, ".*Read-only file system\n.*Read-only file system"},
		"own-noexec":  {mount(&cri.Mount{MountOptions: []string{"noexec"}}), "/vol/true 2>&1", ".*Permission denied"},
		"own-options": {mount(&cri.Mount{MountOptions: []string{"nosuid", "nodev"}}), "grep ' /vol ' /proc/mounts | grep -c nosuid,nodev", "1"},
		"file": {func(c *cri.ContainerConfig) {
			c.Mounts = []*cri.Mount{{HostPath: dir + "/file", ContainerPath: "/etc/deep/down"}}
		}, "cat /etc/deep/down", "text"},
		"path-made": {func(c *cri.ContainerConfig) { // what kubelet does not check may not be there
			c.Mounts = []*cri.Mount{{HostPath: dir + "/made/here", ContainerPath: "/vol"}}
		}, "stat -c '%F %a' /vol && touch /vol/f && echo yes", "directory 755\nyes"},
		"device": {func(c *cri.ContainerConfig) {
			c.Devices = []*cri.Device{{HostPath: "/dev/null", ContainerPath: "/dev/mine", Permissions: "rw"}}
		}, "echo a >/dev/mine && cat /dev/mine && echo yes", "yes"},
		"device-directory": {func(c *cri.ContainerConfig) {
			c.Devices = []*cri.Device{{HostPath: devices, ContainerPath: "/dev/mine", Permissions: "rw"}}
		}, "echo a >/dev/mine/none && head -c 3 /dev/mine/deep/zero | wc -c", "3"},
		"device-read": {func(c *cri.ContainerConfig) {
			c.Devices = []*cri.Device{{HostPath: "/dev/vda", ContainerPath: "/dev/disk", Permissions: "r"}}
		}, "head -c 1 /dev/disk >/dev/null && echo read; : 2>&1 >/dev/disk", "read\n.*Operation not permitted"},
	})
	propagation := func(m cri.MountPropagation) container {
		c := containerConfig("propagation-"+strings.ToLower(m.String()[12:]), "while :; do sleep 0.1; done")
		mount(&cri.Mount{Propagation: m})(c)
		return p.create(t, c).start(t)
	}
	private, slave := propagation(cri.MountPropagation_PROPAGATION_PRIVATE), propagation(cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER)
	sh(t, fmt.Sprintf("mkdir %s/new && mount -t tmpfs trial %s/new && touch %s/new/seen", dir, dir, dir))
	t.Cleanup(func() { sh(t, "umount "+dir+"/new") })
	for c, want := range map[container]string{private: "", slave: "seen\n"} {
		if out, _, _ := c.exec(t, "ls", "/vol/new"); out != want {
			t.Errorf("%s sees %q in a mount that the host made, want %q", c.config.Metadata.Name, out, want)
		}
	}
	p.refused(t, map[string]func(*cri.ContainerConfig){
		"recursive and writable": mount(&cri.Mount{RecursiveReadOnly: true}),
		"a path below a file": func(c *cri.ContainerConfig) {
			c.Mounts = []*cri.Mount{{HostPath: dir + "/file/below", ContainerPath: "/vol"}}
		},
	})
	p.refusesMountsOfItsOwn(t)
}

// refusesMountsOfItsOwn: a mount that nothing can come through is refused if something is
// to come through.
func (p pod) refusesMountsOfItsOwn(t *testing.T) {
	t.Helper()
	apart := t.TempDir()
	sh(t, "mount -t tmpfs --make-private trial "+apart)
	t.Cleanup(func() { sh(t, "umount "+apart) })
	mount := func(p cri.MountPropagation) func(*cri.ContainerConfig) {
		return func(c *cri.ContainerConfig) {
			c.Mounts = []*cri.Mount{{HostPath: apart, ContainerPath: "/vol", Propagation: p}}
		}
	}
	p.refused(t, map[string]func(*cri.ContainerConfig){
		"mounts of the host, through a private mount":  mount(cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER),
		"mounts for the host, through a private mount": mount(cri.MountPropagation_PROPAGATION_BIDIRECTIONAL),
	})
	sh(t, "mount --make-shared "+apart+" && mount --make-slave "+apart) // of a group of its own: private again
	p.refused(t, map[string]func(*cri.ContainerConfig){
		"mounts of the host, through what has no master": mount(cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER),
	})
	sh(t, "mount --make-shared "+apart)
	c := containerConfig("shared", "exit 0")
	mount(cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER)(c)
	p.create(t, c)
}
