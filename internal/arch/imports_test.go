package arch

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// mayImport lists, for each package, which packages of this module its code may
// import. The tests of a package may import more, but see fences.
var mayImport = map[string][]string{
	// The bottom: data and small tools. They know nothing of each other.
	"internal/pod":           {},
	"internal/unit":          {},
	"internal/disk":          {},
	"internal/namespace":     {},
	"internal/guest/guestpb": {},
	"api/v1":                 {},

	// gantry-init: its start-up time and memory are charged to every container.
	"internal/initproc": {"internal/disk", "internal/namespace", "internal/pod"},

	// What runs in a virtual machine.
	"internal/guest":     {"internal/guest/guestpb", "internal/initproc"},
	"internal/initramfs": {"internal/pod"},
	"internal/machine":   {"internal/disk", "internal/guest", "internal/guest/guestpb", "internal/initproc", "internal/initramfs", "internal/journal", "internal/namespace", "internal/pod", "internal/stdio", "internal/unit"},

	// The parts. Each knows the domain, none knows another.
	"internal/cdi":               {"internal/pod"},
	"internal/config":            {"internal/unit"},
	"internal/crilog":            {"internal/pod"},
	"internal/image":             {"internal/disk", "internal/image/erofs", "internal/pod", "internal/unit"},
	"internal/image/erofs":       {},
	"internal/isolator":          {"internal/pod", "internal/unit"},
	"internal/isolator/contract": {"internal/isolator", "internal/pod", "internal/unit"},
	"internal/isolator/external": {
		"internal/initproc", "internal/isolator", "internal/isolator/contract", "internal/isolator/fly", "internal/isolator/recipe",
		"internal/pod", "internal/unit",
	},
	"internal/isolator/fly":          {"internal/initproc", "internal/isolator", "internal/isolator/recipe", "internal/pod", "internal/unit"},
	"internal/isolator/kvm":          {"internal/guest", "internal/initproc", "internal/isolator", "internal/isolator/fly", "internal/isolator/recipe", "internal/machine", "internal/pod", "internal/unit"},
	"internal/isolator/oci":          {"internal/initproc", "internal/isolator", "internal/isolator/recipe", "internal/pod", "internal/unit"},
	"internal/isolator/recipe":       {"internal/isolator", "internal/pod", "internal/unit"},
	"internal/journal":               {"internal/pod"},
	"internal/manifest":              {"internal/pod"},
	"internal/network":               {"internal/pod"},
	"internal/podstore":              {"internal/pod"},
	"internal/podstore/writer":       {"internal/disk", "internal/pod", "internal/podstore"},
	"internal/stdio":                 {"internal/crilog", "internal/disk", "internal/journal", "internal/pod"},
	"internal/systemd":               {"internal/unit"},
	"internal/isolator/isolatortest": {"internal/isolator", "internal/isolator/contract"},
	"internal/network/networktest":   {},
	"internal/systemd/systemdtest":   {"internal/systemd", "internal/unit"},

	// The use cases, and the one way to put them together on a machine.
	"internal/engine": {
		"internal/cdi", "internal/crilog", "internal/disk", "internal/image", "internal/initproc", "internal/isolator", "internal/journal",
		"internal/namespace", "internal/network", "internal/pod", "internal/podstore", "internal/podstore/writer",
		"internal/stdio", "internal/systemd", "internal/unit",
	},
	"internal/engine/enginetest": {"internal/engine", "internal/image", "internal/network", "internal/pod"},
	"internal/node": {
		"internal/config", "internal/engine", "internal/image", "internal/isolator", "internal/isolator/external", "internal/isolator/fly",
		"internal/isolator/kvm", "internal/isolator/oci", "internal/machine", "internal/network", "internal/pod", "internal/podstore", "internal/podstore/writer",
		"internal/stdio", "internal/systemd",
	},

	// The adapters.
	"internal/cri":         {"internal/pod"},
	"internal/cri/critest": {},
	"internal/criserver":   {"internal/cri", "internal/engine", "internal/image", "internal/network", "internal/pod"},
	"internal/apiservice":  {"api/v1", "internal/cri", "internal/journal", "internal/pod", "internal/podstore"},
	"internal/cli": {
		"internal/cdi", "internal/config", "internal/crilog", "internal/disk", "internal/engine", "internal/image", "internal/isolator", "internal/isolator/external",
		"internal/journal", "internal/manifest", "internal/network", "internal/node", "internal/pod", "internal/podstore", "internal/unit",
	},

	"internal/arch": {},

	// Programs: main only.
	"cmd/gantry":       {"internal/cli", "internal/config", "internal/node"},
	"cmd/gantry-api":   {"internal/apiservice", "internal/config"},
	"cmd/gantry-cri":   {"internal/config", "internal/criserver", "internal/engine", "internal/node", "internal/pod"},
	"cmd/gantry-guest": {"internal/guest", "internal/machine"},
	"cmd/gantry-init":  {"internal/initproc"},
	"cmd/gantry-stdio": {"internal/config", "internal/journal", "internal/stdio"},
}

// fence keeps a foreign module inside the packages that hide it.
type fence struct {
	prefix string
	within []string
	why    string
}

var fences = []fence{
	{"github.com/godbus/dbus", []string{"internal/systemd"}, "one port to PID 1: reconnecting and retrying are decided there"},
	{"github.com/coreos/go-systemd/v22/dbus", nil, "package systemd is the port to PID 1"},
	{"github.com/coreos/go-systemd/v22/sdjournal", nil, "it needs cgo"},
	{"github.com/containernetworking", []string{"internal/network"}, "what a CNI result is, is decided in one place"},
	{"github.com/vishvananda", []string{"internal/guest", "internal/machine", "internal/network", "internal/namespace"}, "netlink is the network's business"},
	{"github.com/containerd/ttrpc", []string{"internal/guest", "internal/guest/guestpb", "internal/machine"}, "what is said to a virtual machine is said in one place"},
	{"github.com/mdlayher/vsock", []string{"internal/guest", "internal/machine"}, "what is said to a virtual machine is said in one place"},
	{"github.com/cavaliergopher/cpio", []string{"internal/initramfs"}, "what a virtual machine boots into is made in one place"},
	{"github.com/ulikunitz/xz", []string{"internal/initramfs"}, "it unpacks modules"},
	{"go.podman.io/image", []string{"internal/image"}, "the registry client is big, and is replaced in one place if it must be"},
	{"go.podman.io/storage", nil, "the store is ours: a directory that many processes may use at once"},
	{"github.com/google/go-containerregistry", nil, "it serves images to tests"},
	{"github.com/opencontainers/runtime-spec", []string{"internal/isolator/fly", "internal/isolator/oci", "internal/isolator/recipe"}, "the OCI's words are an isolator's business"},
	{"github.com/elastic/go-seccomp-bpf", []string{"internal/isolator/fly"}, "its tables of system calls"},
	{"tags.cncf.io/container-device-interface", []string{"internal/cdi"}, "vendors' files are read in one place"},
	{"github.com/moby/sys/mountinfo", []string{"internal/engine"}, "where a source of an app's mount is, is asked when it is created"},
	{"github.com/moby/sys/capability", []string{"internal/isolator/recipe"}, "capability names are its tables"},
	{"github.com/moby/profiles", []string{"internal/isolator/recipe"}, "the default profile is its table"},
	{"k8s.io", []string{"internal/cri", "internal/criserver"}, "Kubernetes' words stay at the edge; they change every release"},
	{"google.golang.org/grpc", []string{"internal/apiservice", "internal/guest", "internal/criserver", "cmd/gantry-cri", "cmd/gantry-api"}, "errors become codes once, at the edge"},
	{"go.opentelemetry.io", []string{"internal/criserver", "cmd/gantry-cri"}, "traces are of requests, and begin at the edge"},
	{"google.golang.org/protobuf", []string{"api/v1", "internal/apiservice", "internal/guest/guestpb", "internal/cri", "internal/criserver"}, "messages stay at the edge"},
	{"github.com/spf13", []string{"internal/cli"}, "commands are the CLI's"},
	{"github.com/BurntSushi/toml", []string{"internal/config"}, "one reader of the configuration"},
}

// lean packages may use the standard library, and x/sys where it says so. They
// are linked into gantry-init, or are read by everything.
var lean = map[string]bool{ // true: golang.org/x/sys too
	"internal/pod": false, "internal/unit": false,
	"internal/disk": true, "internal/initproc": true, "internal/namespace": true,
	"cmd/gantry-init": true,
}

// heavy is what the lean packages, and all that they import, may not import.
var heavy = map[string]string{
	"net/http":      "8 MB of program",
	"crypto/tls":    "it comes with x509 and a megabyte of tables",
	"text/template": "reflection keeps every method in the program",
	"html/template": "reflection keeps every method in the program",
	"regexp":        "compiled at start-up, charged to every container",
	"log":           "programs have a *slog.Logger or return an error",
}

func TestImports(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for _, p := range sources(t) {
		if within(p.dir, "test") || within(p.dir, "bench") {
			continue // they may use everything
		}
		seen[p.dir] = true
		allowed, ok := mayImport[p.dir]
		if !ok {
			t.Errorf("%s: new package; add it to mayImport here and to docs/architecture.md", p.dir)
			continue
		}
		for _, f := range p.code() {
			for _, imp := range f.imports {
				if dep, ours := strings.CutPrefix(imp, module); ours && !slices.Contains(allowed, dep) {
					t.Errorf("%s: %s must not import %s", f.name, p.dir, dep)
				}
			}
		}
	}
	for dir, allowed := range mayImport {
		for _, dep := range allowed {
			if _, ok := mayImport[dep]; !ok {
				t.Errorf("mayImport[%s] has %s, which mayImport does not list", dir, dep)
			}
		}
	}
}

func TestFences(t *testing.T) {
	t.Parallel()
	mod, err := os.ReadFile(filepath.Join(root, "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	for _, fence := range fences {
		// github.com/coreos/go-systemd/v22/dbus is in a module, k8s.io has modules.
		parts := strings.Split(fence.prefix, "/")
		if !strings.Contains(string(mod), strings.Join(parts[:min(2, len(parts))], "/")) {
			t.Errorf("fence around %s: go.mod does not name it any more", fence.prefix)
		}
	}
	for _, p := range sources(t) {
		for _, f := range p.files {
			if inTests(p, f) {
				continue // they talk to the product from outside, in any language
			}
			for _, imp := range f.imports {
				for _, fence := range fences {
					if within(imp, fence.prefix) && !slices.ContainsFunc(fence.within, func(d string) bool { return within(p.dir, d) }) {
						t.Errorf("%s must not import %s: %s", f.name, imp, fence.why)
					}
				}
			}
		}
	}
}

func TestLeanPackages(t *testing.T) {
	t.Parallel()
	pkgs, err := source()
	if err != nil {
		t.Fatal(err)
	}
	for dir, sys := range lean {
		for _, from := range closure(pkgs, dir) {
			for _, f := range pkgs[from].code() {
				for _, imp := range f.imports {
					host, _, _ := strings.Cut(imp, "/")
					foreign := strings.Contains(host, ".") && (!sys || !within(imp, "golang.org/x/sys"))
					if why := heavy[imp]; why != "" {
						t.Errorf("%s imports %s, and is part of %s: %s", f.name, imp, dir, why)
					} else if foreign {
						t.Errorf("%s imports %s, and is part of %s, which is kept to the standard library", f.name, imp, dir)
					}
				}
			}
		}
	}
}

// closure is a package and all packages of this module that it imports, however
// indirectly.
func closure(pkgs map[string]*pkg, dir string) []string {
	if pkgs[dir] == nil {
		return nil // not written yet
	}
	found := []string{dir}
	for i := 0; i < len(found); i++ {
		for _, f := range pkgs[found[i]].code() {
			for _, imp := range f.imports {
				dep, ours := strings.CutPrefix(imp, module)
				if ours && pkgs[dep] != nil && !slices.Contains(found, dep) {
					found = append(found, dep)
				}
			}
		}
	}
	return found
}

// TestReadersDoNotLinkWriters: idea 5 of docs/architecture.md. What only looks
// does not even contain the code that changes things.
func TestReadersDoNotLinkWriters(t *testing.T) {
	t.Parallel()
	pkgs, err := source()
	if err != nil {
		t.Fatal(err)
	}
	writers := []string{"internal/engine", "internal/podstore/writer", "internal/image", "internal/network", "internal/systemd", "internal/criserver", "internal/node"}
	for _, reader := range []string{"internal/apiservice", "cmd/gantry-api", "internal/cri", "internal/podstore", "internal/crilog"} {
		for _, dep := range closure(pkgs, reader) {
			if slices.Contains(writers, dep) {
				t.Errorf("%s must only read, and contains %s", reader, dep)
			}
		}
	}
}

// TestArchitectureIsDocumented: the page names every package.
func TestArchitectureIsDocumented(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile(filepath.Join(root, "docs/architecture.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range sources(t) {
		name := p.dir[strings.LastIndexByte(p.dir, '/')+1:]
		if within(p.dir, "internal") && !p.forTests() && !strings.Contains(string(page), name) {
			t.Errorf("docs/architecture.md does not speak of %s", p.dir)
		}
	}
}
