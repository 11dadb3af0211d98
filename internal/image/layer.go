package image

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"

	"github.com/opencontainers/go-digest"

	"gantry/internal/image/erofs"
	"gantry/internal/pod"
)

// blob is a layer as a registry gives it.
type blob struct {
	digest digest.Digest
	diffID digest.Digest
	size   int64 // as the manifest says; -1 if it does not
}

// convert reads a blob to its end and writes the layer to a new file: verified,
// synced, not yet in its place.
func convert(in *blobReader, out *os.File, most int64) (*archive, error) {
	w, err := erofs.NewWriter(out, erofs.Options{UUID: uuid("layer", in.blob.diffID.String())})
	if err != nil {
		return nil, err
	}
	in.hash = sha256.New()
	a, err := in.convert(w, most)
	if err != nil {
		return nil, err
	}
	if _, err := w.Finish(a.root); err != nil {
		return nil, err
	}
	if err := out.Sync(); err != nil {
		return nil, fmt.Errorf("write layer: %w", err)
	}
	return a, nil
}

// uuid derives an image's UUID from what it is made of.
func uuid(kind, of string) [16]byte {
	sum := sha256.Sum256([]byte("gantry " + kind + " " + of))
	u := [16]byte(sum[:16])
	u[6] = u[6]&0x0f | 0x80 // version 8: of our own making
	u[8] = u[8]&0x3f | 0x80
	return u
}

// blobReader reads a blob, and checks its size and digest on the way.
type blobReader struct {
	ctx context.Context
	// abort ends ctx and with it the download, so that no stage waits for more.
	abort  context.CancelCauseFunc
	body   io.Reader
	blob   blob
	hash   hash.Hash
	copyTo io.Writer // if any, gets the blob as it is
	// image is what the image may still cost.
	image *budget
	read  int64
	// progress is told how much was read so far.
	progress func(int64)
	// alive is told that there is a reason why nothing is read.
	alive func()
}

// Read fails at once when there is more than was announced.
func (b *blobReader) Read(p []byte) (int, error) {
	if err := b.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := b.body.Read(p)
	b.read += int64(n)
	b.image.downloaded.Add(int64(n))
	if b.progress != nil {
		b.progress(b.read)
	}
	switch {
	case b.blob.size >= 0 && b.read > b.blob.size:
		return 0, fmt.Errorf("download is longer than the %d bytes of the manifest: %w", b.blob.size, errRefused)
	case err == io.EOF && b.read < b.blob.size:
		return n, fmt.Errorf("download ended after %d of %d bytes: %w", b.read, b.blob.size, pod.ErrUnavailable)
	case err != nil && err != io.EOF && b.ctx.Err() == nil:
		return n, fmt.Errorf("download ended after %d of %d bytes: %w: %w", b.read, b.blob.size, err, pod.ErrUnavailable)
	}
	return n, err
}

func (b *blobReader) see(p []byte) {
	b.hash.Write(p)
}

func (b *blobReader) convert(w *erofs.Writer, most int64) (*archive, error) {
	var in io.Reader = b
	if b.copyTo != nil {
		in = io.TeeReader(b, b.copyTo)
	}
	down := readAhead(in, b.see)
	defer down.Close()
	a, diffID, err := unpack(down, w, layerLimits(most, b.blob.size, b.image), b.reserve, func() { b.abort(errAborted) })
	if err != nil {
		err = b.blame(down, err)
		b.abort(errAborted)
		return nil, err
	}
	if err := b.verify(down); err != nil {
		return nil, err
	}
	if diffID == "" {
		diffID = b.digest()
	}
	if diffID != b.blob.diffID {
		return nil, fmt.Errorf("archive has digest %s, the image's config says %s: %w", diffID, b.blob.diffID, pod.ErrInvalid)
	}
	return a, nil
}

// reserve waits for the memory of a decompressor's window.
func (b *blobReader) reserve(window int64) (free func(), err error) {
	l := b.image.ledger
	if err := l.window(b.ctx, window, b.alive); err != nil {
		return nil, err
	}
	return func() { l.windows.Release(window) }, nil
}

// errAborted is why a download ends whose content nobody wants any more.
var errAborted = errors.New("download aborted")

// unpack runs the stages behind the download. The digest is "" for an archive
// that was not compressed: it is the blob's. Content that makes no sense is read
// on, so that its digest can be known; content that is refused is not.
func unpack(blob io.Reader, w *erofs.Writer, l limits, reserve func(int64) (func(), error), abort func()) (*archive, digest.Digest, error) {
	r, plain, free, err := decompress(blob, reserve)
	if err != nil {
		return nil, "", err
	}
	if plain {
		a, err := readArchive(r, w, l)
		return a, "", err
	}
	defer free()
	hash := sha256.New()
	up := readAhead(r, func(p []byte) { hash.Write(p) })
	defer up.Close()
	a, err := readArchive(up, w, l)
	if err == nil {
		return a, digest.NewDigest(digest.SHA256, hash), nil
	}
	if !worthBlaming(err) {
		abort()
	} else if _, more := io.CopyN(io.Discard, up, l.bytes); more == nil {
		abort() // too much of it
	}
	return nil, "", err
}

func (b *blobReader) digest() digest.Digest {
	return digest.NewDigestFromBytes(digest.SHA256, b.hash.Sum(nil))
}

// verify reads what may stand behind the compressed stream, and compares.
func (b *blobReader) verify(rest io.Reader) error {
	if _, err := io.Copy(io.Discard, rest); err != nil {
		return err
	}
	if got := b.digest(); got != b.blob.digest {
		return fmt.Errorf("download has digest %s, want %s: %w", got, b.blob.digest, pod.ErrInvalid)
	}
	return nil
}

// worthBlaming tells whether an error may have a reason behind it. Content that
// was understood and refused has none, nor has a failed write.
func worthBlaming(err error) bool {
	var path *os.PathError
	return !errors.Is(err, errRefused) && !errors.Is(err, pod.ErrInternal) && !errors.Is(err, pod.ErrUnavailable) && !errors.Is(err, pod.ErrExhausted) && !errors.Is(err, pod.ErrUnsupported) && !errors.As(err, &path)
}

// blame finds the reason behind content that made no sense: most often it is not
// the content that was asked for.
func (b *blobReader) blame(rest io.Reader, err error) error {
	if !worthBlaming(err) {
		return err
	}
	if b.ctx.Err() == nil && b.blob.size >= 0 {
		if wrong := b.verify(rest); wrong != nil {
			return fmt.Errorf("%w (%v)", wrong, err)
		}
	}
	return fmt.Errorf("%w: %w", err, pod.ErrInvalid)
}
