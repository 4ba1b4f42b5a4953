package pact

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"
)

func full(t testing.TB) *State {
	w := newWorld(t)
	w.must(states["switched"]...)
	w.must(Command{Kind: Disclaim, By: a1})
	w.must(Command{Kind: Create, Guest: "another", Spec: spec()})
	w.must(Command{Kind: Create, Guest: "short-lived", Spec: spec()}, Command{Kind: Delete, Guest: "short-lived"})
	return w.s
}

func TestSnapshot(t *testing.T) {
	s := full(t)
	b, err := s.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	r, err := Restore(b)
	if err != nil {
		t.Fatal(err)
	}
	again, err := r.Snapshot()
	if err != nil || !bytes.Equal(b, again) {
		t.Fatalf("%v\n%s\n%s", err, b, again)
	}
	if r.Index() != s.Index() || len(r.Guests()) != 2 {
		t.Errorf("index %d, %d guests", r.Index(), len(r.Guests()))
	}
	// What was remembered is remembered still.
	if v := r.Apply(Command{Kind: Create, Guest: "g", ID: "id1", Spec: spec()}, 99); !v.Applied || v.Index != 1 {
		t.Errorf("duplicate after a restore: %+v", v)
	}
}

func TestRestoreRefuses(t *testing.T) {
	b, err := full(t).Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	good := string(b)
	for name, bad := range map[string]string{
		"nothing":        "",
		"cut off":        good[:len(good)/2],
		"more":           good + "{}",
		"another form":   strings.Replace(good, `"version":1`, `"version":2`, 1),
		"unknown field":  strings.Replace(good, `"floor"`, `"flour"`, 1),
		"no such mode":   strings.Replace(good, `"mode":"protected"`, `"mode":"prot"`, 1),
		"no replica":     strings.Replace(good, `"mode":"protected"`, `"mode":"solo"`, 1),
		"a guest twice":  strings.Replace(good, `"guest":"another"`, `"guest":"g"`, 1),
		"a path as name": strings.Replace(good, `"guest":"another"`, `"guest":"../x"`, 1),
		"null guest":     strings.Replace(good, `"guests":[`, `"guests":[null,`, 1),
	} {
		if bad == good {
			t.Fatalf("%s: the test does not change anything", name)
		}
		if _, err := Restore([]byte(bad)); !errors.Is(err, ErrSnapshot) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestCommandCoding(t *testing.T) {
	c := Command{Kind: Start, Guest: "g", ID: "x", By: a1, MarkerTerm: 3, AcceptLoss: "all", Operator: "op", Spec: spec()}
	b, err := EncodeCommand(c)
	if err != nil {
		t.Fatal(err)
	}
	d, err := DecodeCommand(b)
	if err != nil || d.By != c.By || d.MarkerTerm != 3 || len(d.Spec.Hosts) != 2 {
		t.Fatalf("%v %+v", err, d)
	}
	for _, bad := range []string{"", "null x", `{"kind":"noop"} {}`, `{"kind":"noop","later":1}`, `[]`, strings.Repeat(" ", MaxCommandBytes+1)} {
		if _, err := DecodeCommand([]byte(bad)); !errors.Is(err, ErrCommand) {
			t.Errorf("%.20q: %v", bad, err)
		}
	}
	if _, err := EncodeCommand(Command{Reason: strings.Repeat("x", MaxCommandBytes)}); !errors.Is(err, ErrCommand) {
		t.Errorf("too long: %v", err)
	}
}

// FuzzCommand: whatever is in the log, applying it does not panic, breaks no form, and every voter comes
// to the same state.
func FuzzCommand(f *testing.F) {
	for _, way := range states {
		for _, c := range way {
			c.Guest, c.ID = "g", "x"
			b, err := EncodeCommand(c)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(b)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		cmd, err := DecodeCommand(b)
		if err != nil {
			if !errors.Is(err, ErrCommand) {
				t.Fatal(err)
			}
			return
		}
		for _, way := range [][]Command{nil, toProtected, states["switched"]} {
			w, o := newWorld(t), newWorld(t)
			w.must(way...)
			o.must(way...)
			v := w.s.Apply(cmd, 100)
			o.s.Apply(cmd, 100)
			for _, a := range w.s.Guests() {
				if err := a.Check(); err != nil {
					t.Fatal(err)
				}
			}
			x, err := w.s.Snapshot()
			if err != nil {
				t.Fatal(err)
			}
			y, _ := o.s.Snapshot()
			if !bytes.Equal(x, y) {
				t.Fatal("two voters differ")
			}
			if _, err := Restore(x); err != nil {
				t.Fatal(err)
			}
			if _, err := json.Marshal(v); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// FuzzRestore: whatever is restored has a good form, survives a round trip and goes on working.
func FuzzRestore(f *testing.F) {
	b, err := full(f).Snapshot()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"version":1,"index":0,"floor":0,"guests":[]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := Restore(b)
		if err != nil {
			if !errors.Is(err, ErrSnapshot) {
				t.Fatal(err)
			}
			return
		}
		for _, a := range s.Guests() {
			if err := a.Check(); err != nil {
				t.Fatal(err)
			}
			for _, k := range []Kind{GoSolo, Promote, Switchover, Stop, Mark} {
				by := a.Primary
				if k == Promote {
					by = a.Replica
				}
				s.Apply(Command{Kind: k, Guest: a.Guest, ID: string(k), Term: a.Term, By: by, Epoch: a.Base}, s.Index()+1)
			}
		}
		again, err := s.Snapshot()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Restore(again); err != nil {
			t.Fatal(err)
		}
	})
}
