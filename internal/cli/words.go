package cli

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"

	"gantry/internal/pod"
)

var errPublish = errors.New("want [IP:]HOSTPORT:PODPORT[/tcp|udp|sctp]")

// parsePublish reads [IP:]HOST:POD[/PROTOCOL]; an IPv6 address stands in brackets.
func parsePublish(s string) (pod.Port, error) {
	p := pod.Port{Protocol: pod.TCP}
	s, protocol, ok := strings.Cut(s, "/")
	if ok {
		if p.Protocol = pod.Protocol(strings.ToLower(protocol)); p.Protocol != pod.TCP && p.Protocol != pod.UDP && p.Protocol != pod.SCTP {
			return p, errPublish
		}
	}
	i := strings.LastIndexByte(s, ':')
	if i < 0 {
		return p, errPublish
	}
	host, inside := s[:i], s[i+1:]
	var err error
	if p.PodPort, err = parsePort(inside); err != nil {
		return p, err
	}
	if i := strings.LastIndexByte(host, ':'); i >= 0 {
		if p.HostIP, err = parseHostIP(host[:i]); err != nil {
			return p, err
		}
		host = host[i+1:]
	}
	p.HostPort, err = parsePort(host)
	return p, err
}

// parseHostIP reads an IPv4 address, or an IPv6 address in brackets.
func parseHostIP(s string) (string, error) {
	addr, bracket := strings.CutPrefix(s, "[")
	if bracket {
		addr, bracket = strings.CutSuffix(addr, "]")
	}
	ip, err := netip.ParseAddr(addr)
	if err != nil || ip.Is6() != bracket {
		return "", fmt.Errorf("%q: want an IP address, an IPv6 one in brackets", s)
	}
	return addr, nil
}

func parsePort(s string) (int32, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("port %q: want 1 to 65535", s)
	}
	return int32(n), nil
}

// parseVolume reads SOURCE:TARGET[:OPTIONS]. A relative source is below the
// current directory; a bare word would be a named volume elsewhere, so it is
// refused rather than taken for a path.
func parseVolume(s string) (pod.Mount, error) {
	parts := strings.Split(s, ":")
	if len(parts) < 2 || len(parts) > 3 || parts[0] == "" || parts[1] == "" {
		return pod.Mount{}, errors.New("want SOURCE:TARGET[:OPTIONS]")
	}
	m := pod.Mount{HostPath: parts[0], Path: parts[1]}
	if !filepath.IsAbs(m.HostPath) {
		if !strings.HasPrefix(m.HostPath, ".") {
			return m, fmt.Errorf("named volumes are not supported: want an absolute path, or ./%s", m.HostPath)
		}
		abs, err := filepath.Abs(m.HostPath)
		if err != nil {
			return m, err
		}
		m.HostPath = abs
	}
	if !filepath.IsAbs(m.Path) {
		return m, fmt.Errorf("target %q: want an absolute path", m.Path)
	}
	if len(parts) == 3 {
		if err := volumeOptions(&m, parts[2]); err != nil {
			return m, err
		}
	}
	return m, nil
}

func volumeOptions(m *pod.Mount, list string) error {
	for o := range strings.SplitSeq(list, ",") {
		switch o {
		case "ro":
			m.ReadOnly = true
		case "rro":
			m.ReadOnly, m.RecursiveReadOnly = true, true
		case "rw":
		case "noexec", "nodev", "nosuid":
			m.Options = append(m.Options, o)
		case "rprivate", "rslave", "rshared":
			m.Propagation = pod.Propagation(o)
		case "Z":
			m.Relabel, m.RelabelShared = true, false
		case "z":
			m.Relabel, m.RelabelShared = false, true
		default:
			return fmt.Errorf("option %q: want ro, rro, rw, noexec, nodev, nosuid, rprivate, rslave, rshared, z or Z", o)
		}
	}
	return nil
}

// parseDevice reads SOURCE[:TARGET[:PERMISSIONS]].
func parseDevice(s string) (pod.Device, error) {
	parts := strings.Split(s, ":")
	d := pod.Device{Source: parts[0], Path: parts[0], Permissions: "rwm"}
	if len(parts) > 1 {
		d.Path = parts[1]
	}
	if len(parts) > 2 {
		d.Permissions = parts[2]
	}
	if len(parts) > 3 || !filepath.IsAbs(d.Source) || !filepath.IsAbs(d.Path) || d.Permissions == "" || strings.Trim(d.Permissions, "rwm") != "" {
		return d, errors.New("want SOURCE[:TARGET[:rwm]] with absolute paths, or vendor/class=name")
	}
	return d, nil
}
