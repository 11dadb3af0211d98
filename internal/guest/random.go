package guest

import (
	"encoding/binary"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// seed gives the kernel random bytes of the host's, which count as such: a machine has
// nothing else that it could not foresee, where its processor has no random numbers. It
// takes none of the time that a device for them takes.
func seed(random []byte) error {
	if len(random) == 0 {
		return nil
	}
	// struct rand_pool_info
	var pool []byte
	pool = binary.NativeEndian.AppendUint32(pool, uint32(len(random)*8))
	pool = binary.NativeEndian.AppendUint32(pool, uint32(len(random)))
	pool = append(pool, random...)
	f, err := os.OpenFile("/dev/urandom", os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.RNDADDENTROPY, uintptr(unsafe.Pointer(&pool[0]))); errno != 0 {
		return os.NewSyscallError("RNDADDENTROPY", errno)
	}
	return nil
}
