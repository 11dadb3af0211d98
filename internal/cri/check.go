package cri

import (
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Checker refuses what the table refuses, numbers that are no member of their
// enumeration, and strings with a NUL byte, anywhere in a message.
type Checker struct{ fields map[string]Field }

// NewChecker returns a Checker for the messages that Fields lists.
func NewChecker() *Checker { return &Checker{fields: Fields()} }

// Check walks a message; root is its name in error texts, "" that of a whole request.
func (c *Checker) Check(root string, m proto.Message) error {
	if m == nil || !m.ProtoReflect().IsValid() {
		return nil
	}
	return c.message(root, m.ProtoReflect())
}

func (c *Checker) message(at string, m protoreflect.Message) (err error) {
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		name := inside(at, fd)
		f := c.fields[key(fd)]
		switch {
		case f.Disposition == Refused:
			err = invalid(name, "%s", f.Why)
		case f.Disposition == Noted && fd.Kind() == protoreflect.MessageKind && !fd.IsMap():
			// Nothing looks at it.
		case fd.IsMap():
			err = c.mapping(name, fd, v.Map())
		case fd.IsList():
			for i := range v.List().Len() {
				if err = c.value(fmt.Sprintf("%s[%d]", name, i), fd, v.List().Get(i)); err != nil {
					break
				}
			}
		default:
			err = c.value(name, fd, v)
		}
		return err == nil
	})
	return err
}

func (c *Checker) mapping(at string, fd protoreflect.FieldDescriptor, m protoreflect.Map) (err error) {
	if fd.Name() == "labels" || fd.Name() == "annotations" {
		return nil // returned as they came, and never used as anything but text
	}
	m.Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
		if err = text(at, k.String()); err == nil {
			err = c.value(at+"["+k.String()+"]", fd.MapValue(), v)
		}
		return err == nil
	})
	return err
}

func (c *Checker) value(at string, fd protoreflect.FieldDescriptor, v protoreflect.Value) error {
	switch fd.Kind() {
	case protoreflect.MessageKind:
		return c.message(at, v.Message())
	case protoreflect.EnumKind:
		if fd.Enum().Values().ByNumber(v.Enum()) == nil {
			return invalid(at, "%d is no %s", v.Enum(), fd.Enum().Name())
		}
	case protoreflect.StringKind:
		return text(at, v.String())
	case protoreflect.BytesKind:
		return text(at, string(v.Bytes()))
	}
	return nil
}

func text(at, s string) error {
	if strings.IndexByte(s, 0) >= 0 {
		return invalid(at, "contains a NUL byte")
	}
	return nil
}

// inside names a field of the message that is called at.
func inside(at string, fd protoreflect.FieldDescriptor) string {
	return strings.TrimPrefix(at+"."+string(fd.Name()), ".")
}

// Unknown lists the fields of a message that this version of the CRI does not
// know, in order: a newer client sent them. They are named by their number.
func Unknown(root string, m proto.Message) []string {
	if m == nil || !m.ProtoReflect().IsValid() {
		return nil
	}
	return slices.Sorted(slices.Values(unknown(root, m.ProtoReflect(), nil)))
}

func unknown(at string, m protoreflect.Message, found []string) []string {
	if raw := m.GetUnknown(); len(raw) > 0 {
		found = append(found, strings.TrimPrefix(at+"."+fieldNumbers(raw), "."))
	}
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		name := inside(at, fd)
		switch {
		case fd.IsMap() || fd.Kind() != protoreflect.MessageKind:
		case fd.IsList():
			for i := range v.List().Len() {
				found = unknown(fmt.Sprintf("%s[%d]", name, i), v.List().Get(i).Message(), found)
			}
		default:
			found = unknown(name, v.Message(), found)
		}
		return true
	})
	return found
}

func fieldNumbers(raw protoreflect.RawFields) string {
	var numbers []string
	for len(raw) > 0 {
		num, _, n := protowire.ConsumeField(raw)
		if n < 0 {
			break
		}
		numbers = append(numbers, fmt.Sprint(num))
		raw = raw[n:]
	}
	return strings.Join(numbers, ",")
}
