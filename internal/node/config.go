package node

import (
	"strings"

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
	return Options{
		Isolator:        c.Isolator,
		Runtime:         c.OCIRuntime,
		RuntimeTimeout:  c.OCITimeout,
		AppArmorDefault: c.OCIAppArmor,
		Handlers:        handlers,
		IsolatorDirs:    c.IsolatorDirs,
		Weaker:          engine.Weaker{Namespaces: c.WeakerSpaces, Labels: c.WeakerLabels},
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
