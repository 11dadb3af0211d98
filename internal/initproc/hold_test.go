package initproc

import (
	"errors"
	"strings"
	"testing"
	"testing/iotest"
)

func TestHolderReported(t *testing.T) {
	t.Parallel()
	if err := holderReported(strings.NewReader(holdReady)); err != nil {
		t.Errorf("a holder that is ready: %v", err)
	}
	for said, want := range map[string]string{"": "died", "pivot_root: no": "pivot_root: no", holdReady + "!": holdReady + "!"} {
		if err := holderReported(strings.NewReader(said)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("a holder that said %q: %v", said, err)
		}
	}
	broken := errors.New("broken")
	if err := holderReported(iotest.ErrReader(broken)); !errors.Is(err, broken) {
		t.Errorf("a pipe that broke: %v", err)
	}
}
