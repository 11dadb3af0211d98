// Package cri translates between the messages of the Container Runtime Interface
// (CRI v1) and Gantry's domain, in both directions. It knows no engine and does
// nothing: the mutating server and the read-only one share it.
//
// The translation is strict. Every field of a request stands in a table (fields.go)
// as honoured, refused or noted, and every field of an answer (answers.go) as told or
// empty; a refused field that is set is an error naming it, and a field that the CRI
// does not know is reported by Unknown. What a field may hold is checked here too, so that
// a bad request never reaches the engine.
package cri

import (
	"fmt"
	"path"
	"strings"

	"gantry/internal/pod"
)

// RuntimeName is what kubelet prefixes container IDs with: gantry://ID.
const RuntimeName = "gantry"

// KubeletAPIVersion is the version string that kubelet demands from Version.
const KubeletAPIVersion = "0.1.0"

// APIVersion is the version of the CRI that is spoken.
const APIVersion = "v1"

// invalid says which field of a request cannot be taken, and why.
func invalid(field, format string, args ...any) error {
	return fmt.Errorf("%s: %s: %w", field, fmt.Sprintf(format, args...), pod.ErrInvalid)
}

// absolute checks a path that has to begin at the root and must not climb.
func absolute(field, p string) error {
	switch {
	case p == "":
		return invalid(field, "must not be empty")
	case !path.IsAbs(p):
		return invalid(field, "%q is not an absolute path", p)
	case climbs(p):
		return invalid(field, "%q contains ..", p)
	}
	return nil
}

func climbs(p string) bool {
	for part := range strings.SplitSeq(p, "/") {
		if part == ".." {
			return true
		}
	}
	return false
}

// id32 narrows a user or group number. The highest one means "no change" to the
// kernel and is refused.
func id32(field string, n int64) (uint32, error) {
	if n < 0 || n >= 1<<32-1 {
		return 0, invalid(field, "%d is not a user or group number", n)
	}
	return uint32(n), nil
}

func ids32(field string, ns []int64) ([]uint32, error) {
	var out []uint32
	for i, n := range ns {
		v, err := id32(fmt.Sprintf("%s[%d]", field, i), n)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, nil
}
