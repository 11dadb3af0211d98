package initproc

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// stdioFiles are the app's ends of its stdio.
type stdioFiles struct {
	files   []*os.File // stdin, stdout, stderr; nil: keep our own
	console string     // socket on which a terminal is wanted
}

func (s stdioFiles) close() {
	for _, f := range s.files {
		f.Close()
	}
}

type stdioRequest struct {
	Op         string `json:"op"`
	Dir        string `json:"dir,omitempty"`
	Invocation string `json:"invocation,omitempty"`
	App        string `json:"app,omitempty"`
	TimeoutMS  int64  `json:"timeoutMS,omitempty"`
}

type stdioReply struct {
	Error   string `json:"error"`
	Console string `json:"console"`
}

// stdioTime bounds how long we try to reach gantry-stdio: it may be restarting,
// and PID 1 may be busy.
const stdioTime = time.Minute

// fetchStdio asks gantry-stdio for the app's stdio. A connection that breaks is
// made again: gantry-stdio may be killed at any moment and then starts anew.
func fetchStdio(s Stdio, dir string, u unitFacts) (stdioFiles, error) {
	if s.Socket == "" {
		return ownStdio()
	}
	reply, files, err := askStdio(s.Socket, stdioRequest{Op: "start", Dir: dir, Invocation: u.Invocation}, stdioTime)
	if err != nil {
		return stdioFiles{}, err
	}
	if reply.Console != "" {
		null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
		return stdioFiles{[]*os.File{null, null, null}, reply.Console}, err
	}
	if len(files) != 3 {
		return stdioFiles{}, fmt.Errorf("gantry-stdio gave %d descriptors, want 3", len(files))
	}
	return stdioFiles{files: files}, nil
}

// ownStdio gives the app what systemd gave us.
func ownStdio() (stdioFiles, error) {
	var s stdioFiles
	for fd := range uintptr(3) {
		copied, err := unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			return stdioFiles{}, err
		}
		s.files = append(s.files, os.NewFile(uintptr(copied), "stdio"))
	}
	return s, nil
}

// awaitConsole waits until gantry-stdio has the app's terminal, and has it safe.
func awaitConsole(s Stdio, app string) error {
	req := stdioRequest{Op: "console", App: app, TimeoutMS: stdioTime.Milliseconds()}
	if _, _, err := askStdio(s.Socket, req, stdioTime); err != nil {
		return fmt.Errorf("hand over the terminal: %w", err)
	}
	return nil
}

// drain waits until the app's output is in its log, or the bound has passed.
func drain(s Stdio, app string, bound time.Duration) error {
	if s.Socket == "" {
		return nil
	}
	req := stdioRequest{Op: "drain", App: app, TimeoutMS: bound.Milliseconds()}
	if _, _, err := askStdio(s.Socket, req, 2*bound+time.Second); err != nil {
		return fmt.Errorf("wait for the log: %w", err)
	}
	return nil
}

// errRefused is an answer of gantry-stdio; asking again would not change it.
var errRefused = errors.New("gantry-stdio")

func askStdio(socket string, req stdioRequest, bound time.Duration) (stdioReply, []*os.File, error) {
	deadline := time.Now().Add(bound)
	for wait := 5 * time.Millisecond; ; wait = min(2*wait, 500*time.Millisecond) {
		reply, files, err := askOnce(socket, req, deadline)
		if err == nil || errors.Is(err, errRefused) || time.Now().Add(wait).After(deadline) {
			return reply, files, err
		}
		time.Sleep(wait)
	}
}

func askOnce(socket string, req stdioRequest, deadline time.Time) (reply stdioReply, files []*os.File, err error) {
	conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: socket, Net: "unixpacket"})
	if err != nil {
		return reply, nil, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(deadline); err != nil {
		return reply, nil, err
	}
	message, err := json.Marshal(req)
	if err != nil {
		return reply, nil, err
	}
	if _, err := conn.Write(message); err != nil {
		return reply, nil, err
	}
	data, oob := make([]byte, 16<<10), make([]byte, unix.CmsgSpace(4*8))
	n, oobn, _, _, err := conn.ReadMsgUnix(data, oob)
	if err != nil {
		return reply, nil, err
	}
	if n == 0 {
		return reply, nil, errors.New("gantry-stdio closed the connection")
	}
	if err := json.Unmarshal(data[:n], &reply); err != nil {
		return reply, nil, fmt.Errorf("%w: bad answer: %w", errRefused, err)
	}
	if reply.Error != "" {
		return reply, nil, fmt.Errorf("%w: %s", errRefused, reply.Error)
	}
	files, err = received(oob[:oobn])
	return reply, files, err
}

func received(oob []byte) ([]*os.File, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var files []*os.File
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			return nil, err
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			files = append(files, os.NewFile(uintptr(fd), "stdio"))
		}
	}
	return files, nil
}
