package systemdtest

import (
	"context"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"gantry/internal/systemd"
	"gantry/internal/unit"
)

var (
	_ Manager = (*Fake)(nil)
	_ Manager = (*systemd.Manager)(nil)
)

func TestFakeKeepsTheContract(t *testing.T) {
	t.Parallel()
	Run(t, func(*testing.T) Manager { return New(nil) }, func(_ *testing.T, m Manager) { m.(*Fake).Blink() })
}

// TestStopPost: the recorder of exits finds what systemd would tell it.
func TestStopPost(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		main Exit
		want map[string]string
	}{
		"code":   {Exit{Code: 42}, map[string]string{"SERVICE_RESULT": "exit-code", "EXIT_CODE": "exited", "EXIT_STATUS": "42"}},
		"memory": {Exit{Signal: 9, OOM: true}, map[string]string{"SERVICE_RESULT": "oom-kill", "EXIT_CODE": "killed", "EXIT_STATUS": "KILL"}},
		"term":   {Exit{Signal: 15}, map[string]string{"SERVICE_RESULT": "success", "EXIT_CODE": "killed", "EXIT_STATUS": "TERM"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := make(chan map[string]string, 1)
			f := New(func(_ context.Context, p Process) Exit {
				if p.Line == "ExecStopPost" {
					delete(p.Env, "INVOCATION_ID")
					got <- p.Env
					return Exit{}
				}
				p.Ready()
				return c.main
			})
			u := unit.Unit{Name: "gantry-app-a.service", Properties: []unit.Property{
				{Name: "Type", Value: unit.String("notify")},
				{Name: "ExecStart", Value: unit.Commands{{Path: "/init", Args: []string{"init"}}}},
				{Name: "ExecStopPost", Value: unit.Commands{{Path: "/post", Args: []string{"post"}}}},
			}}
			if _, err := f.Start(t.Context(), u); err != nil {
				t.Fatal(err)
			}
			select {
			case env := <-got:
				if diff := cmp.Diff(c.want, env); diff != "" {
					t.Error(diff)
				}
			case <-time.After(10 * time.Second):
				t.Fatal("no ExecStopPost")
			}
		})
	}
}
