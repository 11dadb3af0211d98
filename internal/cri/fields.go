package cri

import (
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Disposition is what becomes of a field of a request.
type Disposition int

// The dispositions.
const (
	// Honoured fields have the effect that the CRI describes.
	Honoured Disposition = iota + 1
	// Refused fields are an error when they are set.
	Refused
	// Noted fields are accepted and have nothing to act on; Why tells the reason.
	Noted
)

// Field is a line of the table: a field of a message and what becomes of it.
type Field struct {
	Disposition Disposition
	Why         string // for Refused and Noted
}

const (
	notLinux   = "this node runs Linux"
	noProcess  = "a sandbox has no process of its own"
	hint       = "a hint for other runtimes"
	outputOnly = "only meant for answers"
)

func honoured(message string, names ...string) map[string]Field {
	m := make(map[string]Field, len(names))
	for _, n := range names {
		m[message+"."+n] = Field{Disposition: Honoured}
	}
	return m
}

// Fields returns the table: message.field -> what becomes of it, for everything
// that PodSandboxConfig and ContainerConfig are made of. The text "as honoured"
// is proved by tests that change each field and look for a difference.
func Fields() map[string]Field {
	m := map[string]Field{
		"PodSandboxConfig.windows": {Refused, notLinux},
		"ContainerConfig.windows":  {Refused, notLinux},

		"LinuxSandboxSecurityContext.run_as_user":                {Noted, noProcess},
		"LinuxSandboxSecurityContext.run_as_group":               {Noted, noProcess},
		"LinuxSandboxSecurityContext.readonly_rootfs":            {Noted, noProcess},
		"LinuxSandboxSecurityContext.supplemental_groups":        {Noted, noProcess + "; containers carry the groups again"},
		"LinuxSandboxSecurityContext.supplemental_groups_policy": {Noted, noProcess + "; containers carry the policy again"},

		"ImageSpec.annotations": {Noted, hint},
		"ImageSpec.image_ref":   {Noted, outputOnly},
	}
	for _, part := range []map[string]Field{
		honoured("PodSandboxConfig", "metadata", "hostname", "log_directory", "dns_config", "port_mappings", "labels", "annotations", "linux"),
		honoured("PodSandboxMetadata", "name", "uid", "namespace", "attempt"),
		honoured("DNSConfig", "servers", "searches", "options"),
		honoured("PortMapping", "protocol", "container_port", "host_port", "host_ip"),
		honoured("LinuxPodSandboxConfig", "cgroup_parent", "security_context", "sysctls", "overhead", "resources"),
		honoured("LinuxSandboxSecurityContext", "namespace_options", "selinux_options", "privileged", "seccomp", "apparmor", "seccomp_profile_path"),
		honoured("SecurityProfile", "profile_type", "localhost_ref"),
		honoured("SELinuxOption", "user", "role", "type", "level"),
		honoured("NamespaceOption", "network", "pid", "ipc", "target_id", "userns_options"),
		honoured("UserNamespace", "mode", "uids", "gids"),
		honoured("IDMapping", "host_id", "container_id", "length"),
		honoured("LinuxContainerResources", "cpu_period", "cpu_quota", "cpu_shares", "memory_limit_in_bytes", "oom_score_adj",
			"cpuset_cpus", "cpuset_mems", "hugepage_limits", "unified", "memory_swap_limit_in_bytes"),
		honoured("HugepageLimit", "page_size", "limit"),
		honoured("Int64Value", "value"),
		honoured("ContainerConfig", "metadata", "image", "command", "args", "working_dir", "envs", "mounts", "devices", "labels",
			"annotations", "log_path", "stdin", "stdin_once", "tty", "linux", "stop_signal", "CDI_devices"),
		honoured("CDIDevice", "name"),
		honoured("ContainerMetadata", "name", "attempt"),
		honoured("ImageSpec", "image", "user_specified_image", "runtime_handler"),
		honoured("KeyValue", "key", "value"),
		honoured("Mount", "container_path", "host_path", "readonly", "selinux_relabel", "propagation", "uidMappings", "gidMappings",
			"recursive_read_only", "image", "image_sub_path", "mount_options"),
		honoured("Device", "container_path", "host_path", "permissions"),
		honoured("LinuxContainerConfig", "resources", "security_context"),
		honoured("LinuxContainerSecurityContext", "capabilities", "privileged", "namespace_options", "selinux_options", "run_as_user",
			"run_as_group", "run_as_username", "readonly_rootfs", "supplemental_groups", "supplemental_groups_policy", "no_new_privs",
			"masked_paths", "readonly_paths", "seccomp", "apparmor", "apparmor_profile", "seccomp_profile_path"),
		honoured("Capability", "add_capabilities", "drop_capabilities", "add_ambient_capabilities"),
	} {
		for k, v := range part {
			m[k] = v
		}
	}
	return m
}

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
		if f := c.fields[key(fd)]; f.Disposition == Refused {
			err = invalid(name, "%s", f.Why)
			return false
		}
		switch {
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

func key(fd protoreflect.FieldDescriptor) string {
	return string(fd.ContainingMessage().Name()) + "." + string(fd.Name())
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
