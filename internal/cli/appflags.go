package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"gantry/internal/cdi"
	"gantry/internal/engine"
	"gantry/internal/image"
	"gantry/internal/manifest"
	"gantry/internal/pod"
)

// createFlags are the flags of run and prepare. Those that describe a pod are
// refused together with --file: the manifest says it all.
type createFlags struct {
	file string

	name, hostname, net, isolator string
	labels, annotations           []string
	publish                       []string
	dns, dnsSearch, dnsOption     []string
	sysctls                       []string
	userns                        string

	env, envFiles, volumes, devices []string
	user, workdir                   string
	entrypoint                      string
	limitFlags
	tty, interactive     bool
	readOnly, privileged bool
	noNewPrivileges      bool
	capAdd, capDrop      []string
	stopSignal           string
	stopTimeout          time.Duration
	pull                 string

	// describe are the names of the flags that a manifest replaces.
	describe map[string]bool
}

func (c *createFlags) add(f *pflag.FlagSet) {
	f.StringVarP(&c.file, "file", "f", "", "run the Kubernetes Pod in `FILE` (YAML or JSON, - for stdin)")
	f.StringVar(&c.pull, "pull", "missing", "when to ask the registry: `always|missing|never`")
	before := map[string]bool{}
	f.VisitAll(func(x *pflag.Flag) { before[x.Name] = true })
	c.addPod(f)
	c.addApp(f)
	c.describe = map[string]bool{}
	f.VisitAll(func(x *pflag.Flag) { c.describe[x.Name] = !before[x.Name] })
}

func (c *createFlags) addPod(f *pflag.FlagSet) {
	f.StringVarP(&c.name, "name", "n", "", "`NAME` of the pod")
	f.StringVar(&c.hostname, "hostname", "", "host `NAME` inside; default: the pod's name")
	f.StringVar(&c.net, "net", "pod", "`pod` for a network of its own, host for the host's")
	f.StringVar(&c.isolator, "isolator", "", "`NAME` of the isolator; default: the node's")
	f.StringArrayVarP(&c.labels, "label", "l", nil, "give the pod a label `NAME=VALUE`; may be repeated")
	f.StringArrayVar(&c.annotations, "annotation", nil, "give the pod an annotation `NAME=VALUE`; may be repeated")
	f.StringArrayVarP(&c.publish, "publish", "p", nil, "map a port of the host, `[IP:]HOST:POD[/udp]`; may be repeated")
	f.StringArrayVar(&c.dns, "dns", nil, "`IP` of a name server, instead of the host's; may be repeated")
	f.StringArrayVar(&c.dnsSearch, "dns-search", nil, "`DOMAIN` to search names in; may be repeated")
	f.StringArrayVar(&c.dnsOption, "dns-option", nil, "`OPTION` of resolv.conf; may be repeated")
	f.StringArrayVar(&c.sysctls, "sysctl", nil, "set a kernel parameter of the pod, `NAME=VALUE`; may be repeated")
	f.StringVar(&c.userns, "userns", "host", "`host` for the host's user IDs, auto for IDs of its own")
}

func (c *createFlags) addApp(f *pflag.FlagSet) {
	f.StringArrayVarP(&c.env, "env", "e", nil, "set a variable, `NAME=VALUE`, or NAME to pass on the caller's; may be repeated")
	f.StringArrayVar(&c.envFiles, "env-file", nil, "set the variables in `FILE`, one NAME=VALUE a line; may be repeated")
	f.StringArrayVarP(&c.volumes, "volume", "v", nil, "mount a path of the host, `SOURCE:TARGET[:OPTIONS]`, options of ro, rro, noexec, nodev, nosuid, rslave, rshared, z and Z (SELinux), with commas; may be repeated")
	f.StringArrayVar(&c.devices, "device", nil, "give a device, `SOURCE[:TARGET[:rwm]]` of the host or vendor/class=name of a CDI specification; may be repeated")
	f.StringVarP(&c.user, "user", "u", "", "run as `USER[:GROUP]`, names or numbers; default: the image's")
	f.StringVarP(&c.workdir, "workdir", "w", "", "working `DIRECTORY` inside; default: the image's")
	f.StringVar(&c.entrypoint, "entrypoint", "", "run `PROGRAM` instead of the image's entrypoint and command")
	c.limitFlags.add(f)
	f.BoolVarP(&c.tty, "tty", "t", false, "give the app a terminal")
	f.BoolVarP(&c.interactive, "interactive", "i", false, "pass stdin on to the app")
	f.BoolVar(&c.readOnly, "read-only", false, "make the app's root file system read-only")
	f.BoolVar(&c.privileged, "privileged", false, "run without isolation from the host's devices and kernel")
	f.BoolVar(&c.noNewPrivileges, "no-new-privileges", false, "let no program gain privileges by its file's bits")
	f.StringArrayVar(&c.capAdd, "cap-add", nil, "add the capability `NAME`; may be repeated")
	f.StringArrayVar(&c.capDrop, "cap-drop", nil, "drop the capability `NAME`, or ALL; may be repeated")
	f.StringVar(&c.stopSignal, "stop-signal", "", "`SIGNAL` that asks the app to end; default: the image's, or TERM")
	f.DurationVar(&c.stopTimeout, "stop-timeout", 10*time.Second, "kill the app this long after the stop signal")
}

// spec reads what the command line describes.
func (c *createFlags) spec(env *Env, f *pflag.FlagSet, args []string) (*podSpec, error) {
	policy, err := pullPolicy(c.pull)
	if err != nil {
		return nil, err
	}
	if c.file == "" {
		if len(args) == 0 {
			return nil, usagef("name an image, or a manifest with --file")
		}
		return c.fromFlags(args, policy)
	}
	if len(args) > 0 {
		return nil, usagef("%q: the manifest of --file names the images and their arguments", args[0])
	}
	var wrong error
	f.Visit(func(x *pflag.Flag) {
		if c.describe[x.Name] && wrong == nil {
			wrong = usagef("--%s cannot be combined with --file: write it in the manifest", x.Name)
		}
	})
	if wrong != nil {
		return nil, wrong
	}
	asked := image.PullPolicy("")
	if f.Changed("pull") {
		asked = policy
	}
	return specFromFile(env, c.file, asked)
}

func pullPolicy(s string) (image.PullPolicy, error) {
	switch p := image.PullPolicy(s); p {
	case image.Always, image.IfMissing, image.Never:
		return p, nil
	}
	return "", usagef("--pull %q: want always, missing or never", s)
}

func (c *createFlags) fromFlags(args []string, policy image.PullPolicy) (*podSpec, error) {
	ref, args := args[0], args[1:]
	if len(args) > 0 && args[0] == "--" {
		args = args[1:]
	}
	s := &podSpec{HostDNS: true}
	if err := c.podFlags(s, ref); err != nil {
		return nil, err
	}
	a, err := c.appFlags(ref)
	if err != nil {
		return nil, err
	}
	a.Pull, a.Args = policy, args
	s.Apps = []appSpec{a}
	return s, nil
}

func (c *createFlags) podFlags(s *podSpec, ref string) error {
	p := &s.Pod
	p.Owner, p.Namespace, p.Name = pod.OwnerCLI, defaultNamespace, c.name
	if p.Name == "" {
		p.Name = imageWord(ref) + "-" + string(pod.NewID()[:5])
	}
	if !manifest.IsSubdomain(p.Name) {
		return usagef("--name %q: want at most 253 of a-z, 0-9, - and ., in words that begin and end with a letter or a digit", p.Name)
	}
	p.Namespaces = pod.Namespaces{Network: pod.NamespacePod, PID: pod.NamespaceApp, IPC: pod.NamespacePod}
	switch c.net {
	case "pod":
	case "host":
		p.Namespaces.Network = pod.NamespaceNode
	default:
		return usagef("--net %q is not supported: want pod or host", c.net)
	}
	switch c.userns {
	case "host":
	case "auto":
		s.OwnUsers = true
	default:
		return usagef("--userns %q: want host or auto", c.userns)
	}
	if s.OwnUsers && p.HostNetwork() {
		return usagef("--userns auto cannot be combined with --net host")
	}
	if p.Hostname = c.hostname; p.Hostname == "" {
		if !p.HostNetwork() { // the host's name goes with its network
			p.Hostname = hostnameOf(p.Name)
		}
	} else if !manifest.IsLabel(p.Hostname) {
		return usagef("--hostname %q: want at most 63 of a-z, 0-9 and -", p.Hostname)
	} else if p.HostNetwork() {
		return usagef("--hostname cannot be combined with --net host")
	}
	if len(c.dns)+len(c.dnsSearch)+len(c.dnsOption) > 0 {
		p.DNS = &pod.DNS{Servers: c.dns, Searches: c.dnsSearch, Options: c.dnsOption}
	}
	p.Security = defaultSecurity()
	p.Security.Privileged = c.privileged
	return c.podMaps(p)
}

func (c *createFlags) podMaps(p *pod.Pod) error {
	var err error
	if p.Labels, err = optionalPairs("label", c.labels); err != nil {
		return err
	}
	if p.Annotations, err = optionalPairs("annotation", c.annotations); err != nil {
		return err
	}
	if p.Sysctls, err = optionalPairs("sysctl", c.sysctls); err != nil {
		return err
	}
	p.Handler = c.isolator
	for _, s := range c.publish {
		port, err := parsePublish(s)
		if err != nil {
			return usagef("--publish %q: %w", s, err)
		}
		if p.HostNetwork() {
			return usagef("--publish cannot be combined with --net host: the app has all ports of the host")
		}
		p.Ports = append(p.Ports, port)
	}
	return nil
}

func optionalPairs(flag string, list []string) (map[string]string, error) {
	if len(list) == 0 {
		return nil, nil
	}
	m, err := pairs(list)
	if err != nil {
		return nil, usagef("--%s %w", flag, err)
	}
	return m, nil
}

func (c *createFlags) appFlags(ref string) (appSpec, error) {
	a := appSpec{AppSpec: engine.AppSpec{
		Name: imageWord(ref), Image: ref, UserImage: ref, WorkDir: c.workdir, User: c.user,
		Stdin: c.interactive, StdinOnce: c.interactive, TTY: c.tty,
		StopSignal: c.stopSignal, StopTimeout: c.stopTimeout, Security: c.security(),
	}}
	if c.entrypoint != "" {
		a.Command = []string{c.entrypoint}
	}
	if c.workdir != "" && !filepath.IsAbs(c.workdir) {
		return a, usagef("--workdir %q: want an absolute path", c.workdir)
	}
	if c.stopTimeout < 0 {
		return a, usagef("--stop-timeout %s: want 0 or more", c.stopTimeout)
	}
	var err error
	if a.Env, err = c.environment(); err != nil {
		return a, err
	}
	for _, v := range c.volumes {
		m, err := parseVolume(v)
		if err != nil {
			return a, usagef("--volume %q: %w", v, err)
		}
		a.Mounts = append(a.Mounts, m)
	}
	for _, v := range c.devices {
		if cdi.IsName(v) {
			a.CDI = append(a.CDI, v)
			continue
		}
		d, err := parseDevice(v)
		if err != nil {
			return a, usagef("--device %q: %w", v, err)
		}
		a.Devices = append(a.Devices, d)
	}
	a.Resources, err = c.resources()
	return a, err
}

func (c *createFlags) security() pod.Security {
	s := defaultSecurity()
	s.Privileged, s.ReadOnlyRootfs, s.NoNewPrivileges = c.privileged, c.readOnly, c.noNewPrivileges
	s.AddCaps, s.DropCaps = capNames(c.capAdd), capNames(c.capDrop)
	if c.privileged {
		s.Seccomp.Kind, s.AppArmor.Kind = pod.ProfileUnconfined, pod.ProfileUnconfined
	}
	return s
}

// capNames spells capabilities as the domain does.
func capNames(list []string) []string {
	var out []string
	for _, s := range list {
		out = append(out, strings.TrimPrefix(strings.ToUpper(s), "CAP_"))
	}
	return out
}

// environment puts files first, in order, then single variables over them.
func (c *createFlags) environment() ([]string, error) {
	var out []string
	for _, path := range c.envFiles {
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("read --env-file: %w", err)
		}
		vars, err := parseEnvFile(string(data))
		if err != nil {
			return nil, fmt.Errorf("read --env-file %s: %w", path, err)
		}
		out = append(out, vars...)
	}
	for _, e := range c.env {
		kv, err := parseEnv(e)
		if err != nil {
			return nil, usagef("--env %w", err)
		}
		out = append(out, kv...)
	}
	return out, nil
}

// parseEnv reads NAME=VALUE, or NAME for the caller's own value, if it has one.
func parseEnv(s string) ([]string, error) {
	name, _, ok := strings.Cut(s, "=")
	if name == "" || strings.ContainsRune(s, 0) {
		return nil, fmt.Errorf("%q: want NAME=VALUE", s)
	}
	if ok {
		return []string{s}, nil
	}
	if value, ok := os.LookupEnv(name); ok {
		return []string{name + "=" + value}, nil
	}
	return nil, nil
}

// parseEnvFile takes each line literally; empty ones and comments are skipped.
func parseEnvFile(data string) ([]string, error) {
	var out []string
	for i, line := range strings.Split(data, "\n") {
		line = strings.TrimSuffix(line, "\r")
		if t := strings.TrimSpace(line); t == "" || strings.HasPrefix(t, "#") {
			continue
		}
		kv, err := parseEnv(strings.TrimLeft(line, " \t"))
		if err != nil {
			return nil, fmt.Errorf("line %s: %w", strconv.Itoa(i+1), err)
		}
		out = append(out, kv...)
	}
	return out, nil
}
