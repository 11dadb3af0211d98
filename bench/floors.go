package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// floorPods times the parts that a pod's start is made of, without an engine.
func floorPods(ctx context.Context, b *bench) error {
	for range samples {
		for _, f := range []struct {
			name string
			do   func(context.Context) (time.Duration, error)
		}{
			{mFork, timed("/bin/true")},
			{mSystemdRun, timed("systemd-run", "--quiet", "--wait", "--collect", "/bin/true")},
			{mCrun, b.crunTrue},
			{mBridge, b.bridgeAdd},
		} {
			took, err := f.do(ctx)
			if err != nil {
				return err
			}
			b.addFloor(f.name, ms(took))
		}
	}
	return nil
}

func timed(name string, args ...string) func(context.Context) (time.Duration, error) {
	return func(ctx context.Context) (time.Duration, error) {
		began := time.Now()
		err := command(ctx, name, args...)
		return time.Since(began), err
	}
}

// crunTrue runs a program in a container of all namespaces, from a bundle that is
// there.
func (b *bench) crunTrue(ctx context.Context) (time.Duration, error) {
	bundle := filepath.Join(b.scratch, "bundle")
	if _, err := os.Stat(bundle); err != nil {
		script := fmt.Sprintf(`set -e
mkdir -p %[1]s/rootfs/bin %[1]s/rootfs/proc %[1]s/rootfs/sys %[1]s/rootfs/dev
cp /usr/bin/busybox %[1]s/rootfs/bin/true
cd %[1]s
crun spec
jq '.process.terminal = false | .process.args = ["/bin/true"] | .linux.cgroupsPath = ""' config.json >new.json
mv new.json config.json`, bundle)
		if err := command(ctx, "sh", "-c", script); err != nil {
			return 0, err
		}
	}
	began := time.Now()
	err := command(ctx, "crun", "--cgroup-manager=disabled", "run", "--bundle", bundle, "bench-floor")
	return time.Since(began), err
}

const (
	conflist = "/etc/cni/net.d/10-trial.conflist"
	floorNS  = "bench-floor"
)

// bridgeAdd attaches an empty namespace to the network, by the first plugin of the
// list alone. What the namespace and the DEL cost is not counted.
func (b *bench) bridgeAdd(ctx context.Context) (took time.Duration, err error) {
	conf, err := firstPlugin()
	if err != nil {
		return 0, err
	}
	if err := command(ctx, "ip", "netns", "add", floorNS); err != nil {
		return 0, err
	}
	defer func() {
		err = errors.Join(err, plugin(ctx, "DEL", conf), command(ctx, "ip", "netns", "del", floorNS))
	}()
	began := time.Now()
	err = plugin(ctx, "ADD", conf)
	return time.Since(began), err
}

// firstPlugin is the bridge's part of the node's network, as the plugin takes it.
func firstPlugin() (string, error) {
	data, err := os.ReadFile(conflist)
	if err != nil {
		return "", err
	}
	var list struct {
		CNIVersion string           `json:"cniVersion"`
		Name       string           `json:"name"`
		Plugins    []map[string]any `json:"plugins"`
	}
	if err := json.Unmarshal(data, &list); err != nil {
		return "", fmt.Errorf("read %s: %w", conflist, err)
	}
	if len(list.Plugins) == 0 || list.Plugins[0]["type"] != "bridge" {
		return "", fmt.Errorf("read %s: its first plugin is not the bridge", conflist)
	}
	conf := list.Plugins[0]
	conf["cniVersion"], conf["name"] = list.CNIVersion, list.Name
	out, err := json.Marshal(conf)
	return string(out), err
}

func plugin(ctx context.Context, verb, conf string) error {
	path, err := findPlugin("bridge")
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, path)
	cmd.Stdin = strings.NewReader(conf)
	cmd.Env = []string{
		"CNI_COMMAND=" + verb, "CNI_CONTAINERID=" + floorNS, "CNI_NETNS=/run/netns/" + floorNS,
		"CNI_IFNAME=eth0", "CNI_PATH=" + filepath.Dir(path), "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s of plugin bridge: %w: %s", verb, err, out)
	}
	return nil
}

func findPlugin(name string) (string, error) {
	for _, dir := range []string{"/opt/cni/bin", "/usr/lib/cni"} {
		path := filepath.Join(dir, name)
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("CNI plugin %s is not installed", name)
}
