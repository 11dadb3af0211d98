package stdio

import (
	"bytes"
	"time"
)

// maxLine is the longest content of one line of a CRI log; what is longer is cut
// into lines that are marked partial.
const maxLine = 16 << 10

// headLen is the length of "2006-01-02T15:04:05.000000000Z stdout F ".
const headLen = len(stampLayout) + len(" stdout F ")

const stampLayout = "2006-01-02T15:04:05.000000000Z"

// The streams.
const (
	stdout = 0
	stderr = 1
)

func streamName(id uint8) string {
	if id == stderr {
		return "stderr"
	}
	return "stdout"
}

// next cuts the first line off in: its content, whether it is whole, and how many
// bytes of in it takes. Zero bytes: the line has not ended yet. At the end of the
// stream, or when there is no room to wait in, an unfinished line counts too.
//
// How a stream is cut does not depend on how its bytes arrive, unless end is set
// in between; and the same bytes are always cut in the same way: after a crash a
// chunk is formatted again and must fall on itself.
func next(in []byte, end bool) (line []byte, whole bool, n int) {
	look := in[:min(len(in), maxLine+1)]
	if i := bytes.IndexByte(look, '\n'); i >= 0 {
		return in[:i], true, i + 1
	}
	if len(in) > maxLine {
		return in[:maxLine], false, maxLine
	}
	if end && len(in) > 0 {
		return in, false, len(in)
	}
	return nil, false, 0
}

// formatter writes lines of one stream at one time.
type formatter struct {
	head [headLen]byte
}

const tagAt = headLen - 2

func newFormatter(stream uint8, at int64) formatter {
	var f formatter
	b := time.Unix(0, at).UTC().AppendFormat(f.head[:0], stampLayout)
	b = append(b, ' ')
	b = append(b, streamName(stream)...)
	copy(f.head[len(b):], " F ")
	return f
}

// format appends lines of in to out until out holds limit bytes or more, or in
// has no further line; it tells how many bytes of in it took.
func (f *formatter) format(out, in []byte, end bool, limit int) (res []byte, taken int) {
	for len(out) < limit {
		line, whole, n := next(in[taken:], end)
		if n == 0 {
			break
		}
		f.head[tagAt] = 'F'
		if !whole {
			f.head[tagAt] = 'P'
		}
		out = append(out, f.head[:]...)
		out = append(out, line...)
		out = append(out, '\n')
		taken += n
	}
	return out, taken
}
