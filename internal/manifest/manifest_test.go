package manifest

import (
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"gantry/internal/pod"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// TestGolden: each testdata/*.txtar holds a manifest and what it parses to, or
// the problems it is refused for.
func TestGolden(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no golden files: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			t.Parallel()
			ar, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := golden(ar.Files[0].Data)
			if *update {
				ar.Files = append(ar.Files[:1], got)
				if err := os.WriteFile(file, txtar.Format(ar), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if len(ar.Files) != 2 {
				t.Fatalf("want two files in %s: run the test with -update", file)
			}
			if d := cmp.Diff(string(ar.Files[1].Data), string(got.Data)); d != "" || ar.Files[1].Name != got.Name {
				t.Errorf("%s differs (-want +got):\n%s", got.Name, d)
			}
		})
	}
}

func golden(data []byte) txtar.File {
	p, err := Parse(data)
	if err != nil {
		var e *Error
		if !errors.As(err, &e) || !errors.Is(err, pod.ErrInvalid) {
			return txtar.File{Name: "error", Data: []byte("not an *Error: " + err.Error() + "\n")}
		}
		return txtar.File{Name: "error", Data: []byte(err.Error() + "\n")}
	}
	out, err := json.MarshalIndent(compact(p), "", "  ")
	if err != nil {
		panic(err)
	}
	return txtar.File{Name: "pod.json", Data: append(out, '\n')}
}

// compact drops what is unset, to keep the golden files readable.
func compact(v any) any {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	var out any
	if err := json.Unmarshal(data, &out); err != nil {
		panic(err)
	}
	return prune(out)
}

func prune(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			if e = prune(e); e == nil {
				delete(v, k)
			} else {
				v[k] = e
			}
		}
		if len(v) == 0 {
			return nil
		}
		return v
	case []any:
		for i := range v {
			v[i] = prune(v[i])
		}
		if len(v) == 0 {
			return nil
		}
		return v
	case string:
		if v == "" {
			return nil
		}
	case bool:
		if !v {
			return nil
		}
	case float64:
		if v == 0 {
			return nil
		}
	}
	return v
}

// MarshalText lets the golden files show quantities.
func (q Quantity) MarshalText() ([]byte, error) { return []byte(q.text), nil }

func TestQuantity(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		in           string
		value, milli int64
	}{
		{"0", 0, 0},
		{"1", 1, 1000},
		{"1.5", 2, 1500},
		{"500m", 1, 500},
		{"5m", 1, 5},
		{"64Mi", 64 << 20, 64 << 20 * 1000},
		{"1k", 1000, 1000000},
		{"1e3", 1000, 1000000},
		{"12E2", 1200, 1200000},
		{"1E", 1e18, 1<<63 - 1},
		{"100n", 1, 1},
		{"0.1", 1, 100},
		{"1Ei", 1 << 60, 1<<63 - 1},
		{"9999999999999999999999", 1<<63 - 1, 1<<63 - 1},
		{"+2", 2, 2000},
	} {
		q, err := ParseQuantity(c.in)
		if err != nil {
			t.Errorf("%s: %v", c.in, err)
			continue
		}
		if q.Value() != c.value || q.MilliValue() != c.milli {
			t.Errorf("%s: got %d and %d milli, want %d and %d", c.in, q.Value(), q.MilliValue(), c.value, c.milli)
		}
	}
	for _, bad := range []string{"", "-1", "1.2.3", "Mi", "1MB", "1e", "1e999", "e3", "0x10", "1_000", "1/2", "Inf", " 1", "1e3Mi", "."} {
		if _, err := ParseQuantity(bad); err == nil {
			t.Errorf("%q: parsed", bad)
		}
	}
}

func TestExpand(t *testing.T) {
	t.Parallel()
	known := map[string]string{"A": "1", "B": "$(A)"}
	for in, want := range map[string]string{
		"$(A)": "1", "x$(A)y$(A)": "x1y1", "$(B)": "$(A)", "$(C)": "$(C)", "$$(A)": "$(A)", "$$$(A)": "$1",
		"$": "$", "$(": "$(", "$(A": "$(A", "$A": "$A", "": "", "a$$": "a$", "$()": "$()",
	} {
		if got := expand(in, known); got != want {
			t.Errorf("expand(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestExpandPod(t *testing.T) {
	t.Parallel()
	p, err := Parse([]byte(`
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: shop}}
spec:
  containers:
  - name: a
    image: i
    command: [sh, -c, "echo $(WHERE) $(NAME)"]
    args: ["$(APP)"]
    env:
    - {name: NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: APP, valueFrom: {fieldRef: {fieldPath: "metadata.labels['app']"}}}
    - {name: WHERE, value: "$(NAME)/$(APP)/$(LATER)"}
    - {name: LATER, value: x}
`))
	if err != nil {
		t.Fatal(err)
	}
	want := Command{
		Command: []string{"sh", "-c", "echo web/shop/$(LATER) web"},
		Args:    []string{"shop"},
		Env:     []string{"NAME=web", "APP=shop", "WHERE=web/shop/$(LATER)", "LATER=x"},
	}
	if d := cmp.Diff(want, p.Expand(&p.Spec.Containers[0])); d != "" {
		t.Error(d)
	}
}

func FuzzParse(f *testing.F) {
	files, _ := filepath.Glob("testdata/*.txtar")
	for _, file := range files {
		if ar, err := txtar.ParseFile(file); err == nil {
			f.Add(ar.Files[0].Data)
		}
	}
	f.Add([]byte("a: &a [*a]"))
	f.Add([]byte("apiVersion: v1\nkind: Pod\nmetadata: &m {labels: *m}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := Parse(data)
		if err != nil {
			if p != nil || !errors.Is(err, pod.ErrInvalid) || err.Error() == "" {
				t.Fatalf("got %v, %v", p, err)
			}
			return
		}
		if p.Metadata.Name == "" || len(p.Spec.Containers) == 0 {
			t.Fatalf("accepted %+v", p)
		}
		for i := range p.Spec.Containers {
			p.Expand(&p.Spec.Containers[i])
		}
	})
}
