package machine

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"gantry/internal/guest"
)

func TestAddress(t *testing.T) {
	t.Parallel()
	seen := map[uint32]string{}
	for _, id := range []string{"", "a", "b", "0123456789abcdef01234567", "0123456789abcdef01234568"} {
		cid := Address(id)
		if cid != Address(id) || cid <= 3 || cid == 1<<32-1 {
			t.Errorf("pod %q is at %d", id, cid)
		}
		if other, ok := seen[cid]; ok {
			t.Errorf("pods %q and %q are both at %d", id, other, cid)
		}
		seen[cid] = id
	}
}

func TestRoute(t *testing.T) {
	t.Parallel()
	_, service, err := net.ParseCIDR("10.96.0.0/12")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		route netlink.Route
		want  guest.Route
	}{
		{netlink.Route{Gw: net.ParseIP("10.88.0.1")}, guest.Route{To: "0.0.0.0/0", Via: "10.88.0.1"}},
		{netlink.Route{Gw: net.ParseIP("fd00::1")}, guest.Route{To: "::/0", Via: "fd00::1"}},
		{netlink.Route{Family: unix.AF_INET}, guest.Route{To: "0.0.0.0/0"}},
		{netlink.Route{Family: unix.AF_INET6}, guest.Route{To: "::/0"}},
		{netlink.Route{Dst: service}, guest.Route{To: "10.96.0.0/12"}},
		{netlink.Route{Dst: service, Gw: net.ParseIP("10.88.0.9")}, guest.Route{To: "10.96.0.0/12", Via: "10.88.0.9"}},
		{
			netlink.Route{Gw: net.ParseIP("169.254.1.1"), Flags: unix.RTNH_F_ONLINK, Src: net.ParseIP("10.1.2.3"), Priority: 100, MTU: 1400},
			guest.Route{To: "0.0.0.0/0", Via: "169.254.1.1", OnLink: true, Source: "10.1.2.3", Metric: 100, MTU: 1400},
		},
	} {
		if diff := cmp.Diff(c.want, route(c.route)); diff != "" {
			t.Errorf("%v: %s", c.route, diff)
		}
	}
}

func TestMakeDisk(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("mkfs.ext4"); err != nil {
		t.Skip("there is no mkfs.ext4")
	}
	path := filepath.Join(t.TempDir(), Disk)
	for range 2 { // the second time it is there
		if err := makeDisk(t.Context(), path, 1<<30); err != nil {
			t.Fatal(err)
		}
	}
	var stat unix.Stat_t
	if err := unix.Stat(path, &stat); err != nil {
		t.Fatal(err)
	}
	if stat.Size != 1<<30 || stat.Blocks*512 > 16<<20 || stat.Mode&0o777 != 0o600 {
		t.Errorf("the disk has %d bytes, takes %d and is %o", stat.Size, stat.Blocks*512, stat.Mode)
	}
	const magicAt, magic = 0x438, "\x53\xef"
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got := make([]byte, len(magic))
	if _, err := f.ReadAt(got, magicAt); err != nil || string(got) != magic {
		t.Errorf("it is no ext4: %q, %v", got, err)
	}
}
