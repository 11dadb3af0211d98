package initramfs

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"gantry/internal/pod"
)

// mostKernel bounds what a kernel may become. Debian's is a tenth of it.
const mostKernel = 1 << 29

// WriteKernel writes a distribution's kernel to an empty file as a virtual machine starts
// it soonest: unpacked, if it can be entered there (PVH). Any other kernel is written as
// it is, and why tells what it lacks.
func WriteKernel(f *os.File, kernel string) (why, err error) {
	data, err := os.ReadFile(kernel)
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w: is the kernel that runs installed? %w", err, pod.ErrUnavailable)
	}
	if err != nil {
		return nil, fmt.Errorf("take kernel: %w", err)
	}
	out := &written{f: f}
	why = unpackKernel(out, data)
	if out.err == nil && why != nil {
		// What the emulator cannot boot either it says more about.
		if out.err = f.Truncate(0); out.err == nil {
			_, out.err = f.WriteAt(data, 0)
		}
	}
	if out.err != nil {
		return nil, fmt.Errorf("take kernel: %w", out.err)
	}
	return why, nil
}

// written writes from a file's start and keeps what went wrong: that is no fault of what
// is read.
type written struct {
	f   *os.File
	n   int64
	err error
}

func (w *written) Write(b []byte) (n int, err error) {
	n, w.err = w.f.WriteAt(b, w.n)
	w.n += int64(n)
	return n, w.err
}

// unpackKernel takes the kernel out of a bzImage, which may be large: it is not held in
// memory. It tells why there is none that starts without its own unpacking.
func unpackKernel(w *written, data []byte) error {
	packed, err := payload(data)
	if err != nil {
		return err
	}
	// The length of what is packed ends it: in gzip's own form, or after it.
	const lengthSize = 4
	if len(packed) < lengthSize {
		return errors.New("nothing is packed in it")
	}
	size := int64(binary.LittleEndian.Uint32(packed[len(packed)-lengthSize:]))
	var r io.Reader
	switch {
	case bytes.HasPrefix(packed, []byte("\x28\xb5\x2f\xfd")):
		r, err = unpacked(".zst", packed[:len(packed)-lengthSize])
	case bytes.HasPrefix(packed, []byte("\x1f\x8b")):
		r, err = unpacked(".gz", packed)
	default:
		return errors.New("it is packed neither by zstd nor by gzip")
	}
	if err != nil {
		return err
	}
	if size > mostKernel {
		return fmt.Errorf("unpacked it has %d bytes", size)
	}
	if _, err := io.Copy(w, io.LimitReader(r, size+1)); err != nil {
		return fmt.Errorf("unpack: %w", err)
	}
	if w.n != size {
		return fmt.Errorf("unpacked it has %d bytes or more, not %d", w.n, size)
	}
	return startsByPVH(w.f, size)
}

// payload is the packed kernel in a bzImage, as the boot protocol of x86 has it.
func payload(data []byte) (packed []byte, err error) {
	const (
		setupSectors = 0x1f1
		magic        = 0x202
		version      = 0x206
		offset       = 0x248
		length       = 0x24c
		headerEnd    = 0x250
		withPayload  = 0x208
		sector       = 512
	)
	if len(data) < headerEnd || string(data[magic:magic+4]) != "HdrS" || binary.LittleEndian.Uint16(data[version:]) < withPayload {
		return nil, errors.New("it is no bzImage")
	}
	setup := int(data[setupSectors])
	if setup == 0 {
		setup = 4 // so the protocol says
	}
	from := uint64(setup+1)*sector + uint64(binary.LittleEndian.Uint32(data[offset:]))
	to := from + uint64(binary.LittleEndian.Uint32(data[length:]))
	if from >= to || to > uint64(len(data)) {
		return nil, errors.New("it is not whole")
	}
	return data[from:to], nil
}

// startsByPVH tells why a kernel of this size cannot be entered so, nil if it can.
func startsByPVH(kernel io.ReaderAt, size int64) error {
	f, err := elf.NewFile(kernel)
	if err != nil {
		return err
	}
	if f.Machine != elf.EM_X86_64 {
		return fmt.Errorf("it is for %s", f.Machine)
	}
	entry := false
	for _, p := range f.Progs {
		if p.Filesz > uint64(size) || p.Off > uint64(size)-p.Filesz {
			return errors.New("unpacked it is not whole")
		}
		if p.Type == elf.PT_NOTE && p.Align == noteAlign {
			notes, err := io.ReadAll(io.LimitReader(p.Open(), mostNotes))
			entry = entry || err == nil && hasEntry(notes)
		}
	}
	if !entry {
		return errors.New("it has no entry for PVH")
	}
	return nil
}

// noteAlign is what notes of kernels are aligned to.
const noteAlign = 4

// mostNotes bounds what is read of a kernel's notes.
const mostNotes = 1 << 16

// hasEntry looks among notes for that with the address to enter at.
func hasEntry(notes []byte) bool {
	const (
		header   = 12
		physical = 18 // XEN_ELFNOTE_PHYS32_ENTRY
	)
	for len(notes) >= header {
		name, desc := uint64(binary.LittleEndian.Uint32(notes)), uint64(binary.LittleEndian.Uint32(notes[4:]))
		kind := binary.LittleEndian.Uint32(notes[8:])
		end := header + (name+noteAlign-1)&^(noteAlign-1) + (desc+noteAlign-1)&^(noteAlign-1)
		if end > uint64(len(notes)) {
			return false
		}
		if kind == physical && bytes.HasPrefix(notes[header:header+name], []byte("Xen")) {
			return true
		}
		notes = notes[end:]
	}
	return false
}
