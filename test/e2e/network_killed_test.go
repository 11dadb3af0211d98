//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gantry/internal/network"
	"gantry/internal/pod"
)

// victimEnv makes TestNetworkCallerKilled the program that it kills.
const victimEnv = "GANTRY_E2E_NETWORK_VICTIM"

type victim struct {
	Dir, NetNS, Lock string
	Pod              pod.ID
	Del              bool // DEL after ADD, again and again
}

// TestNetworkCallerKilled kills the caller of Add, or of Add and Del in turn, at
// any moment. Whoever gets its lock next finds that no plugin runs any more, and
// DEL leaves nothing.
func TestNetworkCallerKilled(t *testing.T) {
	if os.Getenv(victimEnv) == "" {
		guard(t)
	} else {
		beVictim(t)
		return
	}
	w := newWire(t, dualStack, "")
	start := time.Now()
	warm := w.attachment("e2e-warm")
	r := w.add(warm)
	whole := time.Since(start)
	if err := w.Del(t.Context(), warm, &r); err != nil {
		t.Fatal(err)
	}
	var waited time.Duration
	rounds := 9 // each takes ten seconds of an emulated machine
	for i := range rounds {
		a := w.attachment("e2e-victim")
		v := victim{Dir: w.dir, NetNS: a.NetNS, Lock: w.dir + "/lock", Pod: a.Pod, Del: i%2 == 1}
		killAfter(t, v, rand.N(whole*3/2))
		waited = max(waited, takeOver(t, w, v))
		if i%3 == 0 {
			sh(t, "ip netns del e2e-victim") // sometimes the namespace is gone as well
		}
		if err := w.open(time.Minute).Del(t.Context(), network.Attachment{Pod: a.Pod, NetNS: a.NetNS}, nil); err != nil {
			t.Error(err)
		}
		if held, rules := w.held(), w.rules(a.Pod); len(held) != 0 || rules != "" {
			t.Errorf("round %d: leases %v, rules %s", i, held, rules)
		}
		sh(t, "ip netns del e2e-victim 2>/dev/null || true")
	}
	t.Logf("%d rounds; ADD takes %s; plugins of killed callers went on for at most %s", rounds, whole.Round(time.Millisecond), waited.Round(time.Millisecond))
}

// killAfter runs a victim and kills it a while after it has the lock.
func killAfter(t *testing.T, v victim, d time.Duration) {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, "-test.run", "^TestNetworkCallerKilled$")
	cmd.Env = append(os.Environ(), victimEnv+"="+string(data))
	var said strings.Builder
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, 5*time.Second, "the victim has the lock", func() bool { return lockFree(t, v.Lock, false) == nil })
	time.Sleep(d)
	if err := cmd.Process.Kill(); err != nil {
		t.Error(err)
	}
	if err := cmd.Wait(); err == nil || said.Len() > 0 {
		t.Errorf("victim: %v %s", err, said.String())
	}
}

// takeOver waits for the lock, as the next caller does, and tells how long.
func takeOver(t *testing.T, w *wire, v victim) time.Duration {
	t.Helper()
	start := time.Now()
	var lock *os.File
	eventually(t, 10*time.Second, "the plugin of a killed caller ends", func() bool {
		lock = lockFree(t, v.Lock, true)
		return lock != nil
	})
	took := time.Since(start)
	lock.Close()
	if out := sh(t, "grep -zls CNI_CONTAINERID="+string(v.Pod)+" /proc/[0-9]*/environ || true"); out != "" {
		t.Errorf("a plugin still runs: %s", out)
	}
	return took
}

// lockFree returns the lock, taken, if nobody has it.
func lockFree(t *testing.T, path string, must bool) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
		f.Close()
		return nil
	}
	if !must {
		defer f.Close()
	}
	return f
}

func beVictim(t *testing.T) {
	var v victim
	if err := json.Unmarshal([]byte(os.Getenv(victimEnv)), &v); err != nil {
		t.Fatal(err)
	}
	w := &wire{t: t, dir: v.Dir, times: &pluginTimes{took: map[string][]time.Duration{}}}
	n := w.open(time.Minute)
	lock := lockFree(t, v.Lock, true)
	for lock == nil { // the other side is only looking
		lock = lockFree(t, v.Lock, true)
	}
	a := network.Attachment{
		Pod: v.Pod, Name: "victim", Namespace: "e2e", NetNS: v.NetNS, Lock: lock,
		Ports: []pod.Port{{Protocol: pod.TCP, PodPort: 80, HostPort: 18085}},
	}
	for {
		r, err := n.Add(context.Background(), a)
		if err == nil && v.Del {
			err = n.Del(context.Background(), a, &r)
		}
		if err != nil {
			os.Stderr.WriteString(err.Error())
			time.Sleep(time.Hour)
		}
		if !v.Del {
			time.Sleep(time.Hour)
		}
	}
}
