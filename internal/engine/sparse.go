package engine

import (
	"bytes"
	"os"
)

// sparseWriter writes a new file and leaves pieces of zeros out, as holes: an app may
// claim a file of any size, and a copy of it must not fill the node's disk. The file is
// as long as what was written only after end.
type sparseWriter struct {
	f     *os.File
	at    int64
	zeros [32 << 10]byte
}

func (w *sparseWriter) Write(p []byte) (written int, err error) {
	for len(p) > 0 {
		piece := p[:min(len(p), len(w.zeros))]
		if !bytes.Equal(piece, w.zeros[:len(piece)]) {
			if _, err := w.f.WriteAt(piece, w.at); err != nil {
				return written, err
			}
		}
		w.at += int64(len(piece))
		written += len(piece)
		p = p[len(piece):]
	}
	return written, nil
}

func (w *sparseWriter) end() error { return w.f.Truncate(w.at) }
