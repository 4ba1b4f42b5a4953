package daemon

import (
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/pollux-ha/pollux/cluster/pact"
	"github.com/pollux-ha/pollux/vmm/tap"
)

func TestTaps(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes a network namespace")
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		t.Skip("needs /dev/net/tun: makes taps")
	}
	runtime.LockOSThread() // not unlocked: the thread ends with the test, and its namespace with it
	ns, err := netns.New()
	if err != nil {
		t.Skipf("needs network namespaces: %v", err)
	}
	defer ns.Close()
	cfg := hostConfig(t)
	cfg.Bridges = map[string]string{"lan": "br0"}
	a := guest(func(a *pact.Assignment) {
		a.Spec.Nets = []pact.NetSpec{{MAC: "52:54:00:00:00:01", Bridge: "lan"}, {MAC: "52:54:00:00:00:02", Bridge: "lan"}}
	})
	if _, err := prepareTaps(cfg, a); err == nil || !strings.Contains(err.Error(), `no bridge "br0"`) || !strings.Contains(err.Error(), "[bridges]") {
		t.Fatalf("without the bridge: %v", err)
	}
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}); err != nil {
		t.Skipf("needs bridges: %v", err)
	}
	for range 2 { // again with the taps there
		names, err := prepareTaps(cfg, a)
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range names {
			l, err := netlink.LinkByName(n)
			if err != nil || l.Attrs().MasterIndex == 0 || len(n) > 15 {
				t.Fatalf("%s: %+v %v", n, l, err)
			}
		}
	}
	// A card with several queues and an MTU of its own takes another tap than one without.
	a.Spec.CPUs = 2
	a.Spec.Nets[1].Queues, a.Spec.Nets[1].MTU = 1, 9000
	if _, err := prepareTaps(cfg, a); err == nil || !strings.Contains(err.Error(), "MTU of 1500") || !strings.Contains(err.Error(), "ip link set br0 mtu 9000") {
		t.Errorf("on a bridge with less: %v", err)
	}
	br, err := netlink.LinkByName("br0")
	if err != nil || netlink.LinkSetMTU(br, 9000) != nil {
		t.Fatalf("raise the bridge's MTU: %v", err)
	}
	for i, want := range []struct {
		multi bool
		mtu   int
	}{{true, 1500}, {false, 9000}} {
		names, err := prepareTaps(cfg, a)
		if err != nil {
			t.Fatal(err)
		}
		l, err := netlink.LinkByName(names[i])
		if err != nil {
			t.Fatal(err)
		}
		if p, ok := l.(*netlink.Tuntap); !ok || p.Flags&netlink.TUNTAP_MULTI_QUEUE != 0 != want.multi || p.MTU != want.mtu || p.NonPersist {
			t.Errorf("card %d: %+v", i, l)
		}
		p, err := tap.Open(names[i], tap.Options{Queues: a.Spec.Nets[i].QueuePairs(a.Spec.CPUs)})
		if err != nil {
			t.Fatal(err)
		}
		p.Close()
	}
	if err := netlink.LinkAdd(&netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Name: "dummy9"}}); err == nil {
		cfg.Bridges["lan"] = "dummy9"
		if _, err := prepareTaps(cfg, a); err == nil || !strings.Contains(err.Error(), "is no bridge") {
			t.Errorf("on something else: %v", err)
		}
	}
	for range 2 {
		if err := removeTaps(a); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := netlink.LinkByName(tapName("g", 0)); err == nil {
		t.Error("the tap is still there")
	}
}
