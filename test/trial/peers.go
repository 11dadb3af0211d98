package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// peer is a program that is not ours and that Gantry is run with or measured
// against, built from its own Go module below test/.
type peer struct {
	module   string // directory below test/
	packages []string
	tests    []string          // packages of which the test programs are wanted
	files    []string          // of k8s.io/kubernetes, that go with the programs
	renamed  map[string]string // programs that go build names after a directory
	ldflags  string
	takes    string
}

func kubeletPeer() peer {
	return peer{
		module:   "kubelet",
		packages: []string{"k8s.io/kubernetes/cmd/kubelet"},
		ldflags: "-s -w -X k8s.io/component-base/version.gitVersion=v1.37.2" +
			" -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=37",
		takes: "about four minutes of two processors",
	}
}

func agnhostPeer() peer {
	return peer{
		module:   "kubelet",
		packages: []string{"k8s.io/kubernetes/test/images/agnhost", "k8s.io/kubernetes/test/images/sample-device-plugin"},
		// A certificate for localhost that tests have in common, and its key.
		files:   []string{"test/images/agnhost/porter/localhost.crt", "test/images/agnhost/porter/localhost.key"},
		ldflags: "-s -w",
		takes:   "a minute after the kubelet's build",
	}
}

// controlPlanePeer is what makes a node one of a cluster: an API server and its etcd.
// Nothing schedules or controls: a test names the node of its pods itself.
func controlPlanePeer() peer {
	return peer{
		module:   "kubelet",
		packages: []string{"k8s.io/kubernetes/cmd/kube-apiserver", "go.etcd.io/etcd/server/v3"},
		renamed:  map[string]string{"server": "etcd"},
		ldflags:  kubeletPeer().ldflags,
		takes:    "two minutes of two processors after the kubelet's build",
	}
}

// nodeSuitePeer is Kubernetes' node suite: the program that runs specs side by side,
// and the specs, which bring an API server and etcd with them.
func nodeSuitePeer() peer {
	return peer{
		module:   "nodesuite",
		packages: []string{"github.com/onsi/ginkgo/v2/ginkgo"},
		tests:    []string{"k8s.io/kubernetes/test/e2e_node"},
		ldflags:  kubeletPeer().ldflags,
		takes:    "about four minutes of two processors",
	}
}

func containerdPeer() peer {
	const root = "github.com/containerd/containerd/v2"
	return peer{
		module:   "containerd",
		packages: []string{root + "/cmd/containerd", root + "/cmd/containerd-shim-runc-v2"},
		ldflags:  "-s -w -X " + root + "/version.Version=v2.4.2",
		takes:    "about a minute",
	}
}

// gvisorPeer is an OCI runtime that is a kernel of its own. Debian 13's is too old for the
// network of Debian 13's kernel.
func gvisorPeer() peer {
	const root = "gvisor.dev/gvisor/runsc"
	return peer{
		module:   "gvisor",
		packages: []string{root},
		ldflags:  "-s -w -X " + root + "/version.version=20260905",
		takes:    "about two minutes of two processors",
	}
}

func runKubelet(ctx context.Context, t *trial, args []string) error {
	return runPeer(ctx, t, "kubelet", kubeletPeer(), args)
}

func runAgnhost(ctx context.Context, t *trial, args []string) error {
	return runPeer(ctx, t, "agnhost", agnhostPeer(), args)
}

func runControlPlane(ctx context.Context, t *trial, args []string) error {
	return runPeer(ctx, t, "controlplane", controlPlanePeer(), args)
}

func runContainerd(ctx context.Context, t *trial, args []string) error {
	return runPeer(ctx, t, "containerd", containerdPeer(), args)
}

func runGVisor(ctx context.Context, t *trial, args []string) error {
	return runPeer(ctx, t, "gvisor", gvisorPeer(), args)
}

// runPeer builds a peer and puts it into the VM's /usr/local/bin if that runs.
func runPeer(ctx context.Context, t *trial, name string, p peer, args []string) error {
	flags := t.flags(name)
	buildOnly := flags.Bool("build-only", false, "do not put it into the VM")
	if err := flags.Parse(args); err != nil {
		return err
	}
	dir, err := p.build(ctx, t)
	if err != nil {
		return err
	}
	v := t.vm()
	if *buildOnly || v.pid() == 0 {
		fmt.Println(dir)
		return nil
	}
	return t.pushPeer(ctx, v, name, dir)
}

func (t *trial) pushPeer(ctx context.Context, v vm, name, dir string) error {
	return t.say.step(fmt.Sprintf("push %s to %s:/usr/local/bin", name, v.name), func() error {
		return v.push(ctx, dir, "/usr/local/bin")
	})
}

// peersToo puts the peers that suites want into a VM that has none, if they are built.
func (t *trial) peersToo(ctx context.Context, v vm, suites []string) error {
	wanted := map[string]peer{} // by a program
	for _, suite := range suites {
		whole, _, _ := wholeOf(suite)
		switch packageOf(whole) {
		case "node":
			wanted["kubelet"] = kubeletPeer()
		case "e2e":
			wanted["runsc"] = gvisorPeer()
		case clusterSuite:
			wanted["kubelet"], wanted["kube-apiserver"] = kubeletPeer(), controlPlanePeer()
		}
	}
	for program, p := range wanted {
		if _, err := v.output(ctx, "test -e /usr/local/bin/"+program); err == nil {
			continue
		}
		dir, err := p.cached(ctx, t)
		if err != nil {
			return err
		}
		if !exists(dir) {
			continue // the tests that lack it say so
		}
		if err := t.pushPeer(ctx, v, program, dir); err != nil {
			return err
		}
	}
	return nil
}

// cached is the directory of the cache with the peer's programs, if they were built
// before from the same inputs.
func (p peer) cached(ctx context.Context, t *trial) (string, error) {
	source, err := p.source()
	if err != nil {
		return "", err
	}
	version, err := exec.CommandContext(ctx, "go", "version").Output()
	if err != nil {
		return "", fmt.Errorf("ask go for its version: %w", err)
	}
	inputs := slices.Concat([]string{string(version), p.ldflags}, p.packages, p.tests, p.files)
	for _, name := range []string{"go.mod", "go.sum"} {
		data, err := os.ReadFile(filepath.Join(source, name))
		if err != nil {
			return "", fmt.Errorf("hash the inputs of %s: %w", p.module, err)
		}
		inputs = append(inputs, string(data))
	}
	return t.cache.path("peer", filepath.Base(p.packages[0])+"-"+digest(inputs...)), nil
}

// source is the directory of the peer's module.
func (p peer) source() (string, error) {
	repo, err := repository()
	return filepath.Join(repo, "test", p.module), err
}

// build returns the directory with the peer's programs, and builds them unless the
// cache has them.
func (p peer) build(ctx context.Context, t *trial) (string, error) {
	source, err := p.source()
	if err != nil {
		return "", err
	}
	out, err := p.cached(ctx, t)
	if err != nil {
		return "", err
	}
	if exists(out) {
		t.say.line("%s is in the cache", filepath.Base(p.packages[0]))
		now := time.Now() // for "trial clean"
		return out, os.Chtimes(out, now, now)
	}
	if err := os.MkdirAll(t.cache.path("peer"), 0o755); err != nil {
		return "", fmt.Errorf("make the cache: %w", err)
	}
	unlock, err := t.cache.lock("peer/" + p.module)
	if err != nil {
		return "", err
	}
	defer unlock()
	if exists(out) {
		return out, nil
	}
	work, err := os.MkdirTemp(t.cache.path("peer"), "building-")
	if err != nil {
		return "", fmt.Errorf("make the cache: %w", err)
	}
	defer os.RemoveAll(work)
	err = t.say.step(fmt.Sprintf("build %s (%s)", strings.Join(slices.Concat(p.packages, p.tests), " "), p.takes), func() error {
		if err := p.compile(ctx, source, "build", work+"/", p.packages...); err != nil {
			return err
		}
		if err := p.copyFiles(ctx, source, work); err != nil {
			return err
		}
		for from, to := range p.renamed {
			if err := os.Rename(filepath.Join(work, from), filepath.Join(work, to)); err != nil {
				return err
			}
		}
		for _, pkg := range p.tests {
			// Unless it is told not to, go vets all that a test is made of, here 1,700 packages.
			if err := p.compile(ctx, source, "test", filepath.Join(work, filepath.Base(pkg)+".test"), "-c", "-vet=off", pkg); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	if err := os.Chmod(work, 0o755); err != nil {
		return "", err
	}
	return out, os.Rename(work, out)
}

func (p peer) compile(ctx context.Context, source, command, out string, args ...string) error {
	args = append([]string{"-n", "19", "go", command, "-trimpath", "-ldflags", p.ldflags, "-o", out}, args...)
	cmd := exec.CommandContext(ctx, "nice", args...)
	cmd.Dir = source
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-mod=readonly", "GOWORK=off")
	return runQuiet(cmd)
}

// copyFiles takes files out of the module that the programs are built of.
func (p peer) copyFiles(ctx context.Context, source, to string) error {
	if len(p.files) == 0 {
		return nil
	}
	cmd := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", "k8s.io/kubernetes")
	cmd.Dir = source
	dir, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("find the files of k8s.io/kubernetes: %w", err)
	}
	for _, name := range p.files {
		data, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(dir)), name))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(to, filepath.Base(name)), data, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// repository is the root of the source tree that trial is run in.
func repository() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("find the repository: %w", err)
	}
	for {
		data, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && strings.HasPrefix(string(data), "module gantry\n") {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", fmt.Errorf("find the repository: no go.mod of module gantry here or above; run it in Gantry's source tree")
		}
		dir = parent
	}
}
