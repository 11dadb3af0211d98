package criserver

import (
	"context"
	"errors"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"gantry/internal/engine"
	"gantry/internal/pod"
)

// code is the one place where kinds of error become codes. Unknown is the code of
// everything else on purpose: kubelet takes the bare message of such an error, and
// finds the CRI's named errors by how that message begins.
func code(err error) codes.Code {
	var named *namedError
	if errors.As(err, &named) {
		return codes.Unknown
	}
	if s, ok := status.FromError(err); ok {
		return s.Code()
	}
	// An operation that failed in a step may have met other kinds when it was undone.
	var at *engine.StageError
	if errors.As(err, &at) {
		err = at.Err
	}
	for _, k := range []struct {
		kind error
		code codes.Code
	}{
		{pod.ErrInternal, codes.Internal},
		{pod.ErrNotFound, codes.NotFound},
		{pod.ErrExists, codes.AlreadyExists},
		{pod.ErrInvalid, codes.InvalidArgument},
		{pod.ErrState, codes.FailedPrecondition},
		{pod.ErrUnsupported, codes.Unimplemented},
		{pod.ErrUnavailable, codes.Unavailable},
		{pod.ErrExhausted, codes.ResourceExhausted},
		{pod.ErrNotOwner, codes.PermissionDenied},
		{pod.ErrForbidden, codes.PermissionDenied},
		{context.DeadlineExceeded, codes.DeadlineExceeded},
		{context.Canceled, codes.Canceled},
	} {
		if errors.Is(err, k.kind) {
			return k.code
		}
	}
	return codes.Unknown
}

// toStatus makes the error that a client sees.
func toStatus(err error) error {
	if err == nil {
		return nil
	}
	var named *namedError
	if errors.As(err, &named) {
		return status.Error(code(err), named.Error())
	}
	return status.Error(code(err), message(err))
}

// message is the text of an error, without gRPC's own prefix if it has one.
func message(err error) string {
	if s, ok := status.FromError(err); ok {
		return s.Message()
	}
	return err.Error()
}

// namedError is one of the CRI's errors that clients know by the first word of
// the message (k8s.io/cri-api/pkg/errors).
type namedError struct {
	name error
	err  error
}

func (e *namedError) Error() string { return e.name.Error() + ": " + e.err.Error() }
func (e *namedError) Unwrap() error { return e.err }
