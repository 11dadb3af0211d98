package cli

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"regexp"
	"strings"
	"testing"

	"gantry/internal/pod"
)

func TestParseForward(t *testing.T) {
	t.Parallel()
	for word, want := range map[string]forward{"80": {80, 80}, "8080:80": {8080, 80}, "0:80": {0, 80}} {
		if got, err := parseForward(word); err != nil || got != want {
			t.Errorf("%s: %v, %v", word, got, err)
		}
	}
	for _, word := range []string{"", "0", "80:0", "80:", ":80", "http", "70000", "-1", "1:2:3"} {
		var usage *usageError
		if got, err := parseForward(word); !errors.As(err, &usage) {
			t.Errorf("%q: %v, %v", word, got, err)
		}
	}
}

// TestPortForward: what is said on a port of the host is heard in the pod, and answered. A port
// that nobody listens on ends its connection alone.
func TestPortForward(t *testing.T) {
	t.Parallel()
	f := &fakeEngine{root: t.TempDir()}
	p, err := f.CreatePod(t.Context(), pod.Pod{Name: "web", Owner: pod.OwnerCLI})
	if err != nil {
		t.Fatal(err)
	}
	status, err := f.Pod(p.ID)
	if err != nil {
		t.Fatal(err)
	}
	said, says := io.Pipe()
	var stderr bytes.Buffer
	ctx, cancel := context.WithCancel(t.Context())
	o := portForwardOptions{address: "127.0.0.1"}
	ended := make(chan error, 1)
	go func() {
		ended <- o.serve(ctx, &Env{Stdout: says, Stderr: &stderr}, f, status, []forward{{0, 7}, {0, 9}})
	}()
	lines := bufio.NewScanner(said)
	dial := func(port int) net.Conn {
		t.Helper()
		if !lines.Scan() {
			t.Fatal("it says nothing")
		}
		found := regexp.MustCompile(fmt.Sprintf(`^(127\.0\.0\.1:\d+) -> %d$`, port)).FindStringSubmatch(lines.Text())
		if found == nil {
			t.Fatalf("it says %q", lines.Text())
		}
		conn, err := net.Dial("tcp", found[1])
		if err != nil {
			t.Fatal(err)
		}
		return conn
	}
	echo, nobody := dial(7), dial(9)
	if data, err := io.ReadAll(nobody); len(data) > 0 || err != nil && !strings.Contains(err.Error(), "reset") {
		t.Errorf("where nobody listens: %q, %v", data, err)
	}
	if _, err := io.WriteString(echo, "hello"); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, 5)
	if _, err := io.ReadFull(echo, answer); err != nil || string(answer) != "hello" {
		t.Errorf("the answer is %q, %v", answer, err)
	}
	echo.Close()
	nobody.Close()
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if got := stderr.String(); got != "gantry: port-forward to port 9 of pod web: connect to port 9: connection refused: unavailable\n" {
		t.Errorf("it says %q", got)
	}
}
