package cli

import (
	"bufio"
	"io"
	"os"
	"strings"

	"gantry/internal/engine"
	"gantry/internal/image"
	"gantry/internal/pod"
)

// podSpec is a pod as a command line or a manifest describes it. Nothing of the
// machine was looked up yet: the same words give the same podSpec everywhere.
type podSpec struct {
	Pod     pod.Pod
	Apps    []appSpec
	Volumes []volume
	// FSGroup owns the pod's own volumes; nil: root.
	FSGroup *int64
	// HostDNS takes servers, searches or options that are not given from the host.
	HostDNS bool
	// OwnUsers gives the pod a user namespace with IDs of its own.
	OwnUsers bool
	// Notes are for the user.
	Notes []string
}

// appSpec is an app of a podSpec.
type appSpec struct {
	engine.AppSpec
	Pull    image.PullPolicy
	Init    bool // runs to its end before the next app starts
	NonRoot bool // is refused if its user turns out to be 0
	// Mounts of the pod's volumes, whose sources exist once the pod does.
	VolumeMounts []volumeMount
}

type volumeMount struct {
	Volume string
	Mount  pod.Mount
}

// volume is a directory that lives and dies with the pod, or a path of the host
// that is to be of a certain type.
type volume struct {
	Name     string
	HostPath string // "" for a directory of the pod
	Type     string // of HostPath, as Kubernetes names them
}

const (
	defaultNamespace = "default"
	// annotationInit marks init apps, so that run-prepared knows them.
	annotationInit = "gantry.io/init"

	cpuPeriod = 100_000 // microseconds, the kernel's default
)

func isInit(a pod.AppStatus) bool { return a.Annotations[annotationInit] == "true" }

// defaultSecurity is stricter than Kubernetes' default: the runtime's seccomp and
// AppArmor profiles apply unless something else is asked for.
func defaultSecurity() pod.Security {
	p := pod.Profile{Kind: pod.ProfileRuntimeDefault}
	return pod.Security{Seccomp: p, AppArmor: p}
}

// hostnameOf makes a hostname of a pod's name.
func hostnameOf(name string) string {
	h := strings.ReplaceAll(name, ".", "-")
	return strings.TrimRight(h[:min(63, len(h))], "-")
}

// imageWord makes a name for a pod or an app of an image's name:
// registry.example.org/team/Web_app:1 is web-app.
func imageWord(ref string) string {
	ref, _, _ = strings.Cut(ref, "@")
	ref = ref[strings.LastIndexByte(ref, '/')+1:]
	ref, _, _ = strings.Cut(ref, ":")
	word := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			return r
		case r >= 'A' && r <= 'Z':
			return r + 'a' - 'A'
		default:
			return '-'
		}
	}, ref)
	if word = strings.Trim(word[:min(40, len(word))], "-"); word == "" {
		return "app"
	}
	return word
}

// resolvConf reads what a pod takes over of the host's resolv.conf.
func resolvConf(r io.Reader) *pod.DNS {
	dns := &pod.DNS{}
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		if len(words) < 2 {
			continue
		}
		switch words[0] {
		case "nameserver":
			dns.Servers = append(dns.Servers, words[1])
		case "search":
			dns.Searches = words[1:]
		case "options":
			dns.Options = append(dns.Options, words[1:]...)
		}
	}
	return dns
}

// hostDNS reads the host's resolv.conf. Where systemd-resolved answers on a
// loopback address, which a pod cannot reach, its file of real servers is used.
func hostDNS() *pod.DNS {
	for _, path := range []string{"/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"} {
		f, err := os.Open(path)
		if err != nil {
			continue
		}
		dns := resolvConf(f)
		f.Close()
		if !allLoopback(dns.Servers) {
			return dns
		}
	}
	return &pod.DNS{}
}

func allLoopback(servers []string) bool {
	for _, s := range servers {
		if !strings.HasPrefix(s, "127.") && s != "::1" {
			return false
		}
	}
	return true
}

// mergeDNS adds to what was asked for what is missing.
func mergeDNS(asked, host *pod.DNS) *pod.DNS {
	if asked == nil {
		return host
	}
	out := *asked
	if len(out.Servers) == 0 {
		out.Servers = host.Servers
	}
	if len(out.Searches) == 0 {
		out.Searches = host.Searches
	}
	if len(out.Options) == 0 {
		out.Options = host.Options
	}
	return &out
}
