package criserver

import (
	"errors"
	"reflect"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/cri"
	"gantry/internal/cri/critest"
	"gantry/internal/engine"
	"gantry/internal/pod"
)

// translate is all that happens to the request for a container. The handlers are
// those of a server with only the default one.
func translate(c *runtimeapi.ContainerConfig, p *pod.Pod) (engine.AppSpec, error) {
	if err := cri.NewChecker().Check("config", c); err != nil {
		return engine.AppSpec{}, err
	}
	s := &Server{cfg: Config{Handlers: []Handler{{Name: "oci"}}}}
	if err := s.knowsHandlers(c); err != nil {
		return engine.AppSpec{}, err
	}
	return appSpec(c, p)
}

func TestEveryFieldOfAContainerHasItsEffect(t *testing.T) {
	t.Parallel()
	p, err := cri.Pod(critest.Sandbox(), "")
	if err != nil {
		t.Fatal(err)
	}
	base := critest.Container()
	want, err := translate(base, &p)
	if err != nil {
		t.Fatal(err)
	}
	changes, err := critest.Changes("config", base, map[string]bool{
		"ContainerConfig.windows": true, "NamespaceOption.target_id": true, "IDMapping.container_id": true,
		"Mount.image": true, "Mount.image_sub_path": true, "LinuxContainerSecurityContext.run_as_username": true,
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(changes) < 75 {
		t.Errorf("only %d fields were changed", len(changes))
	}
	table := cri.Fields()
	for _, c := range changes {
		t.Run(c.Path, func(t *testing.T) {
			got, err := translate(c.Message.(*runtimeapi.ContainerConfig), &p)
			same := err == nil && reflect.DeepEqual(got, want)
			switch f := table[c.Field]; f.Disposition {
			case cri.Refused:
				if !errors.Is(err, pod.ErrInvalid) || !strings.Contains(err.Error(), c.Path) {
					t.Errorf("got %v, want it refused", err)
				}
			case cri.Noted:
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
