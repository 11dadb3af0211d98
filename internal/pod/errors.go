package pod

import "errors"

// The kinds of error. Wrap them; adapters map them once, at the edge.
var (
	ErrNotFound    = errors.New("not found")
	ErrExists      = errors.New("already exists")
	ErrInvalid     = errors.New("invalid")
	ErrState       = errors.New("wrong state")
	ErrUnsupported = errors.New("not supported")
	ErrUnavailable = errors.New("unavailable")
	ErrExhausted   = errors.New("too little left on this node") // of memory and the like; later there may be more
	ErrNotOwner    = errors.New("owned by another program")
	ErrForbidden   = errors.New("not allowed")
	ErrInternal    = errors.New("internal error") // a fault of ours
)
