package gossip

import (
	"bytes"
	"net"
	"testing"
	"time"

	"go.uber.org/zap"
)

func open(t *testing.T, name string, key []byte, changed func(Member)) *List {
	t.Helper()
	probe, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := probe.Addr().String()
	probe.Close()
	l, err := Open(Options{Name: name, Address: address, Key: key, Meta: Meta{Role: "host", ClusterAddress: "x:1", Cluster: "c"}, Changed: changed, Log: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func wait(t *testing.T, events <-chan Member, name string, s State) Member {
	t.Helper()
	deadline := time.After(60 * time.Second)
	for {
		select {
		case m := <-events:
			if m.Name == name && m.State == s {
				return m
			}
		case <-deadline:
			t.Fatalf("%s is not seen %s", name, s)
		}
	}
}

func TestMembersSeeEachOther(t *testing.T) {
	key := bytes.Repeat([]byte{7}, 32)
	events := make(chan Member, 100)
	a := open(t, "a", key, func(m Member) { events <- m })
	defer a.Close()
	b := open(t, "b", key, nil)
	if err := b.Join([]string{a.o.Address, b.o.Address}); err != nil {
		t.Fatal(err)
	}
	if m := wait(t, events, "b", Alive); m.Meta.Role != "host" || m.Address != b.o.Address {
		t.Errorf("b is seen as %+v", m)
	}
	if a.State("b") != Alive || a.State("c") != Unknown {
		t.Errorf("a sees %+v", a.Members())
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	wait(t, events, "b", Left)

	// Another key is another cluster.
	c := open(t, "c", bytes.Repeat([]byte{8}, 32), nil)
	defer c.Close()
	if err := c.Join([]string{a.o.Address}); err == nil {
		t.Error("a stranger was let in")
	}
	if a.State("c") != Unknown {
		t.Error("a stranger is seen")
	}
}

func TestAddressInUse(t *testing.T) {
	key := bytes.Repeat([]byte{7}, 32)
	a := open(t, "a", key, nil)
	defer a.Close()
	if _, err := Open(Options{Name: "b", Address: a.o.Address, Key: key, Log: zap.NewNop()}); err == nil || !bytes.Contains([]byte(err.Error()), []byte("in use")) {
		t.Errorf("%v", err)
	}
}

// Strangers who connect and say nothing keep no member out.
func TestStrangersStopNothing(t *testing.T) {
	key := bytes.Repeat([]byte{7}, 32)
	events := make(chan Member, 100)
	a, b := open(t, "a", key, func(m Member) { events <- m }), open(t, "b", key, nil)
	defer a.Close()
	defer b.Close()
	for range 3 * roomMax {
		c, err := net.Dial("tcp", a.o.Address)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	if err := b.Join([]string{a.o.Address}); err != nil {
		t.Error(err)
	}
	wait(t, events, "b", Alive)
}
