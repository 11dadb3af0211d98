package external

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"gantry/internal/pod"
)

const (
	// mostAnswer bounds an answer, in bytes. No plan is that long.
	mostAnswer = 1 << 20
	// mostSaid bounds what of stderr, or of a message, gets into an error.
	mostSaid = 1024
	// drainLimit is how long others than the executable itself may hold its output.
	drainLimit = time.Second
	// leastSecret is the length from which a value is taken out of messages: shorter ones
	// are in any text.
	leastSecret = 4
)

// until has a call killed when something happens, and returns what ends that.
type until func(kill func(error)) (stop func() bool)

// ends is the end of a context.
func ends(ctx context.Context) until {
	return func(kill func(error)) func() bool {
		return context.AfterFunc(ctx, func() { kill(ctx.Err()) })
	}
}

// never is for pure answers: only time bounds them.
func never(func(error)) func() bool { return func() bool { return true } }

// ask calls the executable.
func (x *External) ask(r request, u until) (answer, error) {
	if _, err := x.verify(); err != nil {
		return answer{}, err
	}
	r.Version = Version
	in, err := json.Marshal(r)
	if err != nil {
		return answer{}, fmt.Errorf("isolator %s: write request: %w", x.Name(), err)
	}
	out, said, runErr := x.run(r.Verb, in, u)
	a, err := judge(r.Verb, out, said, runErr)
	if err != nil {
		return answer{}, hide(fmt.Errorf("isolator %s: %s: %w", x.Name(), r.Verb, err), r.secrets())
	}
	return a, nil
}

// errTooMuch is an answer that was not read to its end.
var errTooMuch = fmt.Errorf("its answer has more than %d bytes", mostAnswer)

// judge makes an answer of what was printed. A refusal may come with any exit status; all
// else only with success.
func judge(verb string, out, said []byte, runErr error) (answer, error) {
	var exit *exec.ExitError
	if runErr != nil && !errors.As(runErr, &exit) {
		return answer{}, fmt.Errorf("%w: %w%s", pod.ErrUnavailable, runErr, after(said))
	}
	a, err := decode(verb, out)
	switch {
	case err != nil && !errors.Is(err, errAnswer):
		return answer{}, err
	case runErr != nil:
		return answer{}, fmt.Errorf("%w: %w%s", pod.ErrUnavailable, runErr, after(said))
	case err != nil:
		return answer{}, fmt.Errorf("%w%s", err, after(said))
	}
	return a, nil
}

// after is what the executable said, at the end of an error.
func after(said []byte) string {
	if text := plainText(string(said), mostSaid); text != "" {
		return ": it says: " + text
	}
	return ""
}

// run executes it in a process group of its own, that none of it stays.
func (x *External) run(verb string, in []byte, u until) (out, said []byte, err error) {
	// Nobody would bound it any more if we were killed: it dies with the thread that made it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.Command(x.path, verb)
	cmd.Dir, cmd.Env = "/", []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = drainLimit
	cmd.Stdin = bytes.NewReader(in)
	stdout, stderr := &bounded{most: mostAnswer}, &bounded{most: 4 * mostSaid}
	cmd.Stdout, cmd.Stderr = stdout, stderr
	if err := cmd.Start(); err != nil {
		return nil, nil, err
	}
	var why atomic.Pointer[error]
	kill := func(reason error) {
		if why.CompareAndSwap(nil, &reason) {
			_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // it may have ended by itself
		}
	}
	timer := time.AfterFunc(x.cfg.Limit, func() { kill(fmt.Errorf("no answer within %s", x.cfg.Limit)) })
	defer timer.Stop()
	defer u(kill)()
	stdout.full(func() { kill(errTooMuch) })
	err = cmd.Wait()
	if errors.Is(err, exec.ErrWaitDelay) {
		kill(errors.New("it left a process behind that holds its output"))
	}
	if reason := why.Load(); reason != nil {
		err = *reason
	}
	return stdout.bytes(), stderr.bytes(), err
}

// secrets are the values that must be in no message.
func (r request) secrets() (out []string) {
	for _, p := range []*Process{r.process(), r.execProcess()} {
		if p == nil {
			continue
		}
		for _, e := range p.Env {
			if _, value, _ := strings.Cut(e, "="); len(value) >= leastSecret {
				out = append(out, value)
			}
		}
	}
	return out
}

func (r request) process() *Process {
	if r.App == nil {
		return nil
	}
	return r.App.Process
}

func (r request) execProcess() *Process {
	if r.Exec == nil {
		return nil
	}
	return &r.Exec.Process
}

// hidden is an error with another text.
type hidden struct {
	err  error
	text string
}

func (h *hidden) Error() string { return h.text }
func (h *hidden) Unwrap() error { return h.err }

// hide takes values out of what the executable said: a shell that traces prints all.
func hide(err error, values []string) error {
	text := err.Error()
	for _, v := range values {
		text = strings.ReplaceAll(text, plainText(v, mostSaid), "…")
	}
	if text == err.Error() {
		return err
	}
	return &hidden{err, text}
}
