//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"gantry/internal/network"
	"gantry/internal/network/networktest"
	"gantry/internal/pod"
)

// wire is a network of its own, with namespaces made by hand: no engine, no pod.
type wire struct {
	*network.Network
	t     *testing.T
	dir   string
	times *pluginTimes
}

// singleStack and dualStack are the ranges of a network.
const (
	singleStack = `[{"subnet": "10.99.0.0/24"}]`
	dualStack   = singleStack + `, [{"subnet": "fd00:99::/64"}]`
)

// wireList is the list that docs/networking.md shows, on another bridge: the
// directory of leases, the ranges, and what is put between the plugins.
const wireList = `{
  "cniVersion": "1.0.0", "name": "gantry-e2e", "plugins": [
    {"type": "bridge", "bridge": "gantrye2e0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
     "ipam": {"type": "host-local", "dataDir": "%[1]s",
              "ranges": [%[2]s],
              "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}},
    %[3]s
    {"type": "portmap", "snat": true, "capabilities": {"portMappings": true}},
    {"type": "bandwidth", "capabilities": {"bandwidth": true}}
  ]}`

func newWire(t *testing.T, ranges, between string) *wire {
	t.Helper()
	w := &wire{t: t, dir: t.TempDir(), times: &pluginTimes{took: map[string][]time.Duration{}}}
	sh(t, "mkdir "+w.dir+"/net.d "+w.dir+"/bin")
	w.conf(fmt.Sprintf(wireList, w.leases(), ranges, between))
	w.Network = w.open(time.Minute)
	t.Cleanup(func() { sh(t, "ip link del gantrye2e0 2>/dev/null || true") })
	return w
}

func (w *wire) open(limit time.Duration) *network.Network {
	w.t.Helper()
	n, err := network.New(network.Config{
		ConfDir: w.dir + "/net.d", BinDirs: []string{w.dir + "/bin", "/opt/cni/bin", "/usr/lib/cni"}, CacheDir: w.dir + "/cache",
		Timeout: patience(limit), Log: slog.New(w.times),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(n.Close)
	return n
}

func (w *wire) leases() string { return w.dir + "/leases" }

func (w *wire) conf(text string) {
	w.t.Helper()
	if err := os.WriteFile(w.dir+"/net.d/10-e2e.conflist", []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

// held lists the addresses that host-local thinks are taken.
func (w *wire) held() []string {
	files, err := filepath.Glob(w.leases() + "/gantry-e2e/*[.:]*")
	if err != nil {
		w.t.Fatal(err)
	}
	return slices.DeleteFunc(files, func(f string) bool { return strings.Contains(f, "last_reserved_ip") })
}

// rules lists what any firewall rule says of the attachment.
func (w *wire) rules(id pod.ID) string {
	return sh(w.t, "{ iptables-save; ip6tables-save; } 2>/dev/null | grep "+string(id)+" || true")
}

func (w *wire) attachment(name string) network.Attachment {
	w.t.Helper()
	sh(w.t, "ip netns add "+name)
	w.t.Cleanup(func() { sh(w.t, "ip netns del "+name+" 2>/dev/null || true") })
	return network.Attachment{Pod: pod.NewID(), Name: name, Namespace: "e2e", UID: name, NetNS: "/run/netns/" + name}
}

// add attaches, and sees to it that it is undone.
func (w *wire) add(a network.Attachment) network.Result {
	w.t.Helper()
	r, err := w.Add(w.t.Context(), a)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		if err := w.Del(context.Background(), a, &r); err != nil {
			w.t.Error(err)
		}
	})
	return r
}

// serve runs a web server in a namespace.
func serve(t *testing.T, netns, listen, says string) {
	t.Helper()
	root := t.TempDir()
	if err := os.WriteFile(root+"/index.html", []byte(says), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("ip", "netns", "exec", netns, "busybox", "httpd", "-f", "-p", listen, "-h", root)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // killed, so always an error
	})
	_, port, _ := strings.Cut(listen, "]:")
	if port == "" {
		port = listen[strings.LastIndex(listen, ":")+1:]
	}
	eventually(t, time.Second, "listening on "+listen, func() bool {
		return strings.Contains(sh(t, "ip netns exec "+netns+" ss -Hltn"), ":"+port)
	})
}

func get(t *testing.T, url string) string {
	t.Helper()
	client := http.Client{Timeout: patience(2 * time.Second)}
	resp, err := client.Get(url)
	if err != nil {
		t.Error(err)
		return ""
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Error(err)
	}
	return string(body)
}

// TestNetworkDualStack: addresses of both families, reachable; host ports; limits
// of bandwidth; counters; connections into the namespace; nothing left.
func TestNetworkDualStack(t *testing.T) {
	guard(t)
	w := newWire(t, dualStack, "")
	if err := w.Status(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", w.Info(t.Context()))
	web, client := w.attachment("e2e-web"), w.attachment("e2e-client")
	web.Ports = []pod.Port{{Protocol: pod.TCP, PodPort: 80, HostPort: 18080}}
	client.Annotations = map[string]string{"kubernetes.io/ingress-bandwidth": "8M", "kubernetes.io/egress-bandwidth": "16M"}
	r := w.add(web)
	w.add(client)
	if len(r.IPs) != 2 || !strings.HasPrefix(r.IPs[0], "10.99.0.") || !strings.HasPrefix(r.IPs[1], "fd00:99::") ||
		!slices.Equal(r.Gateways, []string{"10.99.0.1", "fd00:99::1"}) {
		t.Errorf("%+v", r)
	}
	if got := sh(t, "ip netns exec e2e-web cat /sys/class/net/eth0/address"); got != r.MAC {
		t.Errorf("MAC %s, the result says %s", got, r.MAC)
	}
	serve(t, "e2e-web", "[::]:80", "hello")
	// The plugin does not wait until the bridge's own new address may be used.
	eventually(t, 3*time.Second, "the bridge has its IPv6 address", func() bool {
		return sh(t, "ip -6 addr show dev gantrye2e0 tentative") == ""
	})
	for _, url := range []string{"http://" + r.IPs[0], "http://[" + r.IPs[1] + "]", "http://127.0.0.1:18080", "http://10.99.0.1:18080"} {
		if got := get(t, url); got != "hello" {
			t.Errorf("%s: %q", url, got)
		}
	}
	sh(t, "ip netns exec e2e-client curl -sf -m 20 http://"+r.IPs[0]+" http://["+r.IPs[1]+"] http://10.99.0.1:18080")
	if tc := sh(t, "tc qdisc show"); !strings.Contains(tc, "rate 8Mbit") || !strings.Contains(tc, "rate 16Mbit") {
		t.Errorf("limits are not applied: %s", tc)
	}
	counters(t, web.NetNS)
	// The CHECKs of portmap and bandwidth 1.1.1 find fault with such a pod.
	if err := w.Check(t.Context(), web, &r); err != nil {
		t.Error(err)
	}
	if err := w.Del(t.Context(), web, &r); err != nil {
		t.Error(err)
	}
	if rules := w.rules(web.Pod); rules != "" || len(w.held()) != 2 {
		t.Errorf("left of one of two pods: %v\n%s", w.held(), rules)
	}
}

func counters(t *testing.T, netns string) {
	t.Helper()
	links, err := network.LinkStats(netns)
	if err != nil || len(links) != 1 || links[0].Name != "eth0" || links[0].RxBytes == 0 || links[0].TxPackets == 0 {
		t.Errorf("%+v, %v", links, err)
	}
	if links, err := network.LinkStats(""); err != nil || len(links) < 2 {
		t.Errorf("of the host: %+v, %v", links, err)
	}
}

// TestNetworkBandwidth: a limit is kept.
func TestNetworkBandwidth(t *testing.T) {
	guard(t)
	w := newWire(t, dualStack, "")
	a := w.attachment("e2e-slow")
	a.Annotations = map[string]string{"kubernetes.io/ingress-bandwidth": "4M"}
	r := w.add(a)
	addr := net.JoinHostPort(r.IPs[0], "9000")
	cmd := exec.Command("ip", "netns", "exec", "e2e-slow", "busybox", "nc", "-l", "-p", "9000")
	cmd.Stdout = io.Discard
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	var conn net.Conn
	eventually(t, time.Second, "listening", func() (ok bool) {
		var err error
		conn, err = net.Dial("tcp", addr)
		return err == nil
	})
	start := time.Now()
	if _, err := conn.Write(make([]byte, 2<<20)); err != nil {
		t.Fatal(err)
	}
	conn.Close()
	_ = cmd.Wait() // got it all
	// 16.8 Mbit at 4 Mbit/s, less the burst of 2 Mbit.
	took := time.Since(start)
	t.Logf("2 MiB at 4 Mbit/s took %s", took.Round(10*time.Millisecond))
	if took < 2500*time.Millisecond {
		t.Error("too fast")
	}
}

func TestNetworkDial(t *testing.T) {
	guard(t)
	w := newWire(t, dualStack, "")
	a := w.attachment("e2e-dial")
	w.add(a)
	serve(t, "e2e-dial", "127.0.0.1:81", "four")
	serve(t, "e2e-dial", "[::1]:82", "six")
	for port, want := range map[int]string{81: "four", 82: "six"} {
		conn, err := network.Dial(t.Context(), a.NetNS, port)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprint(conn, "GET / HTTP/1.0\r\n\r\n")
		body, err := io.ReadAll(conn)
		conn.Close()
		if err != nil || !strings.HasSuffix(string(body), want) {
			t.Errorf("port %d: %q, %v", port, body, err)
		}
	}
	if _, err := network.Dial(t.Context(), a.NetNS, 83); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Error(err)
	}
	if _, err := network.Dial(t.Context(), "/run/netns/nowhere", 83); err == nil {
		t.Error("a namespace that is not there")
	}
	// No thread of ours stayed in a foreign namespace.
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	tasks, err := filepath.Glob("/proc/self/task/*/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range tasks {
		if ns, err := os.Readlink(f); err == nil && ns != own {
			t.Errorf("%s is %s, not %s", f, ns, own)
		}
	}
}

// TestNetworkMAC: udev leaves the addresses alone that the plugin reported. It
// takes the .link file that Gantry installs.
func TestNetworkMAC(t *testing.T) {
	guard(t)
	w := newWire(t, singleStack, "")
	for range 3 {
		a := w.attachment("e2e-mac")
		r := w.add(a)
		sh(t, "udevadm settle")
		var raw struct {
			Interfaces []struct{ Name, Mac, Sandbox string }
		}
		if err := json.Unmarshal(r.Raw, &raw); err != nil {
			t.Fatal(err)
		}
		for _, i := range raw.Interfaces {
			if i.Sandbox != "" {
				continue
			}
			mac, err := os.ReadFile("/sys/class/net/" + i.Name + "/address")
			if err != nil || strings.TrimSpace(string(mac)) != i.Mac {
				t.Errorf("%s has the MAC %s, reported was %s (%v); %s", i.Name, mac, i.Mac, err,
					sh(t, "udevadm test-builtin net_setup_link /sys/class/net/"+i.Name+" 2>&1 | grep -i link || true"))
			}
		}
		if err := w.Del(t.Context(), a, &r); err != nil {
			t.Error(err)
		}
		sh(t, "ip netns del e2e-mac")
	}
}

// TestNetworkCheck: what is changed under an attachment is found.
func TestNetworkCheck(t *testing.T) {
	guard(t)
	w := newWire(t, singleStack, "")
	for name, c := range map[string]struct {
		change, want string
		dead         bool // the pod has no network any more
	}{
		"address": {"ip -n e2e-check addr flush dev eth0 scope global", "has lost the address", true},
		"down":    {"ip -n e2e-check link set eth0 down", "is down", true},
		"link":    {"ip -n e2e-check link del eth0", "interface eth0", true},
		"route":   {"ip -n e2e-check route del default", "plugin bridge", false},
	} {
		t.Run(name, func(t *testing.T) {
			w := &wire{Network: w.Network, t: t, dir: w.dir, times: w.times}
			a := w.attachment("e2e-check")
			a.Annotations = map[string]string{"kubernetes.io/ingress-bandwidth": "8M"}
			r := w.add(a)
			sh(t, "udevadm settle")
			if err := w.Check(t.Context(), a, &r); err != nil {
				t.Fatal(err)
			}
			sh(t, c.change)
			err := w.Check(t.Context(), a, &r)
			if err == nil || !strings.Contains(err.Error(), c.want) || errors.Is(err, pod.ErrState) != c.dead {
				t.Errorf("after %q: %v", c.change, err)
			}
			t.Log(err)
		})
	}
}

// TestNetworkTeardownLate: the namespace, the saved result and the journal go
// before DEL does, alone and together. Leases and rules are released all the same.
func TestNetworkTeardownLate(t *testing.T) {
	guard(t)
	w := newWire(t, dualStack, "")
	for name, c := range map[string]struct{ netns, journal, saved bool }{
		"all there":      {true, true, true},
		"namespace gone": {false, true, true},
		"not saved":      {false, true, false},
		"journal gone":   {false, false, true},
		"all gone":       {false, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			w := &wire{Network: w.Network, t: t, dir: w.dir, times: w.times}
			a := w.attachment("e2e-late")
			a.Ports = []pod.Port{{Protocol: pod.TCP, PodPort: 80, HostPort: 18082}}
			a.Annotations = map[string]string{"kubernetes.io/ingress-bandwidth": "8M", "kubernetes.io/egress-bandwidth": "8M"}
			r, err := w.Add(t.Context(), a)
			if err != nil {
				t.Fatal(err)
			}
			if len(w.held()) != 2 {
				t.Errorf("leases: %v", w.held())
			}
			saved := &r
			if !c.saved {
				saved = nil
			}
			if !c.journal {
				sh(t, "rm -r "+w.dir+"/cache")
			}
			if !c.netns {
				sh(t, "ip netns del e2e-late")
			}
			for range 2 {
				if err := w.open(time.Minute).Del(t.Context(), a, saved); err != nil {
					t.Error(err)
				}
			}
			if held := w.held(); len(held) != 0 {
				t.Errorf("leases: %v", held)
			}
			if rules := w.rules(a.Pod); rules != "" {
				t.Errorf("rules: %s", rules)
			}
		})
	}
}

// TestNetworkGC: leases of pods that nobody remembers are released, those of
// pods that are there and of other programs are not.
func TestNetworkGC(t *testing.T) {
	guard(t)
	w := newWire(t, dualStack, "")
	kept, lost := w.attachment("e2e-kept"), w.attachment("e2e-lost")
	w.add(kept)
	if _, err := w.Add(t.Context(), lost); err != nil {
		t.Fatal(err)
	}
	sh(t, "ip netns del e2e-lost; rm -r "+w.dir+"/cache")
	foreign := w.leases() + "/gantry-e2e/10.99.0.200"
	sh(t, "printf '%s\\r\\neth0' "+strings.Repeat("0123456789abcdef", 4)+" > "+foreign)
	if err := w.GC(t.Context(), []network.Attachment{kept}); err != nil {
		t.Error(err)
	}
	if held := w.held(); len(held) != 3 || !slices.Contains(held, foreign) {
		t.Errorf("leases: %v", held)
	}
	if rules := w.rules(lost.Pod); rules != "" {
		t.Errorf("rules: %s", rules)
	}
}

// TestNetworkPluginFails puts a plugin that misbehaves between real ones. Each
// time all is undone.
func TestNetworkPluginFails(t *testing.T) {
	guard(t)
	w := newWire(t, dualStack, `{"type": "fake"},`)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		step networktest.Step
		want string
	}{
		"error": {networktest.Step{Code: 7, Msg: "no"}, "network add: plugin fake: no (after "},
		"hang":  {networktest.Step{Hang: true, Fork: 1000, Stderr: "hm"}, "plugin fake: killed: took longer than "},
		"die":   {networktest.Step{Die: 9}, "plugin fake: killed by signal 9"},
	} {
		t.Run(name, func(t *testing.T) {
			w := &wire{Network: w.Network, t: t, dir: w.dir, times: w.times}
			s := networktest.Script{On: map[string]networktest.Step{"ADD": c.step}}
			if err := networktest.Install(w.dir+"/bin", "fake", exe, s); err != nil {
				t.Fatal(err)
			}
			a := w.attachment("e2e-fail")
			a.Ports = []pod.Port{{Protocol: pod.TCP, PodPort: 80, HostPort: 18083}}
			_, err := w.open(3*time.Second).Add(t.Context(), a) // half of it is for undoing
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
			t.Log(err)
			if held := w.held(); len(held) != 0 {
				t.Errorf("leases: %v", held)
			}
			if rules := w.rules(a.Pod); rules != "" {
				t.Errorf("rules: %s", rules)
			}
			if out := sh(t, "ip -n e2e-fail -br link show"); strings.Contains(out, "eth0") {
				t.Error(out)
			}
		})
	}
}
