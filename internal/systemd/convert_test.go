package systemd

import (
	"testing"
	"time"

	"gantry/internal/unit"
)

func TestVariants(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name      string
		value     unit.Value
		signature string
		text      string
	}{
		{"Description", unit.String("a b"), "s", `"a b"`},
		{"Delegate", unit.Bool(true), "b", "true"},
		{"KillSignal", unit.Int32(15), "i", "15"},
		{"UMask", unit.Uint32(18), "u", "@u 18"},
		{"LimitNOFILESoft", unit.Infinity, "t", "@t 18446744073709551615"},
		{"TimeoutStopUSec", unit.Duration(1500 * time.Millisecond), "t", "@t 1500000"},
		{"After", unit.Strings(nil), "as", "@as []"},
		{"AllowedCPUs", unit.Bytes{5}, "ay", `@ay [0x5]`},
		{"ExecStart", unit.Commands{{Path: "/a", Args: []string{"a", "b"}, IgnoreFailure: true}}, "a(sasb)", `[("/a", ["a", "b"], true,)]`},
		{"DeviceAllow", unit.Devices{{Path: "/dev/null", Permissions: "rw"}}, "a(ss)", `[("/dev/null", "rw",)]`},
		{"TemporaryFileSystem", unit.Tmpfs{{Path: "/m", Options: "size=1m"}}, "a(ss)", `[("/m", "size=1m",)]`},
		{"NotInTheTable", unit.String("x"), "s", `"x"`},
	} {
		got, err := properties([]unit.Property{{Name: c.name, Value: c.value}})
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if v := got[0].Value; v.Signature().String() != c.signature || v.String() != c.text {
			t.Errorf("%s: %s of type %s, want %s of type %s", c.name, v.String(), v.Signature(), c.text, c.signature)
		}
	}
	for name, v := range map[string]unit.Value{
		"KillSignal": unit.Uint64(15), "TimeoutStopUSec": unit.Duration(-1), "LimitCORE": unit.String("0"), "Type": nil,
	} {
		if err := CheckProperties([]unit.Property{{Name: name, Value: v}}); err == nil {
			t.Errorf("%s of %T: no error", name, v)
		}
	}
}

func TestObjectPath(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{
		"gantry-app-a.service": "gantry_2dapp_2da_2eservice", "1a.slice": "_31a_2eslice", `a\x2d.mount`: "a_5cx2d_2emount",
	} {
		if got := string(objectPath(name)); got != "/org/freedesktop/systemd1/unit/"+want {
			t.Errorf("objectPath(%q) = %s", name, got)
		}
	}
}
