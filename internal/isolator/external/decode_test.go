package external

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"gantry/internal/pod"
)

func TestDecodeRefuses(t *testing.T) {
	t.Parallel()
	app := func(s string) string { return `{"version":1,"plan":{` + s + `}}` }
	files := func(s string) string { return app(`"run":{"argv":["/a","{app}"]},"files":[` + s + `]`) }
	for name, c := range map[string]struct{ verb, answer, want string }{
		"isolation":             {verbFeatures, `{"version":1,"features":{"isolation":"some","podNetwork":true}}`, `isolation "some"`},
		"no network at all":     {verbFeatures, `{"version":1,"features":{"isolation":"none"}}`, "neither"},
		"none, half":            {verbFeatures, `{"version":1,"features":{"isolation":"none","hostNetwork":true,"hostIPC":true}}`, "isolation none is"},
		"not for third parties": {verbFeatures, `{"version":1,"features":{"isolation":"namespaces","hooks":true}}`, `unknown field "hooks"`},
		"no command":            {verbApp, app(`"run":{"argv":[]}`), "no command"},
		"relative program":      {verbApp, app(`"run":{"argv":["sh"]}`), "absolute"},
		"program with ..":       {verbApp, app(`"run":{"argv":["/usr/../bin/sh"]}`), "absolute"},
		"NUL":                   {verbApp, app(`"run":{"argv":["/a","b\u0000"]}`), "NUL"},
		"app twice":             {verbApp, app(`"run":{"argv":["/a","{app}","{app}"]}`), "twice"},
		"app in an argument":    {verbApp, app(`"run":{"argv":["/a","sh -c {app}"]}`), "of its own"},
		"app is the program":    {verbApp, app(`"run":{"argv":["{app}"]}`), "absolute"},
		"env around":            {verbApp, app(`"run":{"argv":["/a","{app}"],"env":["A=1"]}`), "run.env"},
		"bad env":               {verbApp, app(`"run":{"argv":["/a"],"env":["secret"]}`), "variable 0"},
		"foreign property":      {verbApp, app(`"run":{"argv":["/a"]},"properties":{"ExecStartPre":true}`), `"ExecStartPre"`},
		"unit":                  {verbApp, app(`"run":{"argv":["/a"]},"units":[{"name":"ssh.service"}]`), `unknown field "units"`},
		"cgroup":                {verbApp, app(`"run":{"argv":["/a"]},"cgroup":[]`), `unknown field "cgroup"`},
		"file above":            {verbApp, files(`{"path":"../exit.json"}`), "without . and .."},
		"file above, hidden":    {verbApp, files(`{"path":"a/../../exit.json"}`), "without . and .."},
		"absolute file":         {verbApp, files(`{"path":"/etc/shadow"}`), "without . and .."},
		"the directory":         {verbApp, files(`{"path":"."}`), "without . and .."},
		"no path":               {verbApp, files(`{"text":"x"}`), "without . and .."},
		"newline":               {verbApp, files(`{"path":"a\nb"}`), "blanks"},
		"file twice":            {verbApp, files(`{"path":"a"},{"path":"a"}`), "twice"},
		"file below a file":     {verbApp, files(`{"path":"a"},{"path":"a/b"}`), "twice"},
		"file above a file":     {verbApp, files(`{"path":"a/b"},{"path":"a"}`), "a directory"},
		"many files":            {verbApp, files(strings.TrimSuffix(strings.Repeat(`{"path":"a"},`, 65), ",")), "65 of them"},
		"mode of a file":        {verbApp, files(`{"path":"a","mode":"4755"}`), `unknown field "mode"`},
		"device elsewhere":      {verbApp, app(`"run":{"argv":["/a"]},"devices":[{"path":"/etc/passwd","permissions":"r"}]`), "below /dev"},
		"device with ..":        {verbApp, app(`"run":{"argv":["/a"]},"devices":[{"path":"/dev/../etc","permissions":"r"}]`), "below /dev"},
		"device's permissions":  {verbApp, app(`"run":{"argv":["/a"]},"devices":[{"path":"/dev/kvm","permissions":"x"}]`), "permissions"},
		"exec without app":      {verbExec, `{"version":1,"exec":{"argv":["/a"]}}`, "want either"},
		"exec without input":    {verbExec, `{"version":1,"exec":{"argv":["/a","{process}"]}}`, "want either"},
		"exec with both":        {verbExec, `{"version":1,"exec":{"argv":["/a","{app}","{process}"],"input":""}}`, "want either"},
	} {
		if _, err := decode(c.verb, []byte(c.answer)); !errors.Is(err, errAnswer) || !errors.Is(err, pod.ErrUnavailable) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: want an error with %q, got %v", name, c.want, err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	verbs := []string{verbFeatures, verbSandbox, verbApp, verbExec, verbCleanup}
	for i, s := range []string{usualFeatures, `{"version":1}`, usualApp, usualExec, `{"version":1,"error":{"kind":"invalid","message":"x"}}`} {
		f.Add(i, []byte(s))
	}
	f.Add(2, []byte(`{"version":1,"plan":{"run":{"argv":["/a"],"env":["A=b"]},"files":[{"path":"a/b","text":"c","public":true}],"devices":[{"path":"char-pts","permissions":"rw"}],"properties":{"LockPersonality":true}}}`))
	f.Fuzz(func(t *testing.T, verb int, data []byte) {
		v := verbs[uint(verb)%uint(len(verbs))]
		a, err := decode(v, data)
		if err != nil {
			_ = fmt.Sprint(err)
			return
		}
		if (v == verbApp) != (a.Plan != nil) || (v == verbExec) != (a.Exec != nil) || (v == verbFeatures) != (a.Features != nil) {
			t.Fatalf("%s: %+v", v, a)
		}
		if v != verbApp {
			return
		}
		for _, f := range a.Plan.Files {
			if strings.HasPrefix(f.Path, "/") || strings.Contains("/"+f.Path+"/", "/../") {
				t.Fatalf("file %q", f.Path)
			}
			if m := f.mode(); m&0o022 != 0 || !f.Public && m&0o077 != 0 {
				t.Fatalf("mode %04o of %+v", m, f)
			}
		}
	})
}
