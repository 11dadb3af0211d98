package stdio

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The records of all apps are one file in /run, mapped into memory: a store into
// it outlives this process as soon as the instruction is done. Its first page is
// a header, then come records of a fixed size. docs/stdio.md has the layout.
const (
	recordsName   = "records"
	recordsMagic  = "GNTRYIO1"
	recordsStart  = 4096
	recordSize    = 320
	maxRecords    = 16 << 10
	recordsLength = recordsStart + maxRecords*recordSize
)

// maxCarry is the longest line that waits for its end.
const maxCarry = maxLine

// The phases of a slot.
const (
	phaseOpen    = 1 // Carry, Offset: as they were before the step
	phaseWritten = 2 // Carry, Offset: as they are after it
)

// What a step does.
const (
	stepChunk  = 0 // write the lines that have ended
	stepFlush  = 1 // write everything that is there, an unfinished line too
	stepMarker = 2 // write the line that tells what was dropped
)

// logID tells a file from any other, one that has the same inode number later
// included.
type logID struct {
	Dev, Ino uint64
	Birth    int64
}

// slot is the state of an app's log. A step writes two: one that says what is
// about to happen, one that says that it has happened.
type slot struct {
	Phase        uint32
	Step         uint8
	Stream       uint8
	_            [2]uint8
	Carry        [2]uint32 // bytes in each staging pipe that are not in the log
	Offset       int64     // the log's length
	Time         int64     // of the step's lines
	Log          logID
	DroppedLines uint64 // not yet told in the log
	DroppedBytes uint64
}

// state is a slot with what was added to records later.
type state struct {
	slot
	Taken [2]uint64 // bytes that ever left the app's pipes
}

// The pipes of an app, as they are listed in its record.
const (
	pipeOut   = 0 // the app's stdout; pipeOut + stream
	pipeStage = 2 // its staging pipe; pipeStage + stream
	pipeStdin = 4
	pipeCount = 5
)

// Flags of a record.
const (
	flagStdinClosed = 1 << 0
)

// record is one app's place in the file.
type record struct {
	inUse uint32
	flags uint32
	key   [8]byte
	inode [pipeCount]uint64
	gen   uint64 // slots[gen%2] is the current one
	slots [2]slot
	taken [2][2]uint64 // of each slot
}

// The file's layout is fixed; this does not compile when the struct outgrows it.
var _ [recordSize - unsafe.Sizeof(record{})]byte

// put makes s the current slot by one atomic store. A kill before it leaves the
// old slot current and whole.
func (r *record) put(s state) {
	gen := atomic.LoadUint64(&r.gen) + 1
	r.slots[gen%2], r.taken[gen%2] = s.slot, s.Taken
	atomic.StoreUint64(&r.gen, gen)
}

func (r *record) name() string {
	n := 0
	for n < len(r.key) && r.key[n] != 0 {
		n++
	}
	return string(r.key[:n])
}

func (r *record) current() (state, error) {
	i := atomic.LoadUint64(&r.gen) % 2
	s := state{r.slots[i], r.taken[i]}
	return s, s.validate()
}

func (s *slot) validate() error {
	switch {
	case s.Phase != phaseOpen && s.Phase != phaseWritten,
		s.Step > stepMarker, s.Stream > stderr, s.Offset < 0,
		s.Carry[0] > maxCarry, s.Carry[1] > maxCarry:
		return fmt.Errorf("record holds no valid slot: %+v", *s)
	}
	return nil
}

func (r *record) setFlag(f uint32)   { atomic.OrUint32(&r.flags, f) }
func (r *record) flag(f uint32) bool { return atomic.LoadUint32(&r.flags)&f != 0 }
func (r *record) publish()           { atomic.StoreUint32(&r.inUse, 1) }
func (r *record) retire()            { atomic.StoreUint32(&r.inUse, 0) }
func (r *record) used() bool         { return atomic.LoadUint32(&r.inUse) != 0 }

// records is the mapped file.
type records struct {
	file *os.File
	mem  []byte
	free []int // indexes below high that are not in use
	high int
}

// openRecords maps the file, making it if there is none.
func openRecords(path string) (*records, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	rs := &records{file: f}
	if err := rs.load(); err != nil {
		return nil, errors.Join(fmt.Errorf("open %s: %w", path, err), f.Close())
	}
	return rs, nil
}

func (rs *records) load() error {
	if err := rs.file.Truncate(recordsLength); err != nil {
		return err
	}
	// A hole in a full tmpfs is a SIGBUS when it is touched: take the space first.
	if err := rs.reserve(0, recordsStart); err != nil {
		return err
	}
	mem, err := unix.Mmap(int(rs.file.Fd()), 0, recordsLength, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return os.NewSyscallError("mmap", err)
	}
	rs.mem = mem
	switch string(mem[:8]) {
	case recordsMagic:
	case string(make([]byte, 8)):
		binary.NativeEndian.PutUint32(mem[8:], recordSize)
		copy(mem, recordsMagic)
	default:
		return fmt.Errorf("unknown format %q: written by another version", mem[:8])
	}
	if got := binary.NativeEndian.Uint32(mem[8:]); got != recordSize {
		return fmt.Errorf("records of %d bytes, want %d: written by another version", got, recordSize)
	}
	rs.high = int(min(*rs.highMark(), maxRecords))
	for i := range rs.high {
		if !rs.at(i).used() {
			rs.free = append(rs.free, i)
		}
	}
	return nil
}

// highMark counts the records that were ever used; those above were never touched.
func (rs *records) highMark() *uint32 { return (*uint32)(unsafe.Pointer(&rs.mem[12])) }

func (rs *records) at(i int) *record {
	return (*record)(unsafe.Pointer(&rs.mem[recordsStart+i*recordSize]))
}

func (rs *records) reserve(off, n int64) error {
	return os.NewSyscallError("fallocate", unix.Fallocate(int(rs.file.Fd()), 0, off, n))
}

// alloc gives a cleared record that is not in use yet.
func (rs *records) alloc() (int, *record, error) {
	if n := len(rs.free); n > 0 {
		i := rs.free[n-1]
		rs.free = rs.free[:n-1]
		*rs.at(i) = record{}
		return i, rs.at(i), nil
	}
	if rs.high == maxRecords {
		return 0, nil, fmt.Errorf("more than %d apps", maxRecords)
	}
	if err := rs.reserve(recordsStart+int64(rs.high)*recordSize, recordSize); err != nil {
		return 0, nil, err
	}
	i := rs.high
	*rs.at(i) = record{}
	rs.high++
	atomic.StoreUint32(rs.highMark(), uint32(rs.high))
	return i, rs.at(i), nil
}

func (rs *records) release(i int) {
	rs.at(i).retire()
	rs.free = append(rs.free, i)
}
