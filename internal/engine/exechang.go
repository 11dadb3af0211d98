package engine

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"gantry/internal/pod"
)

// A command that was killed may hang in the kernel (see hanging.go). Where a runtime
// stands in between that dies, and the command is nobody's; where none does the command
// is our own child. It is not waited for: its streams are closed, and a goroutine reaps
// it and removes its cgroup when the kernel lets go of it. The lock is held until then,
// so that gc leaves the cgroup alone; if this program ends before, gc takes it.

// hungMost is how many commands of an app may hang before no more are begun: a probe
// comes again and again, and each costs a thread and two descriptors.
const hungMost = 16

// hungExecs counts the commands that hang, by app.
type hungExecs struct {
	mu    sync.Mutex
	count map[pod.ID]int
}

func (h *hungExecs) add(id pod.ID, n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.count == nil {
		h.count = map[pod.ID]int{}
	}
	if h.count[id] += n; h.count[id] == 0 {
		delete(h.count, id)
	}
}

func (h *hungExecs) check(id pod.ID) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if n := h.count[id]; n >= hungMost {
		return fmt.Errorf("%d commands of it were killed and hang in the kernel: %w", n, pod.ErrUnavailable)
	}
	return nil
}

// awaitDeath waits for a command that was killed, for a moment.
func (r *execRun) awaitDeath(exited <-chan error, end *session) {
	late := time.NewTimer(dyingTime)
	defer late.Stop()
	select {
	case <-exited:
	case <-late.C:
		r.hangs = exited
		end.abandon()
	}
}

// abandon ends the copying of output that a command which hangs will not end.
func (s *session) abandon() {
	for _, o := range s.flows() {
		o.from.Close()
	}
}

// endExec gives back the cgroups of an exec, now or when the command is gone.
func (e *Engine) endExec(id pod.ID, r *execRun) {
	closeGroups := func() {
		e.giveBack(id, r.group)
		if r.outside != nil { // nothing of a runtime is left on purpose
			e.warnOfGroup(id, r.outside.kill())
			e.giveBack(id, r.outside)
		}
	}
	if r.hangs == nil {
		closeGroups()
		return
	}
	e.log.Warn("a command was killed and does not die: leaving it to the kernel", "app", id, "cgroup", r.group.path)
	e.hung.add(id, 1)
	go func() {
		<-r.hangs
		e.hung.add(id, -1)
		closeGroups()
	}()
}

// giveBack removes a cgroup of an exec. What was killed may need its time to die, where a
// limit leaves it little of the processor or it has much to free: nobody waits for that.
func (e *Engine) giveBack(id pod.ID, g *execGroup) {
	err := g.close()
	if !errors.Is(err, errDying) {
		e.warnOfGroup(id, err)
		return
	}
	go func() {
		e.warnOfGroup(id, g.bury(func() func() {
			e.log.Warn("an exec was killed and its processes do not die", "app", id, "cgroup", g.path)
			e.hung.add(id, 1)
			return func() { e.hung.add(id, -1) }
		}))
	}()
}

func (e *Engine) warnOfGroup(id pod.ID, err error) {
	if err != nil {
		e.log.Warn("cannot give back the cgroup of an exec", "app", id, "err", err)
	}
}
