package cri

import (
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The real-time signals as glibc counts them: it keeps the kernel's first two.
const (
	sigRTMin = 34
	sigRTMax = 64
)

// StopSignal gives the number of a signal, 0 for the image's or the default one.
func StopSignal(field string, s runtimeapi.Signal) (int, error) {
	if s == runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT {
		return 0, nil
	}
	name := strings.TrimPrefix(s.String(), "SIGNAL_")
	switch name {
	case "SIGCLD":
		return int(unix.SIGCHLD), nil
	case "SIGIOT":
		return int(unix.SIGABRT), nil
	case "SIGPOLL":
		return int(unix.SIGIO), nil
	}
	if n := unix.SignalNum(name); n != 0 {
		return int(n), nil
	}
	for prefix, base := range map[string]int{"SIGRTMIN": sigRTMin, "SIGRTMAX": sigRTMax} {
		rest, ok := strings.CutPrefix(name, prefix)
		if !ok {
			continue
		}
		if rest == "" {
			return base, nil
		}
		if n, err := strconv.Atoi(strings.TrimPrefix(rest, "PLUS")); err == nil {
			return base + n, nil
		}
		if n, err := strconv.Atoi(strings.TrimPrefix(rest, "MINUS")); err == nil {
			return base - n, nil
		}
	}
	return 0, invalid(field, "%s is not a signal of this machine", s)
}

// FromStopSignal tells a signal's number in the CRI's words.
func FromStopSignal(n int) runtimeapi.Signal {
	if n == 0 {
		return runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT
	}
	// Several names may stand for one number: the lowest that is not an alias.
	for i := range int32(len(runtimeapi.Signal_name)) {
		s := runtimeapi.Signal(i)
		switch s {
		case runtimeapi.Signal_SIGNAL_SIGCLD, runtimeapi.Signal_SIGNAL_SIGIOT, runtimeapi.Signal_SIGNAL_SIGPOLL:
			continue
		}
		if got, err := StopSignal("", s); err == nil && got == n {
			return s
		}
	}
	return runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT
}
