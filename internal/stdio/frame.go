package stdio

import (
	"encoding/binary"
	"fmt"

	"gantry/internal/pod"
)

// An attached connection carries frames: one message each, a byte that tells the
// kind and then the content.
const (
	frameStdin  = 'i' // client: bytes for the app
	frameClose  = 'c' // client: its input ended
	frameResize = 'r' // client: width and height, two big endian 16 bit numbers
	frameStdout = 'o' // server: bytes of the app
	frameStderr = 'e'
	frameEnd    = 'x' // server: the last one; a text says why if it is not the app's end
)

// maxFrame bounds a frame; it has to fit into a socket's buffer several times.
const maxFrame = 32 << 10

func resizeFrame(s Size) []byte {
	b := []byte{frameResize, 0, 0, 0, 0}
	binary.BigEndian.PutUint16(b[1:], s.Width)
	binary.BigEndian.PutUint16(b[3:], s.Height)
	return b
}

// parseClientFrame checks a frame that a client sent.
func parseClientFrame(b []byte) (kind byte, data []byte, size Size, err error) {
	if len(b) == 0 {
		return 0, nil, size, fmt.Errorf("empty frame: %w", pod.ErrInvalid)
	}
	kind, data = b[0], b[1:]
	switch kind {
	case frameStdin, frameClose:
		return kind, data, size, nil
	case frameResize:
		if len(data) != 4 {
			return 0, nil, size, fmt.Errorf("resize frame of %d bytes, want 4: %w", len(data), pod.ErrInvalid)
		}
		size.Width = binary.BigEndian.Uint16(data)
		size.Height = binary.BigEndian.Uint16(data[2:])
		return kind, nil, size, nil
	default:
		return 0, nil, size, fmt.Errorf("unknown frame %q: %w", kind, pod.ErrInvalid)
	}
}
