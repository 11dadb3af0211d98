package config

import (
	"errors"
	"fmt"
	"time"
)

const (
	// leastMachine is the memory that a kernel and our agent do with.
	leastMachine = 128 << 20
	// leastDisk is one that a file system with something in it has room on.
	leastDisk = 64 << 20
	// mostBoot leaves time for the rest of what makes a pod.
	mostBoot = 3 * time.Minute
)

func (c *Config) checkKVM() error {
	size := func(n int64) string { return (&numberValue{p: &n, size: true}).String() }
	switch {
	case c.KVMMemory == 0 && c.Isolator == "kvm":
		return errors.New("isolator.default: kvm is switched off: give kvm.memory a size, such as 512MiB")
	case c.KVMMemory == 0:
		return nil
	case c.KVMMemory < leastMachine:
		return fmt.Errorf("kvm.memory: %s: a machine needs at least %s; 0 switches kvm off", size(c.KVMMemory), size(leastMachine))
	case c.KVMDisk != 0 && c.KVMDisk < leastDisk:
		return fmt.Errorf("kvm.disk: %s: want at least %s, or 0 for none", size(c.KVMDisk), size(leastDisk))
	case c.KVMBootTime > mostBoot:
		return fmt.Errorf("kvm.boot-time: %s: want at most %s", c.KVMBootTime, mostBoot)
	}
	return nil
}
