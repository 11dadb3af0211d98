package cri

import (
	"slices"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/pod"
)

// sandboxNamespaces reads the namespaces of a pod. Without options all of them
// are the pod's, as the CRI's zero values say; that includes the PID namespace.
func sandboxNamespaces(field string, o *runtimeapi.NamespaceOption) (pod.Namespaces, error) {
	if o.GetPid() == runtimeapi.NamespaceMode_TARGET || o.GetTargetId() != "" {
		return pod.Namespaces{}, invalid(field+".target_id", "a sandbox cannot join a container's namespace")
	}
	network, err := podOrNode(field+".network", o.GetNetwork())
	if err != nil {
		return pod.Namespaces{}, err
	}
	ipc, err := podOrNode(field+".ipc", o.GetIpc())
	if err != nil {
		return pod.Namespaces{}, err
	}
	user, err := userNS(field+".userns_options", o.GetUsernsOptions())
	if err != nil {
		return pod.Namespaces{}, err
	}
	ns := pod.Namespaces{Network: network, IPC: ipc, PID: pidMode(o.GetPid()), User: user}
	if user != nil && (ns.Network == pod.NamespaceNode || ns.PID == pod.NamespaceNode || ns.IPC == pod.NamespaceNode) {
		return pod.Namespaces{}, invalid(field+".userns_options", "a user namespace together with the host's network, PID or IPC namespace is not supported")
	}
	return ns, nil
}

func podOrNode(field string, m runtimeapi.NamespaceMode) (pod.NamespaceMode, error) {
	switch m {
	case runtimeapi.NamespaceMode_POD:
		return pod.NamespacePod, nil
	case runtimeapi.NamespaceMode_NODE:
		return pod.NamespaceNode, nil
	}
	return "", invalid(field, "%s is not possible here: want POD or NODE", m)
}

func pidMode(m runtimeapi.NamespaceMode) pod.NamespaceMode {
	switch m {
	case runtimeapi.NamespaceMode_CONTAINER:
		return pod.NamespaceApp
	case runtimeapi.NamespaceMode_NODE:
		return pod.NamespaceNode
	case runtimeapi.NamespaceMode_TARGET:
		return pod.NamespaceTarget
	}
	return pod.NamespacePod
}

// userNS reads a user namespace; none at all is the host's, as it was before
// kubelet knew of them.
func userNS(field string, u *runtimeapi.UserNamespace) (*pod.UserNS, error) {
	if u == nil {
		return nil, nil
	}
	switch u.Mode {
	case runtimeapi.NamespaceMode_NODE:
		if len(u.Uids) > 0 || len(u.Gids) > 0 {
			return nil, invalid(field+".uids", "the host's user namespace cannot be mapped")
		}
		return nil, nil
	case runtimeapi.NamespaceMode_POD:
	default:
		return nil, invalid(field+".mode", "%s is not possible here: want POD or NODE", u.Mode)
	}
	uids, err := idMaps(field+".uids", u.Uids)
	if err != nil {
		return nil, err
	}
	gids, err := idMaps(field+".gids", u.Gids)
	if err != nil {
		return nil, err
	}
	if len(uids) != 1 || len(gids) != 1 {
		return nil, invalid(field, "want exactly one mapping of users and one of groups, got %d and %d", len(uids), len(gids))
	}
	if uids[0] != gids[0] {
		return nil, invalid(field, "the mappings of users and of groups differ")
	}
	if uids[0].Container != 0 {
		return nil, invalid(field+".uids[0].container_id", "root is not mapped")
	}
	return &pod.UserNS{UIDs: uids, GIDs: gids}, nil
}

func idMaps(field string, in []*runtimeapi.IDMapping) ([]pod.IDMap, error) {
	var out []pod.IDMap
	for _, m := range in {
		id := pod.IDMap{Container: m.GetContainerId(), Host: m.GetHostId(), Length: m.GetLength()}
		if id.Length == 0 {
			return nil, invalid(field, "a mapping of length 0")
		}
		if uint64(id.Container)+uint64(id.Length) > 1<<32-1 || uint64(id.Host)+uint64(id.Length) > 1<<32-1 {
			return nil, invalid(field, "a mapping that ends after the last number")
		}
		out = append(out, id)
	}
	return out, nil
}

// Namespaces reads the namespaces of a container. POD, the zero value, means as
// the pod has it; a namespace of the host that the pod does not use is refused.
// The zero result stands for the pod's own.
func Namespaces(field string, o *runtimeapi.NamespaceOption, of pod.Namespaces) (pod.Namespaces, error) {
	if o == nil {
		return pod.Namespaces{}, nil
	}
	for _, n := range []struct {
		name string
		mode runtimeapi.NamespaceMode
		pod  pod.NamespaceMode
	}{{"network", o.Network, of.Network}, {"ipc", o.Ipc, of.IPC}} {
		mode, err := podOrNode(field+"."+n.name, n.mode)
		if err != nil {
			return pod.Namespaces{}, err
		}
		if mode == pod.NamespaceNode && n.pod != pod.NamespaceNode {
			return pod.Namespaces{}, invalid(field+"."+n.name, "NODE, but its sandbox was made with POD")
		}
	}
	if err := sameUserNS(field+".userns_options", o.UsernsOptions, of.User); err != nil {
		return pod.Namespaces{}, err
	}
	out := of
	switch mode := pidMode(o.Pid); mode {
	case pod.NamespaceNode:
		if of.PID != pod.NamespaceNode {
			return pod.Namespaces{}, invalid(field+".pid", "NODE, but its sandbox was not made with NODE")
		}
	case pod.NamespaceTarget:
		target, err := pod.ParseID(o.TargetId)
		if err != nil {
			return pod.Namespaces{}, invalid(field+".target_id", "%q is not the ID of a container", o.TargetId)
		}
		out.PID, out.Target = mode, target
		return out, nil
	case pod.NamespaceApp:
		out.PID = mode
	}
	if o.TargetId != "" {
		return pod.Namespaces{}, invalid(field+".target_id", "needs the PID mode TARGET")
	}
	return out, nil
}

func sameUserNS(field string, u *runtimeapi.UserNamespace, of *pod.UserNS) error {
	if u == nil {
		return nil
	}
	mine, err := userNS(field, u)
	if err != nil {
		return err
	}
	if (mine == nil) != (of == nil) || mine != nil && (!slices.Equal(mine.UIDs, of.UIDs) || !slices.Equal(mine.GIDs, of.GIDs)) {
		return invalid(field, "differs from the sandbox's")
	}
	return nil
}

// FromNamespaces tells namespaces in the CRI's words.
func FromNamespaces(ns pod.Namespaces) *runtimeapi.NamespaceOption {
	out := &runtimeapi.NamespaceOption{
		Network:  fromMode(ns.Network),
		Pid:      fromMode(ns.PID),
		Ipc:      fromMode(ns.IPC),
		TargetId: string(ns.Target),
	}
	if ns.User != nil {
		out.UsernsOptions = &runtimeapi.UserNamespace{
			Mode: runtimeapi.NamespaceMode_POD,
			Uids: fromIDMaps(ns.User.UIDs),
			Gids: fromIDMaps(ns.User.GIDs),
		}
	}
	return out
}

func fromMode(m pod.NamespaceMode) runtimeapi.NamespaceMode {
	switch m {
	case pod.NamespaceApp:
		return runtimeapi.NamespaceMode_CONTAINER
	case pod.NamespaceNode:
		return runtimeapi.NamespaceMode_NODE
	case pod.NamespaceTarget:
		return runtimeapi.NamespaceMode_TARGET
	}
	return runtimeapi.NamespaceMode_POD
}

func fromIDMaps(in []pod.IDMap) []*runtimeapi.IDMapping {
	var out []*runtimeapi.IDMapping
	for _, m := range in {
		out = append(out, &runtimeapi.IDMapping{ContainerId: m.Container, HostId: m.Host, Length: m.Length})
	}
	return out
}
