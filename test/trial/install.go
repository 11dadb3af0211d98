package main

import (
	"bytes"
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// node is what makes the VM a node: a CNI network and a registry to pull from.
// It is pushed and not built in, so that changing it costs no new image.
//
//go:embed all:node
var node embed.FS

// nodeUnits are the units of the node that run from the installation on.
const nodeUnits = "trial-masquerade.service trial-registry.service"

func runInstall(ctx context.Context, t *trial, args []string) error {
	flags := t.flags("install")
	registryOnly := flags.Bool("node-only", false, "only the registry and the CNI network, without Gantry")
	if err := flags.Parse(args); err != nil {
		return err
	}
	v := t.vm()
	if err := v.mustRun(); err != nil {
		return err
	}
	if err := t.installNode(ctx, v); err != nil {
		return err
	}
	if *registryOnly {
		return nil
	}
	return t.installGantry(ctx, v)
}

// installNode puts the registry and the CNI network into the VM.
func (t *trial) installNode(ctx context.Context, v vm) error {
	repo, err := repository()
	if err != nil {
		return err
	}
	tree, err := os.MkdirTemp("", "trial-node-")
	if err != nil {
		return fmt.Errorf("make a directory for the node's files: %w", err)
	}
	defer os.RemoveAll(tree)
	if err := copyTree(node, "node", tree); err != nil {
		return fmt.Errorf("copy the node's files: %w", err)
	}
	err = t.say.step("build the registry", func() error {
		return goBuild(ctx, repo, "-o", filepath.Join(tree, "usr/local/lib/trial/registry"), "./test/registry")
	})
	if err != nil {
		return err
	}
	return t.say.step("install the registry and the CNI network", func() error {
		if err := v.push(ctx, tree, "/"); err != nil {
			return err
		}
		return v.show(ctx, "systemctl daemon-reload && systemctl enable -q "+nodeUnits+" && systemctl restart "+nodeUnits)
	})
}

// installGantry builds the product as a packager would, with make, and puts the
// tree into the VM.
func (t *trial) installGantry(ctx context.Context, v vm) error {
	repo, err := repository()
	if err != nil {
		return err
	}
	for _, target := range []string{"build", "install"} {
		if !makeHas(ctx, repo, target) {
			t.say.line("Gantry is NOT installed: the Makefile has no target %q yet", target)
			return nil
		}
	}
	tree, err := os.MkdirTemp("", "trial-install-")
	if err != nil {
		return fmt.Errorf("make a directory for the installation: %w", err)
	}
	defer os.RemoveAll(tree)
	if err := t.makeTree(ctx, repo, tree); err != nil {
		return err
	}
	units, err := installedUnits(tree)
	if err != nil {
		return err
	}
	return t.say.step("install Gantry in VM "+v.name, func() error {
		if err := v.push(ctx, tree, "/"); err != nil {
			return err
		}
		return v.show(ctx, activation(units))
	})
}

// makeTree runs make, one trial at a time: the programs are built in the repository.
func (t *trial) makeTree(ctx context.Context, repo, tree string) error {
	unlock, err := t.cache.lock("make")
	if err != nil {
		return err
	}
	defer unlock()
	for _, args := range [][]string{{"build"}, {"install", "DESTDIR=" + tree}} {
		err := t.say.step("make "+args[0], func() error {
			cmd := exec.CommandContext(ctx, "make", append([]string{"-s"}, args...)...)
			cmd.Dir = repo
			return runQuiet(cmd)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// activation is what a package's post-install script does: make its users and
// directories, load its units, open its sockets, and put the new programs in
// the place of running ones. No pod is touched.
func activation(units []string) string {
	lines := []string{
		"set -e",
		"systemctl daemon-reload",
		"systemd-sysusers",
		"udevadm control --reload",
		"systemd-tmpfiles --create --prefix=/run/gantry --prefix=/var/lib/gantry --prefix=/etc/gantry || true",
	}
	var enable, restart []string
	for _, unit := range units {
		switch filepath.Ext(unit) {
		case ".socket", ".timer", ".path":
			enable = append(enable, unit)
		case ".service":
			restart = append(restart, unit)
		}
	}
	if len(enable) > 0 {
		lines = append(lines, "systemctl enable -q "+strings.Join(enable, " "), "systemctl start "+strings.Join(enable, " "))
	}
	if len(restart) > 0 {
		lines = append(lines, "systemctl reset-failed "+strings.Join(restart, " ")+" 2>/dev/null || true", "systemctl try-restart "+strings.Join(restart, " "))
	}
	return strings.Join(lines, "\n")
}

// installedUnits lists the product's units that can be started by their names.
func installedUnits(tree string) ([]string, error) {
	var units []string
	for _, dir := range []string{"usr/lib/systemd/system", "lib/systemd/system", "usr/local/lib/systemd/system", "etc/systemd/system"} {
		entries, err := os.ReadDir(filepath.Join(tree, dir))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list the installed units: %w", err)
		}
		for _, entry := range entries {
			if strings.HasPrefix(entry.Name(), "gantry") && !entry.IsDir() && !strings.Contains(entry.Name(), "@") {
				units = append(units, entry.Name())
			}
		}
	}
	return units, nil
}

// makeHas asks make whether it knows a target, without making it.
func makeHas(ctx context.Context, repo, target string) bool {
	cmd := exec.CommandContext(ctx, "make", "-n", target, "DESTDIR=/nonexistent")
	cmd.Dir = repo
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	return cmd.Run() == nil || !strings.Contains(stderr.String(), "No rule to make target") && !strings.Contains(stderr.String(), "no makefile found") && !strings.Contains(stderr.String(), "No targets specified")
}

// goBuild builds a static program of this repository.
func goBuild(ctx context.Context, repo string, args ...string) error {
	cmd := exec.CommandContext(ctx, "go", append([]string{"build", "-trimpath", "-ldflags", "-s -w"}, args...)...)
	cmd.Dir = repo
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	return runQuiet(cmd)
}

// show runs a script in the VM and shows the user what it says.
func (v vm) show(ctx context.Context, script string) error {
	return v.stream(ctx, script, nil, os.Stderr, os.Stderr)
}
