package main

import (
	"strings"
	"testing"
)

func TestReport(t *testing.T) {
	t.Parallel()
	const ok = `{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Test":"TestA","Output":"noise\n"}
{"Action":"pass","Package":"p","Test":"TestA/sub"}
{"Action":"pass","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Test":"TestB","Output":"needs root\n"}
{"Action":"skip","Package":"p","Test":"TestB"}
{"Action":"pass","Package":"p","Elapsed":0.12}
`
	for name, c := range map[string]struct {
		in   string
		good bool
		want string
	}{
		"pass and skip": {ok, true, "SKIP  p TestB\nneeds root\nok    p 0.1s\nNOT RUN: 1 tests were skipped, for the reasons above\nunit tests: 1 passed, 0 failed, 1 skipped\n"},
		"fail": {
			`{"Action":"output","Package":"p","Test":"TestA","Output":"boom\n"}` + "\n" + `{"Action":"fail","Package":"p","Test":"TestA"}`,
			false, "boom\nunit tests: 0 passed, 1 failed, 0 skipped\n",
		},
		"does not build": {
			ok + `{"Action":"build-output","ImportPath":"q","Output":"syntax error\n"}` + "\n" + `{"Action":"build-fail","ImportPath":"q"}`,
			false, "syntax error\n",
		},
		"killed": {
			`{"Action":"output","Package":"p","Test":"TestA","Output":"so far\n"}` + "\n" +
				`{"Action":"output","Package":"p","Output":"panic\n"}` + "\n" + `{"Action":"fail","Package":"p"}`,
			false, "panic\n--- UNFINISHED: TestA\nso far\n",
		},
		"nothing ran": {"", false, "0 passed"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var out strings.Builder
			good := report(strings.NewReader(c.in), &out)
			if good != c.good || !strings.Contains(out.String(), c.want) {
				t.Errorf("good %v, want %v; printed:\n%s", good, c.good, out.String())
			}
		})
	}
}
