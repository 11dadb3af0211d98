// Package stdio keeps what apps print. Its Server is the program gantry-stdio:
// the one process of a machine that holds the pipes and terminals of all apps,
// writes their CRI log files, copies lines to the journal and lets clients
// attach. Its Client is what the engine uses; docs/stdio.md tells the why.
//
// # The socket
//
// One SOCK_SEQPACKET socket. A message is one JSON object; the answer is one JSON
// object, {} when all went well, {"error":"…","kind":"…"} when not. A connection
// may carry any number of requests, one after the other, until it attaches.
// Every operation may be repeated, and has to be when the connection was lost
// before the answer came: the server may have been killed at any moment.
//
//	{"op":"start","dir":D,"invocation":I}
//	    D/stdio.json is the Spec. Answered when the pipes are safe in systemd's file
//	    descriptor store, with the app's ends as SCM_RIGHTS: stdin (/dev/null unless
//	    asked for), stdout, stderr. The server keeps no write end of an output. For a
//	    terminal the answer is {"console":PATH} instead: a stream socket on which one
//	    connection may hand over the terminal's master, as OCI runtimes do.
//	    I, optional, is the unit's invocation id, for journalctl --invocation.
//	    A second start of the same app gives ends of the same pipes.
//	{"op":"console","app":A,"timeoutMS":N}
//	    Answered when the terminal's master has arrived and is safe. To be asked
//	    between creating and starting an app that has a terminal.
//	{"op":"drain","app":A,"timeoutMS":N}
//	    Answered when all that the app wrote is in its log file: both outputs ended,
//	    or the app's cgroup is empty and so are the pipes, or the time is over. Then
//	    all that was kept for the app is gone. An unknown app is drained already.
//	{"op":"written","app":A}
//	    The answer is {"written":[N,M]}: the bytes that were ever written to stdout and
//	    stderr. It is exact if nobody writes meanwhile: for a writer that takes the place
//	    of one that was killed.
//	{"op":"reopen","app":A}
//	    Log rotation: answered when the log path names a file that all later lines go
//	    to. After an error no file was created.
//	{"op":"attach","app":A,"stdin":B,"stdout":B,"stderr":B,"wait":B}
//	    After the answer the connection carries frames, see frame.go. With wait an app
//	    that has no streams yet may be attached to: its first byte is not missed.
//	{"op":"resize","app":A,"width":W,"height":H}
//	{"op":"close-stdin","app":A}
//	{"op":"status","app":A}
//	    The answer is {"status":Status}; without an app only the totals are set.
package stdio

import (
	"encoding/json"
	"errors"
	"fmt"

	"gantry/internal/pod"
)

// Fixed places.
const (
	Socket   = "/run/gantry/stdio.sock"
	RunDir   = "/run/gantry/stdio"
	SpecName = "stdio.json" // in an app's directory
)

// Spec is the content of stdio.json: what to do with an app's streams.
type Spec struct {
	App       pod.ID `json:"app"`
	AppName   string `json:"appName"`
	Pod       pod.ID `json:"pod"`
	PodName   string `json:"podName"`
	Namespace string `json:"namespace,omitempty"`
	// Unit is the app's service, for journalctl -u.
	Unit string `json:"unit"`
	// Log is the absolute path of the CRI log file, "" for none. Missing parents
	// are created.
	Log string `json:"log,omitempty"`
	// Stdin gives the app a pipe; it reads /dev/null otherwise. StdinOnce closes it
	// after the first session that was attached to it.
	Stdin     bool `json:"stdin,omitempty"`
	StdinOnce bool `json:"stdinOnce,omitempty"`
	TTY       bool `json:"tty,omitempty"`
	// Journal copies lines to the journal as well.
	Journal bool `json:"journal,omitempty"`
}

// maxSpec bounds a stdio.json, and every message but an attached session's.
const maxSpec = 64 << 10

// ParseSpec reads the content of stdio.json.
func ParseSpec(data []byte) (Spec, error) {
	var s Spec
	if len(data) > maxSpec {
		return s, fmt.Errorf("parse %s: %d bytes, want at most %d: %w", SpecName, len(data), maxSpec, pod.ErrInvalid)
	}
	if err := json.Unmarshal(data, &s); err != nil {
		return s, fmt.Errorf("parse %s: %w: %w", SpecName, err, pod.ErrInvalid)
	}
	return s, s.validate()
}

func (s Spec) validate() error {
	switch {
	case s.App == "":
		return fmt.Errorf("%s: no app: %w", SpecName, pod.ErrInvalid)
	case s.Log != "" && s.Log[0] != '/':
		return fmt.Errorf("%s: log path %q is not absolute: %w", SpecName, s.Log, pod.ErrInvalid)
	}
	return nil
}

// Size of a terminal, in characters.
type Size struct {
	Width  uint16 `json:"width"`
	Height uint16 `json:"height"`
}

// Status is what the server tells about itself and, when asked, about one app.
type Status struct {
	Apps    int    `json:"apps"`
	Stalled int    `json:"stalled"` // apps whose log cannot be written now
	Dropped uint64 `json:"dropped"` // lines given up since the server started
	PID     int    `json:"pid"`
	Early   int    `json:"early,omitempty"` // sessions with apps that have not started

	App *AppStatus `json:"app,omitempty"`
}

// AppStatus is the state of one app's streams.
type AppStatus struct {
	Key string `json:"key"` // the name in systemd's store
	// Offset is the length of what was written to the current log file.
	Offset int64 `json:"offset"`
	// Pending bytes are an unfinished line, or wait for a log that cannot be written.
	Pending  [2]uint32 `json:"pending"`
	EOF      [2]bool   `json:"eof"`
	Stalled  string    `json:"stalled,omitempty"` // why the log cannot be written
	Dropped  uint64    `json:"dropped,omitempty"` // lines, not yet told in the log
	Attached int       `json:"attached,omitempty"`
	Console  bool      `json:"console,omitempty"` // the terminal has arrived
}

type request struct {
	Op         string `json:"op"`
	Dir        string `json:"dir,omitempty"`
	Invocation string `json:"invocation,omitempty"`
	App        pod.ID `json:"app,omitempty"`
	TimeoutMS  int64  `json:"timeoutMS,omitempty"`
	Stdin      bool   `json:"stdin,omitempty"`
	Stdout     bool   `json:"stdout,omitempty"`
	Stderr     bool   `json:"stderr,omitempty"`
	Wait       bool   `json:"wait,omitempty"`
	Size
}

type reply struct {
	Error   string     `json:"error,omitempty"`
	Kind    string     `json:"kind,omitempty"`
	Console string     `json:"console,omitempty"`
	Status  *Status    `json:"status,omitempty"`
	Written *[2]uint64 `json:"written,omitempty"`
}

// The names of the error kinds on the wire.
var kinds = []struct {
	name string
	err  error
}{
	{"not-found", pod.ErrNotFound},
	{"exists", pod.ErrExists},
	{"invalid", pod.ErrInvalid},
	{"state", pod.ErrState},
	{"unsupported", pod.ErrUnsupported},
	{"unavailable", pod.ErrUnavailable},
}

func errorReply(err error) reply {
	r := reply{Error: err.Error()}
	for _, k := range kinds {
		if errors.Is(err, k.err) {
			r.Kind = k.name
			break
		}
	}
	return r
}

// remoteError is an error that came over the socket: its text says it all, its
// kind is for errors.Is.
type remoteError struct {
	text string
	kind error
}

func (e *remoteError) Error() string { return e.text }
func (e *remoteError) Unwrap() error { return e.kind }

func (r reply) err() error {
	if r.Error == "" {
		return nil
	}
	e := &remoteError{text: r.Error}
	for _, k := range kinds {
		if k.name == r.Kind {
			e.kind = k.err
		}
	}
	return e
}

func parseRequest(data []byte) (request, error) {
	var r request
	if err := json.Unmarshal(data, &r); err != nil {
		return r, fmt.Errorf("parse request: %w: %w", err, pod.ErrInvalid)
	}
	if r.TimeoutMS < 0 {
		return r, fmt.Errorf("parse request: negative timeout: %w", pod.ErrInvalid)
	}
	return r, nil
}
