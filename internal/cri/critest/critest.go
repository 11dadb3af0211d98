// Package critest helps to prove that a translation of CRI messages looks at every
// field: it changes a message one field at a time.
package critest

import (
	"fmt"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Change is a message with one field changed.
type Change struct {
	Path    string // config.linux.resources.cpu_quota
	Field   string // LinuxContainerResources.cpu_quota
	Message proto.Message
}

// Changes gives copies of a message, each with one field changed. Every field of
// the message must be set, lists and maps must have an element: one that is not is
// an error, so that a new field of the CRI cannot be overlooked. Fields in skip are
// set from their zero value instead.
func Changes(root string, m proto.Message, skip map[string]bool) ([]Change, error) {
	var out []Change
	err := walk(root, nil, m.ProtoReflect(), skip, func(path, field string, steps []step, change func(protoreflect.Message)) {
		copied := proto.Clone(m)
		at := copied.ProtoReflect()
		for _, s := range steps {
			at = s(at)
		}
		change(at)
		out = append(out, Change{path, field, copied})
	})
	return out, err
}

// step goes from a message to one inside it.
type step func(protoreflect.Message) protoreflect.Message

type found func(path, field string, steps []step, change func(protoreflect.Message))

func walk(at string, steps []step, m protoreflect.Message, skip map[string]bool, emit found) error {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		path := at + "." + string(fd.Name())
		field := string(m.Descriptor().Name()) + "." + string(fd.Name())
		if skip[field] {
			emit(path, field, steps, func(m protoreflect.Message) { setZero(m, fd) })
			continue
		}
		if !m.Has(fd) && fd.Kind() != protoreflect.BoolKind && fd.Kind() != protoreflect.EnumKind {
			return fmt.Errorf("%s (%s) is not set in the message to change", path, field)
		}
		into := fd.Kind() == protoreflect.MessageKind && !fd.IsMap()
		switch {
		case into && fd.IsList():
			next := append(steps[:len(steps):len(steps)], func(m protoreflect.Message) protoreflect.Message { return m.Get(fd).List().Get(0).Message() })
			if err := walk(path+"[0]", next, m.Get(fd).List().Get(0).Message(), skip, emit); err != nil {
				return err
			}
		case into:
			next := append(steps[:len(steps):len(steps)], func(m protoreflect.Message) protoreflect.Message { return m.Get(fd).Message() })
			if err := walk(path, next, m.Get(fd).Message(), skip, emit); err != nil {
				return err
			}
		default:
			emit(path, field, steps, func(m protoreflect.Message) { set(m, fd) })
		}
	}
	return nil
}

// setZero sets a field that was not set: a message to an empty one.
func setZero(m protoreflect.Message, fd protoreflect.FieldDescriptor) {
	switch {
	case fd.IsList() && fd.Kind() == protoreflect.MessageKind:
		m.Mutable(fd).List().AppendMutable()
	case fd.Kind() == protoreflect.MessageKind && !fd.IsMap():
		m.Mutable(fd)
	default:
		set(m, fd)
	}
}

func set(m protoreflect.Message, fd protoreflect.FieldDescriptor) {
	switch {
	case fd.IsMap():
		values := m.Mutable(fd).Map()
		values.Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
			values.Set(k, other(fd.MapValue(), v))
			return false
		})
	case fd.IsList():
		l := m.Mutable(fd).List()
		l.Set(0, other(fd, l.Get(0)))
	default:
		m.Set(fd, other(fd, m.Get(fd)))
	}
}

// other is a value that differs.
func other(fd protoreflect.FieldDescriptor, v protoreflect.Value) protoreflect.Value {
	switch fd.Kind() {
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(!v.Bool())
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(v.String() + "7")
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes(append([]byte("7"), v.Bytes()...))
	case protoreflect.EnumKind:
		n := (int(v.Enum()) + 1) % fd.Enum().Values().Len()
		return protoreflect.ValueOfEnum(protoreflect.EnumNumber(n))
	case protoreflect.Int32Kind:
		return protoreflect.ValueOfInt32(int32(v.Int() + 1))
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(v.Int() + 1)
	case protoreflect.Uint32Kind:
		return protoreflect.ValueOfUint32(uint32(v.Uint() + 1))
	case protoreflect.Uint64Kind:
		return protoreflect.ValueOfUint64(v.Uint() + 1)
	}
	panic("a kind of field that the CRI did not have: " + fd.Kind().String())
}

// Sandbox is a valid request for a sandbox with every field set that a Linux node
// takes.
func Sandbox() *runtimeapi.PodSandboxConfig {
	return &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: "web", Uid: "uid-1", Namespace: "default", Attempt: 2},
		Hostname:     "web",
		LogDirectory: "/var/log/pods/default_web_uid-1",
		DnsConfig:    &runtimeapi.DNSConfig{Servers: []string{"10.0.0.10"}, Searches: []string{"svc.local"}, Options: []string{"ndots:5"}},
		PortMappings: []*runtimeapi.PortMapping{{ContainerPort: 80, HostPort: 8080, HostIp: "127.0.0.1"}},
		Labels:       map[string]string{"app": "web"},
		Annotations:  map[string]string{"note": "text"},
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			CgroupParent: "/kubepods.slice/kubepods-pod1.slice",
			Sysctls:      map[string]string{"net.core.somaxconn": "1024"},
			Overhead:     Resources(),
			Resources:    Resources(),
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
				NamespaceOptions: &runtimeapi.NamespaceOption{
					Pid: runtimeapi.NamespaceMode_CONTAINER,
					UsernsOptions: &runtimeapi.UserNamespace{
						Uids: []*runtimeapi.IDMapping{{HostId: 65536, Length: 65536}},
						Gids: []*runtimeapi.IDMapping{{HostId: 65536, Length: 65536}},
					},
				},
				SelinuxOptions:     &runtimeapi.SELinuxOption{User: "system_u", Role: "system_r", Type: "container_t", Level: "s0:c1,c2"},
				RunAsUser:          &runtimeapi.Int64Value{Value: 1000},
				RunAsGroup:         &runtimeapi.Int64Value{Value: 1000},
				SupplementalGroups: []int64{2000},
				Seccomp:            &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: "/var/lib/kubelet/seccomp/a.json"},
				Apparmor:           &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: "my-profile"},
				SeccompProfilePath: "localhost//var/lib/kubelet/seccomp/a.json",
			},
		},
	}
}

// Container is a valid request for a container of a pod made of Sandbox, with
// every field set that a Linux node takes.
func Container() *runtimeapi.ContainerConfig {
	return &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "nginx", Attempt: 3},
		Image: &runtimeapi.ImageSpec{
			Image:              "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
			UserSpecifiedImage: "nginx:1.27", Annotations: map[string]string{"a": "b"}, RuntimeHandler: "oci", ImageRef: "nginx@sha256:11",
		},
		Command:    []string{"nginx"},
		Args:       []string{"-g", "daemon off;"},
		WorkingDir: "/srv",
		Envs:       []*runtimeapi.KeyValue{{Key: "A", Value: []byte("b")}},
		Mounts: []*runtimeapi.Mount{{
			ContainerPath: "/data", HostPath: "/mnt/data", Readonly: true, MountOptions: []string{"noexec"},
			UidMappings: []*runtimeapi.IDMapping{{HostId: 65536, Length: 65536}},
			GidMappings: []*runtimeapi.IDMapping{{HostId: 65536, Length: 65536}},
		}},
		CDIDevices:  []*runtimeapi.CDIDevice{{Name: "vendor.com/class=one"}},
		Devices:     []*runtimeapi.Device{{ContainerPath: "/dev/fuse", HostPath: "/dev/fuse", Permissions: "rw"}},
		Labels:      map[string]string{"io.kubernetes.container.name": "nginx"},
		Annotations: map[string]string{"io.kubernetes.container.restartCount": "3"},
		LogPath:     "nginx/3.log",
		StopSignal:  runtimeapi.Signal_SIGNAL_SIGQUIT,
		Linux: &runtimeapi.LinuxContainerConfig{
			Resources: Resources(),
			SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
				Capabilities: &runtimeapi.Capability{
					AddCapabilities: []string{"NET_ADMIN"}, DropCapabilities: []string{"ALL"}, AddAmbientCapabilities: []string{"NET_BIND_SERVICE"},
				},
				NamespaceOptions:   Sandbox().Linux.SecurityContext.NamespaceOptions,
				SelinuxOptions:     &runtimeapi.SELinuxOption{User: "system_u", Role: "system_r", Type: "container_t", Level: "s0:c1,c2"},
				RunAsUser:          &runtimeapi.Int64Value{Value: 1000},
				RunAsGroup:         &runtimeapi.Int64Value{Value: 1001},
				SupplementalGroups: []int64{2000},
				MaskedPaths:        []string{"/proc/kcore"},
				ReadonlyPaths:      []string{"/proc/sys"},
				Seccomp:            &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: "/var/lib/kubelet/seccomp/a.json"},
				Apparmor:           &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: "my-profile"},
				SeccompProfilePath: "localhost//var/lib/kubelet/seccomp/a.json",
				ApparmorProfile:    "localhost/my-profile",
			},
		},
	}
}

// Resources are limits with every field set.
func Resources() *runtimeapi.LinuxContainerResources {
	return &runtimeapi.LinuxContainerResources{
		CpuPeriod: 100000, CpuQuota: 50000, CpuShares: 512, MemoryLimitInBytes: 64 << 20, MemorySwapLimitInBytes: 128 << 20,
		OomScoreAdj: 900, CpusetCpus: "0-1", CpusetMems: "0",
		HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 4 << 20}},
		Unified:        map[string]string{"memory.oom.group": "1"},
	}
}
