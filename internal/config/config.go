// Package config holds what an operator may set. There is one struct and one table
// over it: keys of the file, flags, defaults, checks and the text of
// --print-config all come from that table.
//
// Files are TOML: /etc/gantry/config.toml, then /etc/gantry/config.d/*.toml in the
// order of their names. All are optional, later ones win, and a key that is not
// in the table is an error.
package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/BurntSushi/toml"
)

// Dir is where configuration is looked for.
const Dir = "/etc/gantry"

// Config is the configuration. See Options for what the fields mean.
type Config struct {
	LogLevel string

	Isolator        string
	Handlers        []string
	IsolatorDirs    []string
	WeakerSpaces    []string
	WeakerLabels    []string
	WeakerDefault   string
	KVMMemory       int64
	KVMOverhead     int64
	KVMDisk         int64
	KVMProcessors   int64
	KVMBootTime     time.Duration
	KVMEmulate      bool
	OCIRuntime      []string
	OCIRuntimes     []string
	OCITimeout      time.Duration
	OCIAppArmor     string
	DeviceSpecDirs  []string
	StdioJournal    bool
	NetworkConfDir  string
	NetworkBinDirs  []string
	NetworkTimeout  time.Duration
	ImageRegistries string
	ImagePolicy     string
	ImageAuth       string
	ImageMount      string
	ImageParallel   int64
	ImageMaxLayer   int64
	ImageKeepBlobs  bool

	CRISocket        string
	CRIStreamAddress string
	CRIStreamIdle    time.Duration
	CRIMetrics       string
	CRITracing       string
	CRITracingRate   int64
	CRISlow          time.Duration
	CRIStopGrace     time.Duration
}

// Default is the configuration of a node that has no file.
func Default() Config {
	return Config{
		LogLevel:         "info",
		Isolator:         "oci",
		IsolatorDirs:     []string{"/etc/gantry/isolators", "/usr/lib/gantry/isolators"},
		KVMOverhead:      96 << 20,
		KVMDisk:          10 << 30,
		KVMProcessors:    1,
		KVMBootTime:      30 * time.Second,
		OCITimeout:       100 * time.Second,
		DeviceSpecDirs:   []string{"/etc/cdi", "/var/run/cdi"},
		StdioJournal:     true,
		NetworkConfDir:   "/etc/cni/net.d",
		NetworkBinDirs:   []string{"/opt/cni/bin", "/usr/lib/cni"},
		NetworkTimeout:   time.Minute,
		ImageParallel:    4,
		ImageMaxLayer:    128 << 30,
		CRISocket:        "/run/gantry/cri.sock",
		CRIStreamAddress: "127.0.0.1:0",
		CRIStreamIdle:    4 * time.Hour,
		CRISlow:          10 * time.Second,
		CRIStopGrace:     10 * time.Second,
	}
}

// Options is the table, bound to this configuration: setting a Value changes it.
func (c *Config) Options() []Option {
	return []Option{
		{"log.level", "what is logged: debug, info, warn or error", &textValue{&c.LogLevel, oneOf("debug", "info", "warn", "error")}},

		{"isolator.default", "how pods run that do not say it themselves", &textValue{&c.Isolator, given}},
		{"isolator.handlers", "further names of isolators for the handler of a RuntimeClass, each NAME=ISOLATOR", &listValue{&c.Handlers, handler}},
		{"isolator.dirs", "where isolators of third parties are; of two with one name the first counts", &listValue{&c.IsolatorDirs, absolute}},
		{"isolator.weaker-namespaces", "pods of these namespaces may choose an isolator that isolates less than the default one; * is all", &listValue{&c.WeakerSpaces, given}},
		{"isolator.weaker-labels", "pods with one of these labels, NAME=VALUE, may do so too; who makes pods gives them labels", &listValue{&c.WeakerLabels, label}},
		{"isolator.weaker-default", "how pods run that choose none and that the default one cannot run, if they may choose a weaker one; empty refuses them", &textValue{&c.WeakerDefault, anything}},

		{"kvm.memory", "memory of a virtual machine whose pod has no limit; 0 switches the isolator kvm off", &numberValue{&c.KVMMemory, 0, 1 << 50, true}},
		{"kvm.overhead", "what of a pod's memory the emulator, the file server and what stands for apps take on the host", &numberValue{&c.KVMOverhead, 0, 1 << 40, true}},
		{"kvm.disk", "what the apps of a pod may write to their file systems; 0 leaves them the machine's memory to write to", &numberValue{&c.KVMDisk, 0, 1 << 50, true}},
		{"kvm.processors", "processors of a virtual machine whose pod has no limit", &numberValue{&c.KVMProcessors, 1, 255, false}},
		{"kvm.boot-time", "how long a virtual machine may take until it can run apps", &durationValue{&c.KVMBootTime, time.Second}},
		{"kvm.emulate", "emulate the processors of virtual machines where there is no /dev/kvm: for tests, it is slow", &boolValue{&c.KVMEmulate}},

		{"oci.runtime", "command line of the OCI runtime up to its subcommand; empty is crun with its cgroup manager switched off", &listValue{&c.OCIRuntime, anything}},
		{"oci.runtimes", "further OCI runtimes, each an isolator of that name: NAME=PROGRAM [OPTION]..., or NAME:KIND=... with the kind crun, runc, runsc or youki where the program's name does not tell it", &runtimesValue{&c.OCIRuntimes}},
		{"oci.timeout", "how long the OCI runtime may take to create or start an app; more than 100s is taken for 100s", &durationValue{&c.OCITimeout, time.Second}},
		{"oci.apparmor", "AppArmor profile of apps that ask for the default one; it must be loaded. Empty is gantry-default where AppArmor is on; unconfined is none", &textValue{&c.OCIAppArmor, anything}},
		{"device.spec-dirs", "specifications of the Container Device Interface; what a later directory has goes first", &listValue{&c.DeviceSpecDirs, absolute}},
		{"stdio.journal", "copy the output of apps to the journal", &boolValue{&c.StdioJournal}},

		{"network.conf-dir", "CNI configuration", &textValue{&c.NetworkConfDir, absolute}},
		{"network.bin-dirs", "CNI plugins", &listValue{&c.NetworkBinDirs, absolute}},
		{"network.timeout", "bound for one operation over all plugins of a network", &durationValue{&c.NetworkTimeout, time.Second}},

		{"image.registries", "containers-registries.conf(5); empty is the system's", &textValue{&c.ImageRegistries, maybeAbsolute}},
		{"image.policy", "containers-policy.json(5); empty is the system's", &textValue{&c.ImagePolicy, maybeAbsolute}},
		{"image.auth", "containers-auth.json(5); empty is root's", &textValue{&c.ImageAuth, maybeAbsolute}},
		{"image.mount", "how images are mounted: file, loop, or empty to probe the kernel", &textValue{&c.ImageMount, oneOf("", "file", "loop")}},
		{"image.parallel", "layers of one pull at a time", &numberValue{&c.ImageParallel, 1, 64, false}},
		{"image.max-layer", "largest layer, uncompressed", &numberValue{&c.ImageMaxLayer, 1 << 20, 1 << 50, true}},
		{"image.keep-blobs", "keep compressed layers after conversion", &boolValue{&c.ImageKeepBlobs}},

		{"cri.socket", "socket of gantry-cri, if systemd does not hand one over", &textValue{&c.CRISocket, absolute}},
		{"cri.stream-address", "where exec, attach and port forward sessions are served; port 0 is any free one", &textValue{&c.CRIStreamAddress, hostPort}},
		{"cri.stream-idle", "sessions on which nothing happens are closed after this", &durationValue{&c.CRIStreamIdle, time.Second}},
		{"cri.metrics-address", "where Prometheus finds metrics of gantry-cri, at /metrics; empty is nowhere", &textValue{&c.CRIMetrics, maybeHostPort}},
		{"cri.tracing-address", "collector of OpenTelemetry that gets traces of requests, by OTLP over gRPC without TLS; empty is none", &textValue{&c.CRITracing, maybeHostPort}},
		{"cri.tracing-per-million", "of a million requests that belong to no trace of a client, so many are traced; those of a client's traces always are", &numberValue{&c.CRITracingRate, 0, 1_000_000, false}},
		{"cri.slow", "requests that take longer are logged", &durationValue{&c.CRISlow, 0}},
		{"cri.stop-grace", "how long requests may go on when gantry-cri is stopped", &durationValue{&c.CRIStopGrace, 0}},
	}
}

// Option is a line of the table.
type Option struct {
	Key   string // in a file: table.name
	Usage string
	Value Value
}

// Flag is the option's name on a command line.
func (o Option) Flag() string { return strings.ReplaceAll(o.Key, ".", "-") }

// Differences are the keys for which two configurations have another value.
func Differences(a, b Config) (keys []string) {
	other := b.Options()
	for i, o := range a.Options() {
		if o.Value.String() != other[i].Value.String() {
			keys = append(keys, o.Key)
		}
	}
	return keys
}

// Load reads the configuration below a directory, and tells which files it read.
func Load(dir string) (Config, []string, error) {
	c := Default()
	files, err := filepath.Glob(filepath.Join(dir, "config.d", "*.toml"))
	if err != nil {
		return c, nil, fmt.Errorf("list configuration: %w", err)
	}
	slices.Sort(files)
	var read []string
	for _, f := range append([]string{filepath.Join(dir, "config.toml")}, files...) {
		text, err := os.ReadFile(f)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			err = c.apply(string(text))
		}
		if err != nil {
			return c, read, fmt.Errorf("read configuration %s: %w", f, err)
		}
		read = append(read, f)
	}
	if err := c.Check(); err != nil {
		return c, read, fmt.Errorf("check configuration: %w", err)
	}
	return c, read, nil
}

// apply sets what a file says.
func (c *Config) apply(text string) error {
	var tree map[string]any
	if _, err := toml.Decode(text, &tree); err != nil {
		return err
	}
	table := map[string]Value{}
	for _, o := range c.Options() {
		table[o.Key] = o.Value
	}
	return applyTree(table, "", tree)
}

func applyTree(table map[string]Value, prefix string, tree map[string]any) error {
	for _, name := range sortedKeys(tree) {
		key := prefix + name
		v, known := table[key]
		sub, isTree := tree[name].(map[string]any)
		switch {
		case known:
			if err := v.load(tree[name]); err != nil {
				return fmt.Errorf("%s: %w", key, err)
			}
		case isTree && prefix == "":
			if err := applyTree(table, key+".", sub); err != nil {
				return err
			}
		default:
			return fmt.Errorf("%s: there is no such key%s", key, suggest(table, key))
		}
	}
	return nil
}

// suggest names a key that may have been meant.
func suggest(table map[string]Value, key string) string {
	plain := func(s string) string { return strings.NewReplacer("_", "", "-", "").Replace(strings.ToLower(s)) }
	for _, k := range sortedKeys(table) {
		if plain(k) == plain(key) {
			return " (is " + k + " meant?)"
		}
	}
	return ""
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// Text prints the configuration as a file that gives the same one.
func (c *Config) Text() string {
	var b strings.Builder
	table := ""
	for _, o := range c.Options() {
		t, name, ok := strings.Cut(o.Key, ".")
		if !ok {
			t, name = "", o.Key
		}
		if t != table {
			fmt.Fprintf(&b, "\n[%s]\n", t)
			table = t
		}
		fmt.Fprintf(&b, "# %s\n%s = %s\n", o.Usage, name, o.Value.text())
	}
	return b.String()
}
