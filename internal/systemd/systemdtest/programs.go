package systemdtest

import (
	"context"
	"path"
	"strconv"
	"strings"
	"time"
)

// Programs is a Program that knows what the contract suite runs: true, false,
// sleep, and sh -c "exit N". Anything else sleeps until it is told to end.
func Programs(ctx context.Context, p Process) Exit {
	if len(p.Args) == 0 {
		return Exit{}
	}
	switch path.Base(p.Args[0]) {
	case "true":
		return Exit{}
	case "false":
		return Exit{Code: 1}
	case "sh":
		code, err := strconv.Atoi(strings.TrimPrefix(p.Args[len(p.Args)-1], "exit "))
		if err != nil {
			return Exit{Code: 127}
		}
		return Exit{Code: code}
	}
	forever := time.Duration(1 << 62)
	if d, err := time.ParseDuration(p.Args[len(p.Args)-1] + "s"); err == nil {
		forever = d
	}
	t := time.NewTimer(forever)
	defer t.Stop()
	select {
	case <-t.C:
		return Exit{}
	case s := <-p.Signals:
		return Exit{Signal: s}
	case <-ctx.Done():
		return Exit{Signal: sigKill}
	}
}
