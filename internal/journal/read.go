package journal

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

// Query selects entries. The zero Query selects all.
type Query struct {
	Unit string // what is by the unit or about it, as journalctl -u shows it
	// Match has fields that an entry must have. Two of one name are alternatives.
	Match        []Field
	Since, Until time.Time
	// Lines limits the result to the last ones; 0 gives all.
	Lines int
	// After leaves out what is up to the entry with this cursor.
	After string
	// Follow waits for more, until the context ends.
	Follow bool
}

// Entry is one entry of the journal.
type Entry struct {
	Cursor string
	Time   time.Time
	Fields map[string]string // all but the address fields, which begin with __
}

// Message is what most are interested in.
func (e Entry) Message() string { return e.Fields["MESSAGE"] }

// Read gives entries to fn, oldest first, until there are no more or fn returns
// an error, which Read returns then.
func Read(ctx context.Context, q Query, fn func(Entry) error) error {
	args, err := q.args()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd := exec.CommandContext(ctx, "journalctl", args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return fmt.Errorf("read journal: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("read journal: %w", err)
	}
	perr := parseExport(out, fn)
	if perr != nil {
		cancel() // it need not finish
	}
	werr := cmd.Wait()
	switch {
	case perr != nil:
		return perr
	case ctx.Err() != nil:
		return ctx.Err()
	case werr != nil:
		text, _, _ := strings.Cut(stderr.String(), "\n")
		return fmt.Errorf("read journal: %w: %s", werr, text)
	}
	return nil
}

// Sync waits until all that was written before can be read.
func Sync(ctx context.Context) error {
	out, err := exec.CommandContext(ctx, "journalctl", "--sync", "--quiet").CombinedOutput()
	if err != nil {
		text, _, _ := strings.Cut(string(out), "\n")
		return fmt.Errorf("sync journal: %w: %s", err, text)
	}
	return nil
}

// args is the command line of journalctl.
func (q Query) args() ([]string, error) {
	args := []string{"--output=export", "--quiet", "--no-pager", "--all"}
	if q.Unit != "" {
		args = append(args, "--unit="+q.Unit)
	}
	if !q.Since.IsZero() {
		args = append(args, "--since="+stamp(q.Since))
	}
	if !q.Until.IsZero() {
		args = append(args, "--until="+stamp(q.Until))
	}
	if q.After != "" {
		args = append(args, "--after-cursor="+q.After)
	}
	switch {
	case q.Lines > 0:
		args = append(args, "--lines="+strconv.Itoa(q.Lines))
	case q.Follow:
		args = append(args, "--no-tail")
	}
	if q.Follow {
		args = append(args, "--follow")
	}
	args = append(args, "--")
	for _, f := range q.Match {
		if !validName(f.Name) {
			return nil, fmt.Errorf("read journal: field name %q: want characters of A-Z, 0-9 and _", f.Name)
		}
		args = append(args, f.Name+"="+f.Value)
	}
	return args, nil
}

// stamp is a time as journalctl takes it, to the microsecond.
func stamp(t time.Time) string {
	return fmt.Sprintf("@%d.%06d", t.Unix(), t.Nanosecond()/1000)
}

func validName(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '_' {
			return false
		}
	}
	return s != ""
}

// maxField bounds a field's size, and fields an entry's: nothing sane is near.
const (
	maxField  = 16 << 20
	maxFields = 1024
)

// parseExport reads entries in the journal's export format: fields as NAME=value
// lines, or as NAME, a length and that many bytes; an empty line after each entry.
func parseExport(r io.Reader, fn func(Entry) error) error {
	b := bufio.NewReaderSize(r, 64<<10)
	fields := map[string]string{}
	for {
		name, value, err := readField(b)
		if err != nil && err != io.EOF {
			return fmt.Errorf("parse journal: %w", err)
		}
		if name != "" {
			if fields[name] = value; len(fields) > maxFields {
				return fmt.Errorf("parse journal: an entry of more than %d fields", maxFields)
			}
			continue
		}
		if len(fields) > 0 {
			e, perr := newEntry(fields)
			if perr != nil {
				return perr
			}
			if err := fn(e); err != nil {
				return err
			}
			fields = map[string]string{}
		}
		if err == io.EOF {
			return nil
		}
	}
}

// readField returns no name at the end of an entry, and io.EOF at the end of all.
func readField(b *bufio.Reader) (name, value string, err error) {
	line, err := readLine(b)
	if err != nil || len(line) == 0 {
		return "", "", err
	}
	n, v, ok := bytes.Cut(line, []byte("="))
	if !validName(string(n)) {
		return "", "", fmt.Errorf("field name %.40q", n)
	}
	if ok {
		return string(n), string(v), nil
	}
	var size [8]byte
	if _, err := io.ReadFull(b, size[:]); err != nil {
		return "", "", noEOF(err)
	}
	length := binary.LittleEndian.Uint64(size[:])
	if length > maxField {
		return "", "", fmt.Errorf("field %s of %d bytes", n, length)
	}
	var data bytes.Buffer // grows with what really comes
	if _, err := io.CopyN(&data, b, int64(length)); err != nil {
		return "", "", noEOF(err)
	}
	if c, err := b.ReadByte(); err != nil || c != '\n' {
		return "", "", fmt.Errorf("field %s has no end", n)
	}
	return string(n), data.String(), nil
}

func readLine(b *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := b.ReadSlice('\n')
		line = append(line, part...)
		switch {
		case err == nil:
			return line[:len(line)-1], nil
		case len(line) > maxField:
			return nil, errors.New("a line is too long")
		case err == io.EOF && len(line) > 0:
			return nil, io.ErrUnexpectedEOF
		case err != bufio.ErrBufferFull:
			return nil, err
		}
	}
}

func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

func newEntry(fields map[string]string) (Entry, error) {
	e := Entry{Cursor: fields["__CURSOR"], Fields: map[string]string{}}
	us, err := strconv.ParseInt(fields["__REALTIME_TIMESTAMP"], 10, 64)
	if err != nil {
		return e, fmt.Errorf("parse journal: time of entry %.80q: %w", e.Cursor, err)
	}
	e.Time = time.UnixMicro(us)
	for k, v := range fields {
		if !strings.HasPrefix(k, "__") {
			e.Fields[k] = v
		}
	}
	return e, nil
}
