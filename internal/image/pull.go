package image

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/pkg/blobinfocache/none"
	"go.podman.io/image/v5/types"
	"golang.org/x/sys/unix"

	"gantry/internal/disk"
	"gantry/internal/pod"
)

// Pull makes sure that the store has the image, and that its name stands for what
// the registry has under it now. Pulls of one image with the same credentials are
// one; layers are shared between all pulls, of other processes too.
func (s *Store) Pull(ctx context.Context, ref string, o PullOptions) (*Image, error) {
	named, err := parseName(ref)
	if err != nil {
		return nil, fmt.Errorf("pull image: %w", err)
	}
	if o.Policy == IfMissing || o.Policy == Never {
		img, err := s.Image(named.String())
		if err == nil && (o.Policy == Never || s.missing(img) == "") {
			return img, nil
		}
		if o.Policy == Never || err != nil && !errors.Is(err, pod.ErrNotFound) {
			return nil, fmt.Errorf("pull image: policy is %s: %w", o.Policy, err)
		}
	}
	hex, err := s.join(ctx, flightKey(named, o), o.Progress, func(ctx context.Context, progress func(Progress)) (string, error) {
		p := &pull{store: s, named: named, options: o, begun: time.Now(), progress: progress}
		return p.run(ctx)
	})
	if err != nil {
		return nil, fmt.Errorf("pull image %s: %w", named, hideQueries(err))
	}
	img, err := s.Image(idPrefix + hex)
	if err != nil {
		return nil, fmt.Errorf("pull image %s: removed right after the pull: %w", named, err)
	}
	return img, nil
}

// pull is one pull under way.
type pull struct {
	store    *Store
	named    reference.Named
	options  PullOptions
	begun    time.Time
	progress func(Progress)

	remote *remote
	budget *budget // of all layers under way together
	mu     sync.Mutex
	made   []string // layers that this pull converted
}

// stage runs a step. Its error says which step failed and after how long.
func stage(name string, step func() error) error {
	begun := time.Now()
	err := step()
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w (after %s)", name, explain(err), time.Since(begun).Round(time.Millisecond))
}

// explain adds what the bare error of a full disk leaves out.
func explain(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("the disk is full: %w", err)
	}
	return err
}

// run pulls and returns the image's ID.
func (p *pull) run(ctx context.Context) (string, error) {
	p.progress(Progress{Stage: StageManifest})
	err := stage("read manifest", func() (err error) {
		sys, err := p.store.system(p.named, p.options)
		if err != nil {
			return err
		}
		p.remote, err = p.openRemote(ctx, sys)
		return err
	})
	if err != nil {
		return "", err
	}
	defer p.remote.source.Close()
	if err := p.fetch(ctx); err != nil {
		return "", errors.Join(err, p.cleanUp(ctx, err))
	}
	id := hexOf(p.remote.configID.String())
	p.progress(Progress{Stage: StageDone, Layers: len(p.remote.layers)})
	p.store.log.Info("image pulled", "image", p.named.String(), "id", id, "layers", len(p.remote.layers),
		"converted", len(p.made), "took", time.Since(p.begun).Round(time.Millisecond))
	return id, nil
}

// openRemote asks the registry. Manifests and config are small, so there is one
// bound for all of it: kubelet waits for a pull without one, and with it for all
// pulls that are behind.
func (p *pull) openRemote(ctx context.Context, sys *types.SystemContext) (*remote, error) {
	late := fmt.Errorf("no answer within %s: %w", p.store.cfg.Patience, pod.ErrUnavailable)
	ctx, cancel := context.WithTimeoutCause(ctx, p.store.cfg.Patience, late)
	defer cancel()
	r, err := openRemote(ctx, p.named, sys)
	if err != nil && context.Cause(ctx) == late {
		return nil, fmt.Errorf("%w: %w", late, err)
	}
	return r, err
}

// maxRounds bounds how often layers are fetched again because GC took them in the
// moment between two looks. Once is unlikely.
const maxRounds = 3

// fetch gets the layers and puts the image in place. While it runs, a workspace
// tells GC which layers it needs.
func (p *pull) fetch(ctx context.Context) (err error) {
	if ok, err := p.present(ctx); ok || err != nil {
		return err
	}
	note, err := p.store.work(ctx, pullPrefix+rand.Text())
	if err != nil {
		return fmt.Errorf("prepare: %w", err)
	}
	defer func() { err = errors.Join(err, note.close()) }()
	if err := disk.WriteNew(note.file(wantedFile), []byte(strings.Join(p.diffIDs(), "\n")), 0o600); err != nil {
		return fmt.Errorf("prepare: %w", err)
	}
	for range maxRounds {
		if err := p.layers(ctx); err != nil {
			return err
		}
		p.progress(Progress{Stage: StageStore, Layers: len(p.remote.layers)})
		var again bool
		err := stage("store image", func() (err error) {
			again, err = p.storeImage(ctx)
			return err
		})
		if err != nil || !again {
			return err
		}
	}
	return fmt.Errorf("store image: layers go away as fast as they come: %w", pod.ErrState)
}

// present gives the names to an image that is there already.
func (p *pull) present(ctx context.Context) (bool, error) {
	hex := hexOf(p.remote.configID.String())
	l, err := p.store.lock(ctx)
	if err != nil {
		return false, err
	}
	defer l.Unlock()
	if !p.store.complete(hex) {
		return false, nil
	}
	return true, stage("store names", p.name)
}

func (p *pull) diffIDs() []string {
	var ids []string
	for _, b := range p.remote.layers {
		ids = append(ids, hexOf(b.diffID.String()))
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}

// layers fetches all layers, some at a time. The first error ends the others.
func (p *pull) layers(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	p.budget = newBudget(p.store.ledger)
	defer p.budget.close()
	slots := make(chan struct{}, p.store.cfg.Parallel)
	var all sync.WaitGroup
	for i := range p.remote.layers {
		if slices.ContainsFunc(p.remote.layers[:i], func(b blob) bool { return b.diffID == p.remote.layers[i].diffID }) {
			continue // the same layer twice in one image
		}
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
		}
		if ctx.Err() != nil {
			break
		}
		all.Go(func() {
			defer func() { <-slots }()
			name := fmt.Sprintf("fetch layer %d of %d (%s)", i+1, len(p.remote.layers), p.remote.layers[i].digest)
			layer := func() error { return p.layer(ctx, i) }
			if err := stage(name, func() error { return p.store.noPanic(name, layer) }); err != nil {
				cancel(err)
			}
		})
	}
	all.Wait()
	return context.Cause(ctx)
}

// layer fetches and converts one layer, unless it is there, or another process
// makes it meanwhile.
func (p *pull) layer(ctx context.Context, i int) (err error) {
	b := p.remote.layers[i]
	hex := hexOf(b.diffID.String())
	if disk.Exists(p.store.layerPath(hex)) {
		p.progress(Progress{Stage: StageLayer, Layer: i + 1, Layers: len(p.remote.layers), Bytes: b.size, Total: b.size, Here: true})
		return nil
	}
	w, err := p.store.work(ctx, layerPrefix+hex)
	if err != nil {
		return fmt.Errorf("prepare: %w", err)
	}
	defer func() { err = errors.Join(err, w.close()) }()
	if disk.Exists(p.store.layerPath(hex)) {
		return nil
	}
	if err := p.download(ctx, i, w); err != nil {
		return err
	}
	if err := disk.Move(w.file(mergedFile), p.store.layerPath(hex)); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.made = append(p.made, hex)
	return nil
}

// download streams a blob through the converter into the workspace.
func (p *pull) download(ctx context.Context, i int, w *workspace) (err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	patience := p.store.cfg.Patience
	stalled := time.AfterFunc(patience, func() {
		cancel(fmt.Errorf("download: nothing came for %s: %w", patience, pod.ErrUnavailable))
	})
	defer stalled.Stop()
	defer func() {
		if cause := context.Cause(ctx); err != nil && cause != nil && !errors.Is(cause, errAborted) {
			err = cause
		}
	}()
	b := p.remote.layers[i]
	body, _, err := p.remote.source.GetBlob(ctx, p.remote.infos[i], none.NoCache)
	if err != nil {
		return fmt.Errorf("download: %w", kind(err))
	}
	defer body.Close()
	out, err := w.create(mergedFile)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	alive := func() { stalled.Reset(patience) }
	in := &blobReader{ctx: ctx, abort: cancel, body: body, blob: b, image: p.budget, alive: alive, progress: func(n int64) {
		stalled.Reset(patience)
		p.progress(Progress{Stage: StageLayer, Layer: i + 1, Layers: len(p.remote.layers), Bytes: n, Total: b.size})
	}}
	if p.store.cfg.KeepBlobs {
		keep, err := w.create("blob")
		if err != nil {
			return err
		}
		defer keep.Close()
		in.copyTo = keep
	}
	a, err := convert(in, out, p.store.cfg.MaxLayerBytes)
	if err != nil {
		return err
	}
	if a.devices > 0 {
		p.store.log.Info("device nodes of a layer left out", "image", p.named.String(), "layer", b.diffID.String(), "nodes", a.devices)
	}
	if in.copyTo == nil {
		return nil
	}
	return p.keep(w, b)
}

// keep puts the compressed blob among the others.
func (p *pull) keep(w *workspace, b blob) error {
	f, err := os.Open(w.file("blob"))
	if err != nil {
		return err
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(w.file("blob"), p.store.blobPath(hexOf(b.digest.String()))); err != nil {
		return err
	}
	return disk.SyncDir(p.store.dir(dirBlobs))
}

// cleanUp undoes what a failed pull made, if trying again would not need it: the
// content is wrong, or there is no room. After a broken connection the finished
// layers stay, for the next attempt or GC.
func (p *pull) cleanUp(ctx context.Context, reason error) error {
	full := errors.Is(reason, unix.ENOSPC) || errors.Is(reason, unix.EDQUOT)
	if !full && !errors.Is(reason, pod.ErrInvalid) || len(p.made) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	l, err := p.store.lock(ctx)
	if err != nil {
		return fmt.Errorf("clean up: %w", err)
	}
	defer l.Unlock()
	x, err := p.store.read()
	if err != nil {
		return fmt.Errorf("clean up: %w", err)
	}
	files := fileSet{layers: map[string]bool{}, blobs: map[string]bool{}}
	for _, hex := range p.made {
		files.layers[hex] = true
	}
	for _, b := range p.remote.layers {
		files.blobs[hexOf(b.digest.String())] = true
	}
	for digest := range p.remote.manifests {
		files.blobs[hexOf(digest)] = true
	}
	files.blobs[hexOf(p.remote.configID.String())] = true
	if _, err := p.store.sweepFiles(x, files, false); err != nil {
		return fmt.Errorf("clean up: %w", err)
	}
	return nil
}

// name lets the pulled name, and the name by digest, stand for the image.
func (p *pull) name() error {
	id := p.remote.configID.String()
	byDigest, err := reference.WithDigest(reference.TrimNamed(p.named), p.remote.top)
	if err != nil {
		return err
	}
	for name := range maps.Keys(map[string]bool{p.named.String(): true, byDigest.String(): true}) {
		if err := p.store.writeRef(name, id); err != nil {
			return err
		}
	}
	return nil
}
