// Package node puts the parts of an engine together for one machine, in the one
// way that the CLI and the CRI server share.
package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"gantry/internal/config"
	"gantry/internal/engine"
	"gantry/internal/image"
	"gantry/internal/isolator"
	"gantry/internal/isolator/external"
	"gantry/internal/isolator/fly"
	"gantry/internal/isolator/oci"
	"gantry/internal/network"
	"gantry/internal/pod"
	"gantry/internal/podstore"
	"gantry/internal/stdio"
	"gantry/internal/systemd"
)

// The fixed places.
const (
	Root = "/var/lib/gantry"
	Run  = "/run/gantry"
	Init = oci.DefaultInit
)

// Options of a node. Empty fields have defaults.
type Options struct {
	Root, Run string
	Log       *slog.Logger

	// Isolator is the name of the default isolator.
	Isolator string
	// Runtime is the OCI runtime's command line up to the subcommand.
	Runtime []string
	// Machines is about pods that are virtual machines.
	Machines Machines
	// Runtimes are further ones, each an isolator of its name.
	Runtimes []config.Runtime
	// RuntimeTimeout bounds one call of one.
	RuntimeTimeout time.Duration
	// Handlers are further names of isolators.
	Handlers map[string]string
	// IsolatorDirs are where isolators of third parties are.
	IsolatorDirs []string
	// Weaker tells which pods may be isolated less than by the default isolator.
	Weaker engine.Weaker
	// OwnCgroup is a cgroup in which this program may make others; "" is its own one, if
	// that was given to it.
	OwnCgroup string
	// CDIDirs are where the Container Device Interface's specifications are.
	CDIDirs []string
	// AppArmorDefault is the profile of apps that ask for the runtime's default.
	AppArmorDefault string
	// NoJournal switches the copy of apps' output in the journal off.
	NoJournal bool

	NetworkConfDir string
	NetworkBinDirs []string
	NetworkTimeout time.Duration

	Images image.Config // Root, Run, Log and InUse are set here

	// Failpoints is the text that engine.ParseFailpoints reads.
	Failpoints string
}

// Node is an engine and what it stands on.
type Node struct {
	*engine.Engine
	systemd *systemd.Manager
}

// Open puts a node together. It starts nothing.
func Open(ctx context.Context, o Options) (*Node, error) {
	o = o.defaults()
	profile := appArmorDefault(o.AppArmorDefault)
	fail, err := engine.ParseFailpoints(o.Failpoints)
	if err != nil {
		return nil, err
	}
	labels, known := selinux(o.Log)
	isolators, err := o.isolators(oci.Config{
		RuntimeTimeout: o.RuntimeTimeout, Init: Init, StdioSocket: stdio.Socket, AppArmorDefault: profile,
		SELinux: labels, KnownLabel: known, Installed: installed,
	})
	if err != nil {
		return nil, err
	}
	machines, err := o.machines(labels)
	if err != nil {
		return nil, err
	}
	isolators = append(isolators, machines)
	others, err := thirdParties(o, external.Config{Init: Init, StdioSocket: stdio.Socket, AppArmorDefault: profile, SELinux: labels})
	if err != nil {
		return nil, err
	}
	pods, err := openNetwork(o)
	if err != nil {
		return nil, err
	}
	// The store asks the engine whether an image is in use; the engine has the store.
	var e *engine.Engine
	o.Images.Root, o.Images.Run, o.Images.Log = o.Root, o.Run, o.Log
	o.Images.InUse = func(id string) bool { return e == nil || e.ImageInUse(id) }
	if labels {
		o.Images.Label = "system_u:object_r:container_ro_file_t:s0"
	}
	images, err := image.Open(ctx, o.Images)
	if err != nil {
		return nil, err
	}
	manager, err := systemd.Dial(ctx, systemd.Config{Log: o.Log})
	if err != nil {
		return nil, fmt.Errorf("connect to systemd (is it PID 1, and is dbus running?): %w", err)
	}
	e, err = engine.New(ctx, engine.Config{
		Root: o.Root, Run: o.Run, Log: o.Log, OwnCgroup: o.OwnCgroup,
		Systemd: manager, Images: images, Network: pods, Stdio: stdio.Client{},
		Isolators: append(isolators, others...), Isolator: o.Isolator,
		Init: Init, HostPathHelper: Init, Handlers: o.Handlers, Weaker: o.Weaker, CDIDirs: o.CDIDirs, AppArmorDefault: profile, JournalMirror: !o.NoJournal, Failpoints: fail,
	})
	if err != nil {
		return nil, errors.Join(err, manager.Close())
	}
	return &Node{e, manager}, nil
}

// isolators are oci and fly, and one for each further runtime, which differ from oci in
// nothing but that.
func (o Options) isolators(c oci.Config) ([]isolator.Isolator, error) {
	host, err := fly.New(fly.Config{Init: c.Init, StdioSocket: c.StdioSocket, AppArmorDefault: c.AppArmorDefault, SELinux: c.SELinux})
	if err != nil {
		return nil, err
	}
	runtimes := append([]config.Runtime{{Name: oci.DefaultName, Command: o.Runtime}}, o.Runtimes...)
	var out []isolator.Isolator
	for _, r := range runtimes {
		c.Name, c.Kind, c.Runtime = r.Name, r.Kind, r.Command
		iso, err := oci.New(c)
		if err != nil {
			return nil, err
		}
		out = append(out, iso)
	}
	return slices.Insert(out, 1, isolator.Isolator(host)), nil
}

// installed tells why a program cannot be run.
func installed(program string) error {
	info, err := os.Stat(program)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return errors.New("there is no such file")
	case err != nil:
		return err
	case !info.Mode().IsRegular() || info.Mode()&0o111 == 0:
		return errors.New("it is no program")
	}
	return nil
}

// defaultProfile is the AppArmor profile that we ship.
const defaultProfile = "gantry-default"

// appArmorDefault is the profile of apps that ask for the default one. Where
// AppArmor is on there is one unless the operator says "unconfined": the engine
// refuses such apps as long as it is not loaded.
func appArmorDefault(configured string) string {
	on, err := os.ReadFile("/sys/module/apparmor/parameters/enabled")
	if configured != "" || err != nil || strings.TrimSpace(string(on)) != "Y" {
		return configured
	}
	return defaultProfile
}

func openNetwork(o Options) (*network.Network, error) {
	return network.New(network.Config{
		ConfDir: o.NetworkConfDir, BinDirs: o.NetworkBinDirs, Timeout: o.NetworkTimeout,
		CacheDir: o.Root + "/cni", Log: o.Log,
		// A pod is on disk before its first plugin runs and until DEL is done. Without
		// this question gc would take the network of a pod that is being made.
		Exists: func(id pod.ID) bool {
			_, err := os.Lstat(podstore.Layout{Root: o.Root}.Pod(id))
			return !errors.Is(err, fs.ErrNotExist)
		},
	})
}

// Teardown gives back pods' networks, and stands on nothing that may be gone while
// the machine goes down.
type Teardown struct {
	*engine.Teardown
	network *network.Network
}

// OpenTeardown puts a Teardown together. It talks to nobody.
func OpenTeardown(o Options) (*Teardown, error) {
	o = o.defaults()
	n, err := openNetwork(o)
	if err != nil {
		return nil, err
	}
	t, err := engine.NewTeardown(o.Root, o.Run, n)
	if err != nil {
		n.Close()
		return nil, err
	}
	return &Teardown{t, n}, nil
}

// Close lets go of what it watched.
func (t *Teardown) Close() error {
	t.network.Close()
	return nil
}

func (o Options) defaults() Options {
	if o.Root == "" {
		o.Root = Root
	}
	if o.Run == "" {
		o.Run = Run
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Isolator == "" {
		o.Isolator = "oci"
	}
	if o.OwnCgroup == "" {
		o.OwnCgroup = delegatedCgroup("/proc/self/cgroup", "/sys/fs/cgroup")
	}
	return o
}

// Close lets go of everything; pods run on.
func (n *Node) Close() error {
	n.Network().Close()
	return errors.Join(n.Engine.Close(), n.systemd.Close())
}
