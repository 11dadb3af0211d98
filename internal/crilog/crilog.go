// Package crilog reads container logs in the CRI's file format, one line of
//
//	2026-11-23T09:00:00.123456789Z stdout F what the program wrote
//
// a time: the time, the stream, F for a full line or P for a part of one that
// goes on in the next line, and the text. It follows a file while it grows and
// through its rotation.
package crilog

import (
	"bytes"
	"fmt"
	"time"

	"gantry/internal/pod"
)

// MaxLine is the longest line that is read; writers split long lines long before.
const MaxLine = 1 << 20

// Line is one line of a log file.
type Line struct {
	Time   time.Time
	Stderr bool
	// Partial: the text goes on in the stream's next line, without a newline.
	Partial bool
	// Text is without the newline, and valid until the next line is read.
	Text []byte
}

// Parse reads one line, which comes without its newline.
func Parse(b []byte) (Line, error) {
	when, rest, ok := bytes.Cut(b, []byte{' '})
	stream, rest, ok2 := bytes.Cut(rest, []byte{' '})
	tag, text, ok3 := bytes.Cut(rest, []byte{' '})
	if !ok || !ok2 || !ok3 && len(tag) == 0 {
		return Line{}, fmt.Errorf("parse log line: want TIME STREAM TAG TEXT: %w", pod.ErrInvalid)
	}
	var l Line
	var err error
	if l.Time, err = time.Parse(time.RFC3339Nano, string(when)); err != nil {
		return Line{}, fmt.Errorf("parse log line: time %.40q: %w", when, pod.ErrInvalid)
	}
	switch string(stream) {
	case "stdout":
	case "stderr":
		l.Stderr = true
	default:
		return Line{}, fmt.Errorf("parse log line: stream %.20q: %w", stream, pod.ErrInvalid)
	}
	// The tag is a list separated by colons; only its first word has a meaning.
	first, _, _ := bytes.Cut(tag, []byte{':'})
	switch string(first) {
	case "F":
	case "P":
		l.Partial = true
	default:
		return Line{}, fmt.Errorf("parse log line: tag %.20q: %w", tag, pod.ErrInvalid)
	}
	l.Text = text
	return l, nil
}
