package systemd

import (
	"fmt"
	"time"

	"github.com/godbus/dbus/v5"

	"gantry/internal/unit"
)

// The D-Bus forms of a unit; field order is the wire's.
type (
	property struct {
		Name  string
		Value dbus.Variant
	}
	auxUnit struct {
		Name       string
		Properties []property
	}
	execCommand struct {
		Path          string
		Args          []string
		IgnoreFailure bool
	}
	deviceAllow struct{ Path, Permissions string }
	tmpfsMount  struct{ Path, Options string }
)

// transient checks a unit and gives its properties for StartTransientUnit.
func transient(u unit.Unit) ([]property, error) {
	if err := Check(u); err != nil {
		return nil, err
	}
	return properties(u.Properties)
}

// Check refuses a unit that PID 1 would refuse, or understand differently, as far
// as that can be told without it. Start calls it.
func Check(u unit.Unit) error {
	if err := u.Validate(); err != nil {
		return err
	}
	_, err := properties(u.Properties)
	return err
}

// CheckProperties does the same for SetProperties.
func CheckProperties(props []unit.Property) error {
	_, err := properties(props)
	return err
}

func properties(props []unit.Property) ([]property, error) {
	out := make([]property, 0, len(props))
	for _, p := range props {
		v, err := variant(p.Value)
		if err != nil {
			return nil, fmt.Errorf("property %s: %w", p.Name, err)
		}
		if want, ok := signatureOf(p.Name); ok && v.Signature().String() != want {
			return nil, fmt.Errorf("property %s: is of D-Bus type %s, systemd wants %s", p.Name, v.Signature(), want)
		}
		out = append(out, property{p.Name, v})
	}
	return out, nil
}

func variant(v unit.Value) (dbus.Variant, error) {
	switch v := v.(type) {
	case unit.String:
		return dbus.MakeVariant(string(v)), nil
	case unit.Bool:
		return dbus.MakeVariant(bool(v)), nil
	case unit.Int32:
		return dbus.MakeVariant(int32(v)), nil
	case unit.Uint32:
		return dbus.MakeVariant(uint32(v)), nil
	case unit.Uint64:
		return dbus.MakeVariant(uint64(v)), nil
	case unit.Duration:
		if v < 0 {
			return dbus.Variant{}, fmt.Errorf("duration %s is negative", time.Duration(v))
		}
		return dbus.MakeVariant(uint64(time.Duration(v).Microseconds())), nil
	case unit.Strings:
		return dbus.MakeVariant(append([]string{}, v...)), nil
	case unit.Bytes:
		return dbus.MakeVariant(append([]byte{}, v...)), nil
	case unit.Commands:
		out := make([]execCommand, len(v))
		for i, c := range v {
			out[i] = execCommand(c)
		}
		return dbus.MakeVariant(out), nil
	case unit.Devices:
		out := make([]deviceAllow, len(v))
		for i, d := range v {
			out[i] = deviceAllow(d)
		}
		return dbus.MakeVariant(out), nil
	case unit.Tmpfs:
		out := make([]tmpfsMount, len(v))
		for i, m := range v {
			out[i] = tmpfsMount(m)
		}
		return dbus.MakeVariant(out), nil
	}
	return dbus.Variant{}, fmt.Errorf("value of type %T", v)
}
