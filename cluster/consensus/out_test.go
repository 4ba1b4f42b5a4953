package consensus

import (
	"bytes"
	"io"
	"testing"

	"github.com/pollux-ha/pollux/cluster/pact"
	"github.com/pollux-ha/pollux/cluster/pki"
)

func TestWhoMaySayThatAHostIsKeptOut(t *testing.T) {
	a, w := pki.Peer{Name: "a", Role: pki.RoleHost}, pki.Peer{Name: "w", Role: pki.RoleWitness}
	out := func(kind pact.Kind, by, operator string) pact.Command {
		return pact.Command{Kind: kind, Out: pact.OutFlapping, By: pact.Party{Host: by}, Other: pact.Party{Host: "b"}, Operator: operator}
	}
	for i, c := range []struct {
		who pki.Peer
		cmd pact.Command
		may bool
	}{
		{a, out(pact.KeepOut, "a", ""), true},
		{w, out(pact.KeepOut, "w", ""), true},
		{a, out(pact.KeepOut, "c", ""), false},
		{w, out(pact.KeepOut, "a", "op"), false},
		{a, out(pact.Readmit, "a", ""), true}, // whether it is its to end, the pact decides
		{a, out(pact.Readmit, "c", ""), false},
		{w, out(pact.Readmit, "", "op"), true},
	} {
		if err := mayPropose(c.who, c.cmd); (err == nil) != c.may {
			t.Errorf("%d: %s by %s for %s: %v", i, c.cmd.Kind, c.who.Name, c.cmd.By.Host, err)
		}
	}
}

func TestWhoIsKeptOutIsInTheSnapshot(t *testing.T) {
	f := newFSM()
	b, err := encodeEntry(entry{Command: &pact.Command{Kind: pact.KeepOut, ID: "1", Out: pact.OutFlapping, By: pact.Party{Host: "a"}, Other: pact.Party{Host: "b"}}})
	if err != nil {
		t.Fatal(err)
	}
	if v := apply(f, 5, b); !v.Applied || len(f.out()) != 1 {
		t.Fatalf("%+v %+v", v, f.out())
	}
	s, err := f.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	again := newFSM()
	if err := again.Restore(io.NopCloser(bytes.NewReader(s.(snapshotBytes)))); err != nil {
		t.Fatal(err)
	}
	if o := again.out(); len(o) != 1 || o[0].Host != "b" || o[0].Since != 5 {
		t.Errorf("%+v", o)
	}
}
