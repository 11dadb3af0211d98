// Package pod is the domain of Gantry: pods, their apps (containers), what was
// asked of them and what became of them.
//
// A Pod and an App are immutable once created. What happens to them is never
// stored as a word: Observe computes a Phase from the records on disk, from what
// systemd says and from the exit record, so no two sources can disagree.
//
// The package uses the standard library only; everything else builds on it.
package pod

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"fmt"
	"strings"
	"time"
)

// ID names a pod or an app for ever: 24 characters of [a-z2-7], random. It
// stands in unit names, paths and cgroups without any escaping.
type ID string

const idBytes = 15

// NewID returns a fresh random ID.
func NewID() ID {
	var b [idBytes]byte
	rand.Read(b[:]) // never fails: it crashes the program instead
	return ID(strings.ToLower(base32.StdEncoding.EncodeToString(b[:])))
}

// categories is how many an SELinux policy of levels has.
const categories = 1024

// Level is the SELinux level of a pod: two categories that hardly another pod has.
func Level(id ID) string {
	sum := sha256.Sum256([]byte(id))
	n := binary.BigEndian.Uint32(sum[:])
	a, b := n%categories, n/categories%(categories-1)
	if b >= a { // any but a
		b++
	}
	return fmt.Sprintf("s0:c%d,c%d", min(a, b), max(a, b))
}

// ParseID checks that s is a whole ID.
func ParseID(s string) (ID, error) {
	if len(s) != idBytes*8/5 || !IsIDPrefix(s) {
		return "", fmt.Errorf("id %q: want %d characters of a-z and 2-7: %w", s, idBytes*8/5, ErrInvalid)
	}
	return ID(s), nil
}

// IsIDPrefix tells whether an ID could begin with s.
func IsIDPrefix(s string) bool {
	for _, c := range s {
		if (c < 'a' || c > 'z') && (c < '2' || c > '7') {
			return false
		}
	}
	return len(s) <= idBytes*8/5
}

// Owner tells who may change a pod. It never changes.
type Owner string

// The owners. Kubelet kills every pod of the CRI that it does not know, so the
// CRI server lists OwnerCRI pods only.
const (
	OwnerCRI Owner = "cri"
	OwnerCLI Owner = "cli"
)

// Pod is what was asked for when the pod was made. But for the annotations, which
// are kept apart, it holds no secret and may be read by everyone who may list pods.
type Pod struct {
	Version   int       `json:"version"`
	ID        ID        `json:"id"`
	Owner     Owner     `json:"owner"`
	Name      string    `json:"name"`
	Namespace string    `json:"namespace,omitempty"`
	UID       string    `json:"uid,omitempty"`
	Attempt   uint32    `json:"attempt,omitempty"`
	Created   time.Time `json:"created"`

	Labels      map[string]string `json:"labels,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`

	// Isolator is the isolator that was chosen; Handler is what the caller asked
	// for ("" for the node's default) and is echoed back.
	Isolator string `json:"isolator"`
	Handler  string `json:"handler,omitempty"`
	// IsolatorReason tells why a pod that asked for none has not the node's default.
	IsolatorReason string `json:"isolatorReason,omitempty"`

	Hostname     string `json:"hostname,omitempty"`
	DNS          *DNS   `json:"dns,omitempty"`
	Ports        []Port `json:"ports,omitempty"`
	LogDirectory string `json:"logDirectory,omitempty"`

	// CgroupParent is the cgroup path kubelet gave, as it gave it
	// (/kubepods.slice/…/kubepods-pod1.slice). Slice is the unit that the apps run
	// in; it is kubelet's slice if there is one, else gantry-<id>.slice.
	CgroupParent string `json:"cgroupParent,omitempty"`
	Slice        string `json:"slice"`

	Namespaces Namespaces        `json:"namespaces"`
	Sysctls    map[string]string `json:"sysctls,omitempty"`
	Security   Security          `json:"security"`
	PodResources
}

// PodResources are the sizes of a pod as a whole. They may change while it runs.
type PodResources struct {
	Resources *Resources `json:"resources,omitempty"` // the sum of its apps'
	Overhead  *Resources `json:"overhead,omitempty"`  // what the isolator takes besides
}

// HostNetwork tells whether the pod lives in the host's network namespace.
func (p *Pod) HostNetwork() bool { return p.Namespaces.Network == NamespaceNode }

// DNS is what the pod's resolv.conf says.
type DNS struct {
	Servers  []string `json:"servers,omitempty"`
	Searches []string `json:"searches,omitempty"`
	Options  []string `json:"options,omitempty"`
}

// Protocol of a port mapping, in lower case as CNI wants it.
type Protocol string

// The protocols.
const (
	TCP  Protocol = "tcp"
	UDP  Protocol = "udp"
	SCTP Protocol = "sctp"
)

// Port maps a port of the host to one of the pod. HostPort 0 maps nothing.
type Port struct {
	Protocol Protocol `json:"protocol"`
	PodPort  int32    `json:"podPort"`
	HostPort int32    `json:"hostPort,omitempty"`
	HostIP   string   `json:"hostIP,omitempty"`
}

// NamespaceMode says whose namespace is used.
type NamespaceMode string

// The modes. NamespaceTarget is for PID only: the namespace of another app.
const (
	NamespacePod    NamespaceMode = "pod"
	NamespaceApp    NamespaceMode = "app"
	NamespaceNode   NamespaceMode = "node"
	NamespaceTarget NamespaceMode = "target"
)

// Namespaces of a pod, or of an app where they differ.
type Namespaces struct {
	Network NamespaceMode `json:"network"`
	PID     NamespaceMode `json:"pid"`
	IPC     NamespaceMode `json:"ipc"`
	// Target is the app whose PID namespace is joined when PID is NamespaceTarget.
	Target ID      `json:"target,omitempty"`
	User   *UserNS `json:"user,omitempty"` // nil: the host's user namespace
}

// UserNS maps the IDs of the pod's own user namespace.
type UserNS struct {
	UIDs []IDMap `json:"uids"`
	GIDs []IDMap `json:"gids"`
}

// IDMap is one line of uid_map.
type IDMap struct {
	Container uint32 `json:"container"`
	Host      uint32 `json:"host"`
	Length    uint32 `json:"length"`
}
