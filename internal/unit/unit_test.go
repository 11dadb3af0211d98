package unit

import (
	"strings"
	"testing"
	"time"
)

func TestText(t *testing.T) {
	t.Parallel()
	u := Unit{Name: "a.service", Properties: []Property{
		{"Description", String("two words")},
		{"Delegate", Bool(true)},
		{"OOMScoreAdjust", Int32(-5)},
		{"TasksMax", Infinity},
		{"MemoryMax", Uint64(1024)},
		{"TimeoutStopUSec", Duration(1500 * time.Millisecond)},
		{"After", Strings{"b.service", "c.mount"}},
		{"ExecStart", Commands{{Path: "/bin/x", Args: []string{"/bin/x", "a b"}}}},
		{"ExecStopPost", Commands{{Path: "/bin/y", Args: []string{"/bin/y"}, IgnoreFailure: true}, {Path: "/bin/y", Args: []string{"z"}}}},
		{"DeviceAllow", Devices{{"/dev/null", "rw"}, {"char-pts", "rwm"}}},
	}}
	want := `Description=two words
Delegate=yes
OOMScoreAdjust=-5
TasksMax=infinity
MemoryMax=1024
TimeoutStopUSec=1.5s
After=b.service c.mount
ExecStart=/bin/x "a b"
ExecStopPost=-/bin/y
ExecStopPost=/bin/y (argv[0]=z)
DeviceAllow=/dev/null rw
DeviceAllow=char-pts rwm
`
	if got := u.Text(); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
	if err := u.Validate(); err != nil {
		t.Error(err)
	}
}

func TestValidateRefuses(t *testing.T) {
	t.Parallel()
	for name, u := range map[string]Unit{
		"no type":            {Name: "app"},
		"a slash":            {Name: "a/b.service"},
		"too long":           {Name: strings.Repeat("a", 250) + ".service"},
		"a property twice":   {Name: "a.service", Properties: []Property{{"Slice", String("x")}, {"Slice", String("y")}}},
		"a relative command": {Name: "a.service", Properties: []Property{{"ExecStart", Commands{{Path: "x", Args: []string{"x"}}}}}},
		"a variable":         {Name: "a.service", Properties: []Property{{"ExecStart", Commands{{Path: "/x", Args: []string{"/x", "$HOME"}}}}}},
		"a specifier":        {Name: "a.service", Properties: []Property{{"ExecStart", Commands{{Path: "/x", Args: []string{"/x", "%n"}}}}}},
	} {
		if err := u.Validate(); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

// The expected names are what systemd-escape(1) prints.
func TestEscape(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"/run/gantry/images/ab12": "run-gantry-images-ab12",
		"/":                       "-",
		"/a//b/":                  "a-b",
		"/with-dash":              `with\x2ddash`,
		"/.hidden":                `\x2ehidden`,
		"/ü":                      `\xc3\xbc`,
	} {
		if got := EscapePath(in); got != want {
			t.Errorf("EscapePath(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestSlices(t *testing.T) {
	t.Parallel()
	const slice = "kubepods-burstable-pod12.slice"
	got, err := SliceOf("/kubepods.slice/kubepods-burstable.slice/" + slice)
	if err != nil || got != slice {
		t.Errorf("SliceOf: %q, %v", got, err)
	}
	if _, err := SliceOf("/kubepods/burstable/pod12"); err == nil {
		t.Error("a cgroupfs path is taken for a slice")
	}
	if got, want := CgroupOf(slice), "kubepods.slice/kubepods-burstable.slice/"+slice; got != want {
		t.Errorf("CgroupOf = %q, want %q", got, want)
	}
}

func TestOwnNames(t *testing.T) {
	t.Parallel()
	if id, ok := AppID(App("abc")); !ok || id != "abc" {
		t.Errorf("AppID: %q, %v", id, ok)
	}
	if _, ok := AppID(Pod("abc")); ok {
		t.Error("a pod's unit is taken for an app's")
	}
	for _, name := range []string{Pod("abc"), Holder("abc"), Machine("abc"), FileServer("abc"), PodSlice("abc")} {
		if id, ok := PodOf(name); !ok || id != "abc" {
			t.Errorf("PodOf(%s): %q, %v", name, id, ok)
		}
	}
	for _, name := range []string{App("abc"), Slice, "gantry-cri.service", "gantry-.slice", "gantry-image-abc.slice"} {
		if id, ok := PodOf(name); ok {
			t.Errorf("%s is taken for one of the pod %q", name, id)
		}
	}
}

func FuzzEscape(f *testing.F) {
	f.Add("/run/gantry")
	f.Fuzz(func(t *testing.T, path string) {
		if name := Mount(path); len(name) <= 255 && ValidName(name) != nil {
			t.Errorf("Mount(%q) = %q is no unit name", path, name)
		}
	})
}
