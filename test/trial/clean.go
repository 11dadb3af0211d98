package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

func runClean(ctx context.Context, t *trial, args []string) error {
	if err := t.flags("clean").Parse(args); err != nil {
		return err
	}
	image, err := t.image()
	if err != nil {
		return err
	}
	inUse := map[string]bool{image.dir: true}
	vms, err := filepath.Glob(t.cache.path("vm", "*", "qemu.pid"))
	if err != nil {
		return fmt.Errorf("list VMs: %w", err)
	}
	var stale []string
	for _, pid := range vms {
		v := vm{filepath.Base(filepath.Dir(pid)), filepath.Dir(pid)}
		if v.pid() != 0 {
			inUse[t.cache.path("image-"+v.read("image"))] = true
			continue
		}
		stale = append(stale, v.path("disk.qcow2"))
	}
	for _, pattern := range []string{"image-*", "building-*", "peer/building-*", "peer/*-*", "passed/*"} {
		found, err := filepath.Glob(t.cache.path(pattern))
		if err != nil {
			return fmt.Errorf("list the cache: %w", err)
		}
		for _, path := range found {
			if !inUse[path] && old(path) {
				stale = append(stale, path)
			}
		}
	}
	for _, path := range stale {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if !exists(path) {
			continue
		}
		t.say.line("remove %s", strings.TrimPrefix(path, string(t.cache)+"/"))
		if err := os.RemoveAll(path); err != nil {
			return fmt.Errorf("clean the cache: %w", err)
		}
	}
	return nil
}

// old tells what nobody is making or has used for a day. Which image or peer is
// wanted differs from branch to branch, so that another one is not yet waste.
func old(path string) bool {
	info, err := os.Stat(path)
	return err == nil && time.Since(info.ModTime()) > 24*time.Hour
}
