package node

import (
	"gantry/internal/isolator"
	"gantry/internal/isolator/external"
	"gantry/internal/stdio"
)

// thirdParties are the executables that an operator or a package has put there. They
// replace none of ours, and no name that the operator gave to one.
func thirdParties(o Options, c external.Config) ([]isolator.Isolator, error) {
	taken := map[string]string{"oci": "one of Gantry's own", "fly": "one of Gantry's own", "kvm": "one of Gantry's own"}
	for name := range o.Handlers {
		taken[name] = "a handler (isolator.handlers)"
	}
	for _, r := range o.Runtimes {
		taken[r.Name] = "an OCI runtime (oci.runtimes)"
	}
	found, err := external.Find(o.IsolatorDirs, c, taken)
	out := make([]isolator.Isolator, len(found))
	for i, x := range found {
		out[i] = x
	}
	return out, err
}

// TryIsolator is an executable that may be anywhere and anybody's, to be checked.
func TryIsolator(path string) (*external.External, error) {
	return external.New(path, external.Config{Init: Init, StdioSocket: stdio.Socket, AnyOwner: true})
}
