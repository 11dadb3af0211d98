package guest

import (
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// IsNoOffset tells whether a Read failed because what was asked for is not kept.
func IsNoOffset(err error) bool { return status.Code(err) == codes.OutOfRange }

// IsNotFound tells whether a call failed because what it is about is not there.
func IsNotFound(err error) bool { return status.Code(err) == codes.NotFound }

// IsAnswer tells whether an error is what the agent answered: else it did not.
func IsAnswer(err error) bool {
	s, ok := status.FromError(err)
	if !ok {
		return false
	}
	switch s.Code() {
	case codes.Canceled, codes.DeadlineExceeded, codes.Unavailable:
		return false
	}
	return true
}
