package guest

import (
	"context"
	"errors"
	"testing"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestIsAnswer(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		err  error
		want bool
	}{
		{status.Error(codes.NotFound, "x"), true},
		{status.Error(codes.Unknown, "x"), true},
		{status.Error(codes.DeadlineExceeded, "x"), false},
		{ttrpc.ErrClosed, false},
		{context.DeadlineExceeded, false},
		{errors.New("x"), false},
	} {
		if got := IsAnswer(c.err); got != c.want {
			t.Errorf("%v: %t", c.err, got)
		}
	}
}
