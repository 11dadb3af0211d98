package systemd

import (
	"context"
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/godbus/dbus/v5"
)

// listed is one entry of ListUnitsByPatterns.
type listed struct {
	Name, Description, Load, Active, Sub, Following string
	Path                                            dbus.ObjectPath
	JobID                                           uint32
	JobType                                         string
	JobPath                                         dbus.ObjectPath
}

func (l listed) state() State {
	return State{
		Name: l.Name, Load: l.Load, Active: l.Active, Sub: l.Sub,
		Description: l.Description, Job: l.JobID != 0,
	}
}

// Units lists the units that PID 1 has loaded and whose name matches one of the
// patterns (as a shell's), in one call. It fills the cheap fields only.
func (m *Manager) Units(ctx context.Context, patterns ...string) ([]State, error) {
	c, err := m.call(ctx, again, "ListUnitsByPatterns", []string{}, patterns)
	if err != nil {
		return nil, fmt.Errorf("list units: %w", err)
	}
	var list []listed
	if err := c.Store(&list); err != nil {
		return nil, fmt.Errorf("list units: %w", err)
	}
	states := make([]State, 0, len(list))
	for _, l := range list {
		// A name that somebody requires, but nobody made, is listed too.
		if l.Load != NotFound {
			states = append(states, l.state())
		}
	}
	return states, nil
}

// brief gives a unit's cheap fields. It does not make PID 1 load the unit, as
// asking for a property would: that alone sends signals to everybody who watches.
func (m *Manager) brief(ctx context.Context, name string) (State, error) {
	list, err := m.Units(ctx, glob(name))
	if err != nil {
		return State{}, err
	}
	for _, s := range list {
		if s.Name == name {
			return s, nil
		}
	}
	return State{Name: name, Load: NotFound}, nil
}

// State tells how a unit is. That there is none is an answer, not an error.
func (m *Manager) State(ctx context.Context, name string) (State, error) {
	s, err := m.brief(ctx, name)
	if err != nil || !s.Loaded() {
		return s, wrap("look at", name, err)
	}
	if err := m.details(ctx, &s); err != nil {
		return State{}, wrap("look at", name, err)
	}
	return s, nil
}

// details fills what the list does not tell. A unit that went in the meantime
// has no invocation any more, and reads as not found.
func (m *Manager) details(ctx context.Context, s *State) error {
	var p struct {
		invocation, group, result any
		pid, code, status         any
	}
	kind := ifaceOf(s.Name)
	get := map[string]*any{"InvocationID": &p.invocation}
	switch kind {
	case "Service":
		get["MainPID"], get["ExecMainCode"], get["ExecMainStatus"] = &p.pid, &p.code, &p.status
		get["ControlGroup"], get["Result"] = &p.group, &p.result
	case "Mount":
		get["ControlGroup"], get["Result"] = &p.group, &p.result
	case "Slice":
		get["ControlGroup"] = &p.group
	}
	if err := m.get(ctx, s.Name, kind, get); err != nil {
		return err
	}
	id, _ := p.invocation.([]byte)
	s.InvocationID = hex.EncodeToString(id)
	s.ControlGroup, _ = p.group.(string)
	s.Result, _ = p.result.(string)
	s.MainPID, s.ExecCode, s.ExecStatus = number(p.pid), number(p.code), number(p.status)
	if kind == "Service" && s.InvocationID == "" && (s.Running() || s.Active == Deactivating) {
		*s = State{Name: s.Name, Load: NotFound}
	}
	return nil
}

// started gives the state of a unit whose start job was done a moment ago. A
// short program may be gone already: then it reads as not found.
func (m *Manager) started(ctx context.Context, name string) (State, error) {
	s := State{Name: name, Load: Loaded, Active: Active}
	var invocation, pid any
	get := map[string]*any{"InvocationID": &invocation}
	kind := ifaceOf(name)
	if kind == "Service" {
		get["MainPID"] = &pid
	}
	if err := m.get(ctx, name, kind, get); err != nil {
		return State{}, err
	}
	id, _ := invocation.([]byte)
	s.InvocationID, s.MainPID = hex.EncodeToString(id), number(pid)
	if s.InvocationID == "" {
		return State{Name: name, Load: NotFound}, nil
	}
	return s, nil
}

// get reads properties of a unit, all asked for before the first is answered.
func (m *Manager) get(ctx context.Context, name, kind string, want map[string]*any) error {
	path := objectPath(name)
	errs := make(chan error, len(want))
	for prop, to := range want {
		iface := busName + "." + kind
		if prop == "InvocationID" {
			iface = busName + ".Unit"
		}
		go func() {
			c, err := m.callObject(ctx, again, path, ifGet, iface, prop)
			if err == nil {
				var v dbus.Variant
				err = c.Store(&v)
				*to = v.Value()
			}
			errs <- err
		}()
	}
	var first error
	for range want {
		if err := <-errs; err != nil && first == nil {
			first = err
		}
	}
	return first
}

func number(v any) int {
	switch v := v.(type) {
	case uint32:
		return int(v)
	case int32:
		return int(v)
	}
	return 0
}

// ifaceOf names the D-Bus interface of a unit's type.
func ifaceOf(name string) string {
	kind := name[strings.LastIndexByte(name, '.')+1:]
	if kind == "" {
		return "Unit"
	}
	return strings.ToUpper(kind[:1]) + kind[1:]
}

// objectPath is where the bus has a unit: all but letters and digits are escaped.
func objectPath(name string) dbus.ObjectPath {
	var b strings.Builder
	b.WriteString(string(busPath) + "/unit/")
	for i := range len(name) {
		c := name[i]
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' && i > 0 {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "_%02x", c)
		}
	}
	return dbus.ObjectPath(b.String())
}

// glob is the pattern that matches a name and nothing else. PID 1 takes backslashes
// literally, so the names of mounts need no care.
func glob(name string) string {
	return strings.NewReplacer("*", "[*]", "?", "[?]", "[", "[[]").Replace(name)
}
