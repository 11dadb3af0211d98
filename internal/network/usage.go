package network

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"unicode/utf8"
)

// InterfaceUsage counts what has passed through an interface since it was made.
type InterfaceUsage struct {
	Name     string
	Received Traffic
	Sent     Traffic
}

// Traffic is one direction of an interface.
type Traffic struct{ Bytes, Packets, Errors, Dropped uint64 }

// Loopback is the interface that every network namespace has.
const Loopback = "lo"

// Usage reads the interfaces of a network namespace, its loopback last; "" is the host's.
func Usage(netns string) (all []InterfaceUsage, err error) {
	err = inNetNS(netns, func() error {
		f, err := os.Open("/proc/thread-self/net/dev")
		if err != nil {
			return err
		}
		defer f.Close()
		data, err := io.ReadAll(io.LimitReader(f, maxNetDev))
		if err != nil {
			return err
		}
		all, err = parseNetDev(string(data[:bytes.LastIndexByte(data, '\n')+1]))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("count traffic: %w", err)
	}
	return all, nil
}

// Columns of /proc/net/dev, behind the interface's name: bytes, packets, errors and
// drops of what came, four more, and the same of what went.
const receivedColumn, sentColumn, devColumns = 0, 8, 16

// An app may make any number of interfaces, and name them as it likes. The network's
// own come first.
const (
	maxNetDev     = 1 << 20 // bytes
	maxInterfaces = 64
)

func parseNetDev(text string) ([]InterfaceUsage, error) {
	var all, last []InterfaceUsage
	for line := range strings.Lines(text) {
		// A name may have colons in it, the numbers have none. The titles have no colon.
		at := strings.LastIndexByte(line, ':')
		if at < 0 {
			continue
		}
		name := strings.TrimSpace(line[:at])
		fields := strings.Fields(line[at+1:])
		if len(fields) < devColumns {
			return nil, fmt.Errorf("interface %s has %d counters, want %d", name, len(fields), devColumns)
		}
		received, err := traffic(fields[receivedColumn:])
		if err != nil {
			return nil, fmt.Errorf("interface %s: %w", name, err)
		}
		sent, err := traffic(fields[sentColumn:])
		if err != nil {
			return nil, fmt.Errorf("interface %s: %w", name, err)
		}
		// A name is any bytes to the kernel, and text to all who are told of it.
		if !utf8.ValidString(name) {
			name = strconv.QuoteToASCII(name)
		}
		one := InterfaceUsage{Name: name, Received: received, Sent: sent}
		if name == Loopback {
			last = []InterfaceUsage{one}
			continue
		}
		all = append(all, one)
		if len(all) == maxInterfaces {
			break
		}
	}
	return append(all, last...), nil
}

func traffic(fields []string) (t Traffic, err error) {
	for i, to := range []*uint64{&t.Bytes, &t.Packets, &t.Errors, &t.Dropped} {
		if *to, err = strconv.ParseUint(fields[i], 10, 64); err != nil {
			return t, err
		}
	}
	return t, nil
}
