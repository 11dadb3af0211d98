// Package unit describes systemd units as data: names, properties and how they
// print. A Unit is what an isolator's plan consists of; package systemd turns it
// into a transient unit, Text into what a person reads.
//
// Properties carry the names and types of systemd's D-Bus interface
// (org.freedesktop.systemd1(5)), because that is what a transient unit is made of.
package unit

import (
	"fmt"
	"strings"
	"time"
)

// Unit is a transient unit to be started.
type Unit struct {
	Name       string
	Properties []Property
}

// Property is one D-Bus property of a unit.
type Property struct {
	Name  string
	Value Value
}

// Value is one of the types below; the set is closed.
type Value interface{ value() }

// The types a property can have, with their D-Bus signatures.
type (
	String   string        // s
	Bool     bool          // b
	Int32    int32         // i
	Uint32   uint32        // u
	Uint64   uint64        // t; Infinity prints as "infinity"
	Duration time.Duration // t, in microseconds
	Strings  []string      // as
	Bytes    []byte        // ay
	Commands []Command     // a(sasb)
	Devices  []Device      // a(ss)
	Tmpfs    []TmpfsMount  // a(ss)
)

// Infinity is systemd's "no limit".
const Infinity Uint64 = 1<<64 - 1

// Command is one Exec line. Systemd substitutes variables in arguments after a
// daemon-reload, so an argument must not contain "$": Validate refuses it.
type Command struct {
	Path          string
	Args          []string // with argv[0]
	IgnoreFailure bool     // the "-" prefix
}

// Device is one DeviceAllow line.
type Device struct {
	Path        string // /dev/null, char-pts, block-*
	Permissions string // of r, w, m
}

// TmpfsMount is one TemporaryFileSystem line.
type TmpfsMount struct {
	Path    string // absolute
	Options string // of mount(8), with commas
}

func (String) value()   {}
func (Bool) value()     {}
func (Int32) value()    {}
func (Uint32) value()   {}
func (Uint64) value()   {}
func (Duration) value() {}
func (Strings) value()  {}
func (Bytes) value()    {}
func (Commands) value() {}
func (Devices) value()  {}
func (Tmpfs) value()    {}

// Get returns the value of a property, nil if the unit does not set it.
func (u Unit) Get(name string) Value {
	for _, p := range u.Properties {
		if p.Name == name {
			return p.Value
		}
	}
	return nil
}

// Validate refuses what systemd would take and then understand differently.
func (u Unit) Validate() error {
	if err := ValidName(u.Name); err != nil {
		return err
	}
	seen := map[string]bool{}
	for _, p := range u.Properties {
		if seen[p.Name] {
			return fmt.Errorf("unit %s: property %s is set twice", u.Name, p.Name)
		}
		seen[p.Name] = true
		commands, ok := p.Value.(Commands)
		if !ok {
			continue
		}
		for _, c := range commands {
			if err := c.validate(); err != nil {
				return fmt.Errorf("unit %s: %s: %w", u.Name, p.Name, err)
			}
		}
	}
	return nil
}

func (c Command) validate() error {
	if !strings.HasPrefix(c.Path, "/") || len(c.Args) == 0 {
		return fmt.Errorf("command %q: want an absolute path and its arguments", c.Path)
	}
	for _, a := range c.Args {
		if strings.ContainsAny(a, "$%\x00\n") {
			return fmt.Errorf("argument %q: $, %%, newline and NUL change their meaning in a unit", a)
		}
	}
	return nil
}
