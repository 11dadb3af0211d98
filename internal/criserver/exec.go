package criserver

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/engine"
	"gantry/internal/pod"
)

const (
	// maxOutput is what ExecSync keeps of each stream; the rest is dropped, as the
	// CRI demands (CVE-2022-1708, CVE-2022-31030).
	maxOutput = 16 << 20
	// maxAnswer is what fits into one message that clients accept. Both streams
	// together must not be longer, or the client would see an error instead.
	maxAnswer = maxMessage - 4<<10
)

// ExecSync runs a command and waits for it. When its time is over, or the client
// is gone, the command and all it started are killed.
func (s *runtimeService) ExecSync(ctx context.Context, r *runtimeapi.ExecSyncRequest) (*runtimeapi.ExecSyncResponse, error) {
	timeout, err := seconds("timeout", r.GetTimeout())
	if err != nil {
		return nil, err
	}
	a, err := s.running("exec", r.GetContainerId())
	if err != nil {
		return nil, err
	}
	if len(r.Cmd) == 0 {
		return nil, fmt.Errorf("cmd: must not be empty: %w", pod.ErrInvalid)
	}
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	began := time.Now()
	stdout, stderr := &head{limit: maxOutput}, &head{limit: maxOutput}
	code, err := s.cfg.Engine.Exec(ctx, a.ID, pod.Process{Argv: r.Cmd}, engine.Streams{Stdout: stdout, Stderr: stderr})
	if err != nil {
		if ctxErr := ctx.Err(); ctxErr != nil && !errors.Is(err, ctxErr) {
			err = fmt.Errorf("%w: %v", ctxErr, err) // what the end of the time led to does not count
		}
		return nil, fmt.Errorf("exec in container %s: %w (after %s)", a.ID, err, time.Since(began).Round(time.Millisecond))
	}
	out, errOut := fit(stdout.take(), stderr.take(), maxAnswer)
	return &runtimeapi.ExecSyncResponse{Stdout: out, Stderr: errOut, ExitCode: exitCode(code)}, nil
}

// running looks up a container that a command is to run in.
func (s *Server) running(verb, id string) (pod.AppStatus, error) {
	a, err := s.findApp(id)
	if err == nil && a.Phase != pod.Running {
		err = fmt.Errorf("%s in container %s: it is %s: %w", verb, a.ID, a.Phase, pod.ErrState)
	}
	return a, err
}

// head keeps the beginning of what is written to it, until it is taken: a daemon
// that the command left behind may write on when the command is over.
type head struct {
	mu    sync.Mutex
	data  []byte
	limit int
}

func (h *head) Write(b []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if room := h.limit - len(h.data); room > 0 {
		h.data = append(h.data, b[:min(room, len(b))]...)
	}
	return len(b), nil
}

// take gives what there is; nothing is kept any more.
func (h *head) take() []byte {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := h.data
	h.data, h.limit = nil, 0
	return out
}

// fit cuts the longer of two outputs, then both, so that they do not exceed limit
// together.
func fit(a, b []byte, limit int) ([]byte, []byte) {
	if len(a)+len(b) <= limit {
		return a, b
	}
	half := limit / 2
	switch {
	case len(a) <= half:
		return a, b[:limit-len(a)]
	case len(b) <= half:
		return a[:limit-len(b)], b
	}
	return a[:half], b[:half]
}
