package cri

import (
	"errors"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/cri/critest"
	"gantry/internal/pod"
)

// notServed are the calls whose messages are not in the table.
func notServed(method string) bool { return method == "CheckpointPod" || method == "RestorePod" }

// reachable collects the messages that a message is made of.
func reachable(m protoreflect.MessageDescriptor, found map[string]protoreflect.MessageDescriptor) {
	if found[string(m.Name())] != nil {
		return
	}
	found[string(m.Name())] = m
	for i := range m.Fields().Len() {
		if fd := m.Fields().Get(i); fd.Kind() == protoreflect.MessageKind && !fd.IsMap() {
			reachable(fd.Message(), found)
		}
	}
}

// A field that the CRI gets must be decided on before the module can be updated.
func TestEveryFieldIsInTheTable(t *testing.T) {
	t.Parallel()
	in, out := map[string]protoreflect.MessageDescriptor{}, map[string]protoreflect.MessageDescriptor{}
	services := (&runtimeapi.VersionRequest{}).ProtoReflect().Descriptor().ParentFile().Services()
	for i := range services.Len() {
		for j := range services.Get(i).Methods().Len() {
			if m := services.Get(i).Methods().Get(j); !notServed(string(m.Name())) {
				reachable(m.Input(), in)
				reachable(m.Output(), out)
			}
		}
	}
	if services.Len() != 2 || in["AuthConfig"] == nil || out["PsiData"] == nil {
		t.Fatalf("%d services, requests of %d messages, answers of %d", services.Len(), len(in), len(out))
	}
	table := Fields()
	unused := maps.Clone(table)
	for name, m := range out {
		if in[name] == nil {
			decided(t, table, unused, m, Told, Empty)
		}
	}
	for _, m := range in {
		decided(t, table, unused, m, Honoured, Refused, Noted)
	}
	for k := range unused {
		t.Errorf("%s is in the table, but the CRI has no such field", k)
	}
}

// decided wants a line for each field of a message, of one of some kinds.
func decided(t *testing.T, table, unused map[string]Field, m protoreflect.MessageDescriptor, kinds ...Disposition) {
	t.Helper()
	for i := range m.Fields().Len() {
		fd := m.Fields().Get(i)
		f, ok := Lookup(table, fd)
		delete(unused, key(fd))
		delete(unused, string(m.Name())+"."+All)
		switch {
		case !ok:
			t.Errorf("%s is not in the table", key(fd))
		case !slices.Contains(kinds, f.Disposition):
			t.Errorf("%s: %d is a disposition of other messages", key(fd), f.Disposition)
		case f.Disposition != Honoured && f.Disposition != Told && f.Why == "":
			t.Errorf("%s: no reason", key(fd))
		}
	}
}

// translate is all that happens to the request for a sandbox.
func translate(c *runtimeapi.PodSandboxConfig) (pod.Pod, error) {
	if err := NewChecker().Check("config", c); err != nil {
		return pod.Pod{}, err
	}
	return Pod(c, "")
}

func TestEveryFieldOfASandboxHasItsEffect(t *testing.T) {
	t.Parallel()
	base := critest.Sandbox()
	want, err := translate(base)
	if err != nil {
		t.Fatal(err)
	}
	changes, err := critest.Changes("config", base, map[string]bool{
		"PodSandboxConfig.windows": true, "NamespaceOption.target_id": true, "IDMapping.container_id": true, "PortMapping.protocol": true,
	})
	if err != nil {
		t.Fatal(err)
	}
	table := Fields()
	for _, c := range changes {
		t.Run(c.Path, func(t *testing.T) {
			got, err := translate(c.Message.(*runtimeapi.PodSandboxConfig))
			same := err == nil && reflect.DeepEqual(got, want)
			switch f := fieldOf(table, c); f.Disposition {
			case Refused:
				if !errors.Is(err, pod.ErrInvalid) || !strings.Contains(err.Error(), c.Path) {
					t.Errorf("got %v, want it refused", err)
				}
			case Noted:
				if !same {
					t.Errorf("has an effect, but the table says: %s", f.Why)
				}
			default:
				if same {
					t.Error("is ignored in silence")
				}
				if err != nil && !errors.Is(err, pod.ErrInvalid) {
					t.Errorf("error of the wrong kind: %v", err)
				}
			}
		})
	}
}

// fieldOf finds the disposition of a field: what is inside a noted one is noted.
func fieldOf(table map[string]Field, c critest.Change) Field {
	for k, f := range table {
		message, name, _ := strings.Cut(k, ".")
		if f.Disposition == Noted && strings.Contains(c.Path, "."+name+".") && strings.HasPrefix(message, "LinuxSandbox") {
			return f
		}
	}
	return table[c.Field]
}

func TestCheckRefuses(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		config *runtimeapi.ContainerConfig
		want   string
	}{
		"a windows container": {&runtimeapi.ContainerConfig{Windows: &runtimeapi.WindowsContainerConfig{}}, "config.windows"},
		"an unknown member of an enumeration": {
			&runtimeapi.ContainerConfig{Mounts: []*runtimeapi.Mount{{}, {Propagation: 9}}},
			"config.mounts[1].propagation",
		},
		"a NUL byte in a string": {&runtimeapi.ContainerConfig{Args: []string{"a", "b\x00"}}, "config.args[1]"},
		"a NUL byte in bytes":    {&runtimeapi.ContainerConfig{Envs: []*runtimeapi.KeyValue{{Key: "A", Value: []byte{0}}}}, "config.envs[0].value"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := NewChecker().Check("config", c.config)
			if !errors.Is(err, pod.ErrInvalid) || !strings.HasPrefix(err.Error(), c.want+":") {
				t.Errorf("got %v, want %s refused", err, c.want)
			}
		})
	}
	// Nothing looks at these.
	windows := &runtimeapi.PodSandboxConfig{Windows: &runtimeapi.WindowsPodSandboxConfig{}}
	for _, m := range []proto.Message{
		&runtimeapi.CreateContainerRequest{Config: critest.Container(), SandboxConfig: windows}, &runtimeapi.PullImageRequest{SandboxConfig: windows},
	} {
		if err := NewChecker().Check("", m); err != nil {
			t.Errorf("%T: %v", m, err)
		}
	}
}

func TestUnknownFieldsAreFound(t *testing.T) {
	t.Parallel()
	c := critest.Container()
	raw := protowire.AppendTag(nil, 99, protowire.VarintType)
	raw = protowire.AppendVarint(raw, 1)
	c.Mounts[0].ProtoReflect().SetUnknown(raw)
	c.ProtoReflect().SetUnknown(raw)
	got := Unknown("config", c)
	if want := []string{"config.99", "config.mounts[0].99"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := Unknown("config", critest.Container()); len(got) > 0 {
		t.Errorf("got %q", got)
	}
	whole := &runtimeapi.CreateContainerRequest{Config: c}
	whole.ProtoReflect().SetUnknown(raw)
	if got, want := Unknown("", whole), []string{"99", "config.99", "config.mounts[0].99"}; !slices.Equal(got, want) {
		t.Errorf("of a request: got %q, want %q", got, want)
	}
}

func TestTableIsNotShared(t *testing.T) {
	t.Parallel()
	a := Fields()
	maps.DeleteFunc(a, func(string, Field) bool { return true })
	if len(Fields()) == 0 {
		t.Error("a caller can change the table")
	}
}
