package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

func runPush(ctx context.Context, t *trial, args []string) error {
	flags := t.flags("push")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() != 2 {
		return fmt.Errorf("push: want SRC and DST, got %d arguments", flags.NArg())
	}
	v := t.vm()
	if err := v.mustRun(); err != nil {
		return err
	}
	src, dst := flags.Arg(0), flags.Arg(1)
	return t.say.step(fmt.Sprintf("push %s to %s:%s", src, v.name, dst), func() error { return v.push(ctx, src, dst) })
}

func runPull(ctx context.Context, t *trial, args []string) error {
	flags := t.flags("pull")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() != 2 {
		return fmt.Errorf("pull: want SRC and DST, got %d arguments", flags.NArg())
	}
	v := t.vm()
	if err := v.mustRun(); err != nil {
		return err
	}
	src, dst := flags.Arg(0), flags.Arg(1)
	return t.say.step(fmt.Sprintf("pull %s:%s to %s", v.name, src, dst), func() error { return v.pull(ctx, src, dst) })
}

// push copies a file, or the contents of a directory, into the VM. A file
// replaces its target by rename, so that a running program can be replaced.
func (v vm) push(ctx context.Context, src, dst string) error {
	info, err := os.Stat(src)
	if err != nil {
		return err
	}
	if info.IsDir() {
		return v.pushTree(ctx, src, dst)
	}
	file, err := os.Open(src)
	if err != nil {
		return err
	}
	defer file.Close()
	if strings.HasSuffix(dst, "/") {
		dst += filepath.Base(src)
	}
	command := fmt.Sprintf(`d=%s; [ -d "$d" ] && d="$d"/%s; mkdir -p "$(dirname "$d")" && cat >"$d.pushed" && chmod %o "$d.pushed" && mv -f "$d.pushed" "$d"`,
		quote(dst), quote(filepath.Base(src)), info.Mode().Perm())
	return v.stream(ctx, command, file, os.Stdout, os.Stderr)
}

// pushTree unpacks the contents of the directory src below dst, owned by root.
// tar unlinks a file before it makes another of that name, so that a running
// program can be replaced.
func (v vm) pushTree(ctx context.Context, src, dst string) error {
	tar := exec.CommandContext(ctx, "tar", "-C", src, "--owner=0", "--group=0", "-cf", "-", ".")
	tar.Stderr = os.Stderr
	pipe, err := tar.StdoutPipe()
	if err != nil {
		return err
	}
	if err := tar.Start(); err != nil {
		return err
	}
	command := fmt.Sprintf("mkdir -p %[1]s && tar -C %[1]s --keep-directory-symlink --no-overwrite-dir --warning=no-timestamp -xf -", quote(dst))
	if err := v.stream(ctx, command, pipe, os.Stdout, os.Stderr); err != nil {
		return err
	}
	return tar.Wait()
}

// pull copies a file, or a directory with its name, out of the VM.
func (v vm) pull(ctx context.Context, src, dst string) error {
	kind, err := v.output(ctx, fmt.Sprintf("if [ -d %[1]s ]; then echo dir; elif [ -e %[1]s ]; then echo file; fi", quote(src)))
	if err != nil {
		return err
	}
	switch strings.TrimSpace(kind) {
	case "dir":
		return v.pullTree(ctx, src, dst)
	case "file":
	default:
		return fmt.Errorf("%s: not in the VM", src)
	}
	if info, err := os.Stat(dst); err == nil && info.IsDir() {
		dst = filepath.Join(dst, filepath.Base(src))
	}
	file, err := os.OpenFile(dst, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	if err := v.stream(ctx, "cat "+quote(src), nil, file, os.Stderr); err != nil {
		file.Close()
		return err
	}
	return file.Close()
}

func (v vm) pullTree(ctx context.Context, src, dst string) error {
	if err := os.MkdirAll(dst, 0o755); err != nil {
		return err
	}
	untar := exec.CommandContext(ctx, "tar", "-C", dst, "-xf", "-")
	untar.Stderr = os.Stderr
	pipe, err := untar.StdinPipe()
	if err != nil {
		return err
	}
	if err := untar.Start(); err != nil {
		return err
	}
	if err := v.stream(ctx, "tar -C "+quote(src)+" -cf - .", nil, pipe, os.Stderr); err != nil {
		return err
	}
	if err := pipe.Close(); err != nil {
		return err
	}
	return untar.Wait()
}
