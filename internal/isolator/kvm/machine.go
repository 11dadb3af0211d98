package kvm

import (
	"fmt"
	"path"
	"strconv"
	"strings"
	"time"

	"gantry/internal/guest"
	"gantry/internal/isolator"
	"gantry/internal/isolator/recipe"
	"gantry/internal/machine"
	"gantry/internal/pod"
	"gantry/internal/unit"
)

// units are the file server and the machine, which is up when it has the pod's network.
func (k *KVM) units(in isolator.Sandbox, s size) []unit.Unit {
	return []unit.Unit{k.server(in), k.machine(in, s)}
}

// size is what a machine has.
type size struct {
	memory int64 // MiB
	cpus   int
}

const (
	mebi = 1 << 20
	// leastMemory is what a kernel and the agent do with, in MiB.
	leastMemory = 128
	mostCPUs    = 255
)

// size follows from the pod's limits: its memory less what the machine itself takes. The
// overhead that a RuntimeClass announces is on top of what the apps have. Where only some
// of them have limits, the others may need what a pod without any gets.
func (k *KVM) size(in isolator.Sandbox) (size, error) {
	p, s := in.Pod, size{k.cfg.Memory / mebi, max(k.cfg.CPUs, 1)}
	if p.Resources == nil {
		return s, nil
	}
	if limit := p.Resources.Memory; limit > 0 {
		if p.Overhead != nil && p.Overhead.Memory > 0 {
			limit += p.Overhead.Memory
		}
		memory := (limit - k.cfg.Overhead) / mebi
		switch {
		case in.Unlimited.Memory:
			s.memory = max(s.memory, memory)
		case memory < leastMemory:
			return s, recipe.Invalid("memory limit of %d MiB: a machine needs at least %d, of which %d are kvm.overhead", limit/mebi, leastMemory+k.cfg.Overhead/mebi, k.cfg.Overhead/mebi)
		default:
			s.memory = memory
		}
	}
	if n := processors(*p.Resources); n > 0 {
		if in.Unlimited.CPU {
			n = max(s.cpus, n)
		}
		s.cpus = n
	}
	return s, nil
}

// processors are as many as a limit needs; 0 is no limit.
func processors(r pod.Resources) int {
	if r.CPUQuota <= 0 || r.CPUPeriod <= 0 {
		return 0
	}
	return int(min((r.CPUQuota+r.CPUPeriod-1)/r.CPUPeriod, mostCPUs))
}

// common are the properties of both units.
func common(in isolator.Sandbox, what string) []unit.Property {
	id := string(in.Pod.ID)
	return []unit.Property{
		{Name: "Description", Value: unit.String(what + " of pod " + recipe.Describe(in.Pod.Namespace, in.Pod.Name))},
		{Name: "Slice", Value: unit.String(in.Pod.Slice)},
		{Name: "PartOf", Value: unit.Strings{unit.Pod(id)}},
		{Name: "Requisite", Value: unit.Strings{unit.Pod(id)}},
		{Name: "CollectMode", Value: unit.String("inactive-or-failed")},
		{Name: "IgnoreOnIsolate", Value: unit.Bool(true)},
		{Name: "KillMode", Value: unit.String("mixed")},
		{Name: "TimeoutStopUSec", Value: unit.Duration(10 * time.Second)},
		{Name: "OOMScoreAdjust", Value: unit.Int32(int32(oomScore(in.Pod.Slice)))},
		{Name: "SyslogIdentifier", Value: unit.String("gantry-guest")},
	}
}

// oomScore is that of what apps stand on, when the host is out of memory: to kill it ends
// all of them. Kubelet's slices tell whom it would rather lose, and without them it is
// the score that other engines give to what a pod stands on.
func oomScore(slice string) int {
	switch {
	case strings.Contains(slice, "kubepods-besteffort-"):
		return 1000
	case strings.Contains(slice, "kubepods-burstable-"):
		return 900
	}
	return -998
}

func (k *KVM) run(args ...string) unit.Command {
	return unit.Command{Path: k.cfg.Guest, Args: append([]string{k.cfg.Guest}, args...)}
}

// ended records how a unit of the machine ended.
func (k *KVM) ended(in isolator.Sandbox, name string) unit.Command {
	c := k.run("machine-ended", in.Dir.Pod, name)
	c.IgnoreFailure = true
	return c
}

// down notes why a program has ended, for whoever waits for the machine.
func (k *KVM) down(in isolator.Sandbox, stage string) unit.Command {
	c := k.run("down", in.Dir.Pod, stage)
	c.IgnoreFailure = true
	return c
}

// server shares files of the host with the machine, and nothing that is not in the share.
func (k *KVM) server(in isolator.Sandbox) unit.Unit {
	serve := k.run("files", in.Dir.Pod, k.cfg.FileServer, "--shared-dir="+share(in.Dir), "--announce-submounts", "--xattr", "--xattrmap="+attributes, "--cache=auto", "--inode-file-handles=prefer", "--sandbox=namespace", "--log-level=warn")
	return unit.Unit{Name: unit.FileServer(string(in.Pod.ID)), Properties: append(common(in, "Files"),
		unit.Property{Name: "After", Value: unit.Strings{unit.Pod(string(in.Pod.ID))}},
		unit.Property{Name: "Type", Value: unit.String("notify")},
		unit.Property{Name: "ExecStart", Value: unit.Commands{serve}},
		unit.Property{Name: "ExecStopPost", Value: unit.Commands{k.ended(in, unit.FileServer(string(in.Pod.ID))), k.down(in, machine.StageFiles), k.run("release", in.Dir.Run)}},
		unit.Property{Name: "LimitNOFILE", Value: unit.Uint64(1 << 20)},
	)}
}

// attributes are the extended attributes of files that pass: those of users, and what a program
// may do. What is the host's own affair, its labels and its overlays, the machine neither
// sees nor changes.
const attributes = ":ok:all:user.:user.::ok:all:security.capability:security.capability::unsupported:client:::" + ":bad:server:::"

// machine is the machine. When it ends the pod has ended.
func (k *KVM) machine(in isolator.Sandbox, s size) unit.Unit {
	id := string(in.Pod.ID)
	cid := machine.Address(id)
	props := append(common(in, "Machine"), k.memoryMount(s)...)
	return unit.Unit{Name: unit.Machine(id), Properties: append(props,
		unit.Property{Name: "After", Value: unit.Strings{unit.Pod(id), unit.FileServer(id)}},
		unit.Property{Name: "BindsTo", Value: unit.Strings{unit.FileServer(id)}},
		unit.Property{Name: "OnFailure", Value: unit.Strings{unit.Ended(id)}},
		unit.Property{Name: "Type", Value: unit.String("exec")},
		unit.Property{Name: "NetworkNamespacePath", Value: unit.String(path.Join(in.Dir.Run, recipe.NetPin))},
		unit.Property{Name: "ExecStart", Value: unit.Commands{{Path: k.cfg.Emulator, Args: append([]string{k.cfg.Emulator}, k.arguments(in, s, cid)...)}}},
		unit.Property{Name: "ExecStartPost", Value: unit.Commands{k.run("await", in.Dir.Pod, strconv.Itoa(k.cfg.BootTime))}},
		unit.Property{Name: "ExecStopPost", Value: unit.Commands{
			// Before the last one: that ends the wait for the start.
			k.ended(in, unit.Machine(id)), k.down(in, machine.StageBoot),
			{Path: systemctl, Args: []string{systemctl, "--no-block", "stop", unit.Pod(id)}, IgnoreFailure: true},
		}},
		unit.Property{Name: "TimeoutStartUSec", Value: unit.Duration(time.Duration(k.cfg.BootTime+bootMargin)*time.Second + machine.NetworkTime)},
		unit.Property{Name: "LimitMEMLOCK", Value: unit.Infinity},
		unit.Property{Name: "NoNewPrivileges", Value: unit.Bool(true)},
		unit.Property{Name: "DevicePolicy", Value: unit.String("closed")},
		unit.Property{Name: "DeviceAllow", Value: unit.Devices{
			{Path: "/dev/kvm", Permissions: "rw"}, {Path: "/dev/vhost-vsock", Permissions: "rw"}, {Path: "/dev/net/tun", Permissions: "rw"},
		}},
	)}
}

// hugePage is the size of one, in bytes: that of memory which need not be given up in parts.
const hugePage = 2 << 20

// memoryDir is where the emulator has the machine's memory, if that is to be in huge pages:
// a file system of the unit's own in the place of one that it has no use for.
const memoryDir = "/dev/shm"

func (k *KVM) memoryMount(s size) []unit.Property {
	if !k.cfg.HugePages {
		return nil
	}
	options := fmt.Sprintf("rw,nosuid,nodev,noexec,mode=0700,huge=within_size,size=%dm", s.memory)
	return []unit.Property{{Name: "TemporaryFileSystem", Value: unit.Tmpfs{{Path: memoryDir, Options: options}}}}
}

// memory is the machine's, which the file server sees too.
func (k *KVM) memory(size string) string {
	if k.cfg.HugePages {
		return fmt.Sprintf("memory-backend-file,id=memory,share=on,mem-path=%s,align=%d,size=%s", memoryDir, hugePage, size)
	}
	return "memory-backend-memfd,id=memory,share=on,size=" + size
}

const (
	systemctl  = "/usr/bin/systemctl"
	bootMargin = 45 // seconds: for the way to what is up
)

// board is what the machine is apart from its devices, which are the same on both: the
// least there is, which starts soonest, or a whole PC, whose timers a machine needs that
// has none of the hypervisor. A clock is there because the kernel looks for one for
// seconds where there is none.
func (k *KVM) board() []string {
	if k.cfg.Emulate {
		return []string{"-machine", "q35,accel=tcg,memory-backend=memory", "-cpu", "max"}
	}
	return []string{
		"-machine", "microvm,accel=kvm,memory-backend=memory,acpi=on,pcie=on,pic=off,pit=off,rtc=on,x-option-roms=off", "-bios", k.cfg.Firmware, "-cpu", "host",
	}
}

// sandbox is what the emulator may no longer do when the machine runs: who breaks out of
// the machine into it runs no other program and gets no other rights.
const sandbox = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"

// arguments are those of the emulator.
func (k *KVM) arguments(in isolator.Sandbox, s size, cid uint32) []string {
	memory := strconv.FormatInt(s.memory, 10) + "M"
	args := []string{"-nodefaults", "-no-user-config", "-no-reboot", "-sandbox", sandbox, "-display", "none", "-name", "gantry-" + string(in.Pod.ID)}
	args = append(append(args, k.board()...),
		"-smp", strconv.Itoa(s.cpus), "-m", memory,
		"-object", k.memory(memory),
		"-kernel", k.cfg.Boot.Kernel, "-initrd", k.cfg.Boot.Initramfs, "-append", commandLine,
		"-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console",
		"-device", fmt.Sprintf("vhost-vsock-pci,guest-cid=%d", cid),
		"-chardev", "socket,id=files,path="+path.Join(in.Dir.Run, machine.SocketFile),
		"-device", "vhost-user-fs-pci,chardev=files,tag="+guest.Tag,
		"-netdev", "tap,id=net,ifname="+machine.Tap+",script=no,downscript=no",
		"-device", "virtio-net-pci,netdev=net,romfile=",
	)
	if k.cfg.Disk > 0 { // where the host's disk is full, apps are told: without a word the machine would stand still, and nobody would wake it
		args = append(args,
			"-drive", "if=none,id=disk,format=raw,cache=unsafe,discard=unmap,werror=report,rerror=report,file="+path.Join(in.Dir.Pod, machine.Disk),
			"-device", "virtio-blk-pci,drive=disk,serial="+guest.ScratchSerial)
	}
	return args
}

// commandLine is the kernel's. What it says goes to the journal; when it panics the machine
// ends. All devices are on the first bus.
const commandLine = "console=ttyS0 loglevel=4 panic=-1 random.trust_cpu=on pci=lastbus=0"
