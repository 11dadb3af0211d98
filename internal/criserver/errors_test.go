package criserver

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	crierrors "k8s.io/cri-api/pkg/errors"

	"gantry/internal/engine"
	"gantry/internal/pod"
)

// TestCodeIsTheClients: what is counted and logged is what the client gets.
func TestCodeIsTheClients(t *testing.T) {
	t.Parallel()
	for want, errs := range map[codes.Code][]error{
		codes.Unknown: {
			&namedError{crierrors.ErrRegistryUnavailable, pod.ErrUnavailable},
			&namedError{crierrors.ErrImageVolumeMountFailed, fmt.Errorf("x: %w", pod.ErrNotFound)},
			&namedError{crierrors.ErrRROUnsupported, engine.ErrRecursiveReadOnly},
			errors.New("what"),
		},
		codes.Unimplemented: {fmt.Errorf("x: %w", engine.ErrRecursiveReadOnly)},
		codes.NotFound:      {&engine.StageError{Stage: "a", Err: pod.ErrNotFound}},
	} {
		for _, err := range errs {
			if got := code(err); got != want || status.Code(toStatus(err)) != want {
				t.Errorf("%v: counted as %s, sent as %s, want %s", err, got, status.Code(toStatus(err)), want)
			}
		}
	}
}

// TestHandlerThatIsOff: who asks for it is told what switches it on.
func TestHandlerThatIsOff(t *testing.T) {
	t.Parallel()
	s := &Server{cfg: Config{Handlers: []Handler{{Name: "oci"}}, Off: map[string]error{"kvm": fmt.Errorf("say the word: %w", pod.ErrUnavailable)}}}
	for handler, want := range map[string]string{"oci": "", "kvm": "isolator kvm: say the word", "kata": `no runtime handler "kata", there is oci`} {
		got := ""
		if err := s.knows("runtime_handler", handler); err != nil {
			got = err.Error()
		}
		if (want == "") != (got == "") || !strings.Contains(got, want) {
			t.Errorf("%s: %q, want %q", handler, got, want)
		}
	}
}
