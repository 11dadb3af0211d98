package guest

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"gantry/internal/guest/guestpb"
)

// Update changes limits of an app.
func (a *Agent) Update(_ context.Context, r *guestpb.UpdateRequest) (*guestpb.UpdateResponse, error) {
	if err := named(r.App); err != nil {
		return nil, err
	}
	one, err := a.find(r.App)
	if err != nil {
		return nil, err
	}
	if err := a.groups.write(r.App, r.Files); err != nil {
		return nil, err
	}
	a.mu.Lock()
	one.oomScore = int(r.OomScoreAdj)
	a.mu.Unlock()
	return &guestpb.UpdateResponse{}, a.groups.rescore(r.App, int(r.OomScoreWas), int(r.OomScoreAdj))
}

func (a *Agent) oomScore(one *app) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return one.oomScore
}

// Stats reads what an app uses, or the machine.
func (a *Agent) Stats(ctx context.Context, r *guestpb.StatsRequest) (*guestpb.StatsResponse, error) {
	if r.App != "" {
		if err := named(r.App); err != nil {
			return nil, err
		}
	}
	files, err := a.groups.read(r.App, r.Files)
	if err != nil {
		return nil, err
	}
	out := &guestpb.StatsResponse{Files: files, Time: time.Now().UnixNano()}
	var fs unix.Statfs_t
	if err := unix.Statfs(Scratch, &fs); err == nil { // else nothing is known of it
		out.FsBytes, out.FsInodes, out.FsInodesFree = fs.Blocks*uint64(fs.Bsize), fs.Files, fs.Ffree
	}
	if r.App == "" {
		return out, nil
	}
	out.Processes = uint64(len(a.groups.processes(r.App)))
	if r.Disk {
		if out.DiskBytes, out.DiskInodes, err = usage(ctx, filepath.Join(Scratch, r.App)); err != nil {
			return nil, fmt.Errorf("measure the writable layer: %w", err)
		}
	}
	return out, nil
}
