package erofs

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"

	"golang.org/x/sys/unix"
)

// Device is another image whose data this one points into.
type Device struct {
	Tag    string // for people; at most 64 bytes
	Blocks uint32
}

// Options of an image.
type Options struct {
	UUID    [16]byte
	Devices []Device
}

// Writer writes an image to a file: first the data of all files, then the tree.
type Writer struct {
	file *os.File
	opts Options
	buf  []byte // data not written yet, at block next
	next int64  // the block that buf begins at
	// data is where blocks of data begin: after super block and device table.
	data int64
}

const writeSize = 1 << 20

// NewWriter begins an image in an empty file.
func NewWriter(f *os.File, o Options) (*Writer, error) {
	if len(o.Devices) > math.MaxUint16 {
		return nil, fmt.Errorf("write image: %d devices, at most %d are possible", len(o.Devices), math.MaxUint16)
	}
	first := Blocks(int64(superStart + superSize + deviceSize*len(o.Devices)))
	return &Writer{file: f, opts: o, buf: make([]byte, 0, writeSize), next: first, data: first}, nil
}

// Data stores size bytes of r and returns the block they begin at.
func (w *Writer) Data(r io.Reader, size int64) (uint32, error) {
	if size == 0 {
		return nullBlock, nil
	}
	start := w.next + int64(len(w.buf)/BlockSize)
	if start+Blocks(size) >= nullBlock {
		return 0, fmt.Errorf("write image: larger than %d blocks", uint32(nullBlock))
	}
	for left := size; left > 0; {
		if len(w.buf) == cap(w.buf) {
			if err := w.flush(); err != nil {
				return 0, err
			}
		}
		n := int(min(left, int64(cap(w.buf)-len(w.buf))))
		piece := w.buf[len(w.buf) : len(w.buf)+n]
		if _, err := io.ReadFull(r, piece); err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return 0, err
		}
		w.buf = w.buf[:len(w.buf)+n]
		left -= int64(n)
	}
	w.pad()
	return uint32(start), nil
}

// Append stores the blocks of another image as they are, and returns where they
// begin. The kernel copies, or shares the blocks if the file system can. Holes stay
// holes.
func (w *Writer) Append(f *os.File, blocks uint32) (uint32, error) {
	if err := w.flush(); err != nil {
		return 0, err
	}
	start := w.next
	if start+int64(blocks) >= nullBlock {
		return 0, fmt.Errorf("write image: larger than %d blocks", uint32(nullBlock))
	}
	size := int64(blocks) * BlockSize
	if st, err := f.Stat(); err != nil || st.Size() < size {
		return 0, fmt.Errorf("write image: another image has %d blocks: %w", blocks, errors.Join(err, io.ErrUnexpectedEOF))
	}
	for at := int64(0); at < size; {
		from, to, err := nextData(f, at, size)
		if err != nil {
			return 0, fmt.Errorf("write image: %w", err)
		}
		if err := w.copyRange(f, from, to, start*BlockSize); err != nil {
			return 0, fmt.Errorf("write image: %w", err)
		}
		at = to
	}
	w.next += int64(blocks)
	return uint32(start), nil
}

// nextData finds the next piece of a file that is no hole; both are size if there
// is none.
func nextData(f *os.File, at, size int64) (from, to int64, err error) {
	from, err = f.Seek(at, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) || err == nil && from >= size {
		return size, size, nil
	}
	if err != nil {
		return 0, 0, err
	}
	to, err = f.Seek(from, unix.SEEK_HOLE)
	return from, min(to, size), err
}

// copyRange copies a piece of a file to the same place behind base.
func (w *Writer) copyRange(f *os.File, from, to, base int64) error {
	if from == to {
		return nil
	}
	if _, err := f.Seek(from, io.SeekStart); err != nil {
		return err
	}
	if _, err := w.file.Seek(base+from, io.SeekStart); err != nil {
		return err
	}
	_, err := io.CopyN(w.file, f, to-from)
	return err
}

// pad fills the last block with zeros.
func (w *Writer) pad() {
	from := len(w.buf)
	w.buf = w.buf[:alignUp(from, BlockSize)]
	clear(w.buf[from:])
}

// flush writes the buffer. Runs of zero blocks are left out: they become holes of
// the file, so a sparse file in a layer stays one.
func (w *Writer) flush() error {
	buf, at := w.buf, w.next*BlockSize
	for len(buf) > 0 {
		zero := zeroBlocks(buf)
		buf, at = buf[zero:], at+int64(zero)
		full := dataBlocks(buf)
		if full == 0 {
			continue
		}
		if _, err := w.file.WriteAt(buf[:full], at); err != nil {
			return fmt.Errorf("write image: %w", err)
		}
		buf, at = buf[full:], at+int64(full)
	}
	w.next += int64(len(w.buf) / BlockSize)
	w.buf = w.buf[:0]
	return nil
}

// zeroBlocks is the length of the zero blocks that b begins with.
func zeroBlocks(b []byte) int {
	n := 0
	for n < len(b) && isZero(b[n:n+BlockSize]) {
		n += BlockSize
	}
	return n
}

// dataBlocks is the length of what comes before the next run of at least 16 zero
// blocks: shorter holes are not worth a write of their own.
func dataBlocks(b []byte) int {
	const worth = 16 * BlockSize
	end, zeros := 0, 0
	for n := 0; n < len(b); n += BlockSize {
		if !isZero(b[n : n+BlockSize]) {
			end, zeros = n+BlockSize, 0
			continue
		}
		if zeros += BlockSize; zeros >= worth {
			break
		}
	}
	return end
}

var zeros [BlockSize]byte

func isZero(block []byte) bool { return block[0] == 0 && [BlockSize]byte(block) == zeros }

// Finish writes the tree and returns the size of the image in blocks. The file is
// neither synced nor closed.
func (w *Writer) Finish(root *Node) (uint32, error) {
	if err := w.flush(); err != nil {
		return 0, err
	}
	l, err := plan(root, w.next, len(w.opts.Devices))
	if err != nil {
		return 0, fmt.Errorf("write image: %w", err)
	}
	if err := l.write(w.file); err != nil {
		return 0, fmt.Errorf("write image: %w", err)
	}
	head := w.super(l)
	if _, err := w.file.WriteAt(head, 0); err != nil {
		return 0, fmt.Errorf("write image: %w", err)
	}
	if err := w.file.Truncate(l.end * BlockSize); err != nil {
		return 0, fmt.Errorf("write image: %w", err)
	}
	return uint32(l.end), nil
}
