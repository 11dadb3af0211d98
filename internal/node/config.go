package node

import (
	"strings"
	"time"

	"gantry/internal/config"
	"gantry/internal/engine"
	"gantry/internal/image"
)

// FromConfig takes over what an operator may set.
func FromConfig(c config.Config) Options {
	handlers := map[string]string{}
	for _, h := range c.Handlers {
		name, to, _ := strings.Cut(h, "=")
		handlers[name] = to
	}
	var runtimes []config.Runtime
	for _, text := range c.OCIRuntimes {
		if r, err := config.ParseRuntime(text); err == nil { // or it would not be there
			runtimes = append(runtimes, r)
		}
	}
	return Options{
		Isolator: c.Isolator,
		Machines: Machines{
			Emulate: c.KVMEmulate, Memory: c.KVMMemory, Overhead: c.KVMOverhead, Disk: c.KVMDisk,
			CPUs: int(c.KVMProcessors), BootSeconds: int((c.KVMBootTime + time.Second - 1) / time.Second),
		},
		Runtime:         c.OCIRuntime,
		Runtimes:        runtimes,
		RuntimeTimeout:  c.OCITimeout,
		AppArmorDefault: c.OCIAppArmor,
		Handlers:        handlers,
		IsolatorDirs:    c.IsolatorDirs,
		Weaker:          engine.Weaker{Namespaces: c.WeakerSpaces, Labels: c.WeakerLabels, Default: c.WeakerDefault},
		CDIDirs:         c.DeviceSpecDirs,
		NoJournal:       !c.StdioJournal,
		NetworkConfDir:  c.NetworkConfDir,
		NetworkBinDirs:  c.NetworkBinDirs,
		NetworkTimeout:  c.NetworkTimeout,
		Images: image.Config{
			RegistriesConf: c.ImageRegistries,
			PolicyFile:     c.ImagePolicy,
			AuthFile:       c.ImageAuth,
			MaxLayerBytes:  c.ImageMaxLayer,
			Parallel:       int(c.ImageParallel),
			KeepBlobs:      c.ImageKeepBlobs,
			Mount:          image.MountMode(c.ImageMount),
		},
	}
}
