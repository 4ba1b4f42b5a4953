package mark

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestRoundTrip(t *testing.T) {
	disk := filepath.Join(t.TempDir(), "disk0.raw")
	if m, err := Read(disk); err != nil || m.State != None {
		t.Fatalf("a disk without a mark: %+v, %v", m, err)
	}
	want := Mark{Guest: "g", State: Outdated, Term: 7, Epoch: 12, Since: 9}
	if err := Write(disk, want); err != nil {
		t.Fatal(err)
	}
	want.Format = format
	if m, err := Read(disk); err != nil || m != want {
		t.Fatalf("read %+v, %v", m, err)
	}
}

func TestWhatCannotBeReadForbids(t *testing.T) {
	disk := filepath.Join(t.TempDir(), "disk0.raw")
	for _, text := range []string{"", "{", `{"format":2,"state":"current"}`, `{"format":1,"state":"fine"}`, `{"format":1}`} {
		if err := os.WriteFile(Path(disk), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		m, err := Read(disk)
		if !errors.Is(err, ErrDamaged) || m.State != Inconsistent {
			t.Errorf("%q: %+v, %v", text, m, err)
		}
		if m.MayStart(Outdated) == nil {
			t.Errorf("%q: may start", text)
		}
	}
}

func TestMayStart(t *testing.T) {
	for _, c := range []struct {
		state, order State
		ok           bool
	}{
		{None, None, true}, {Current, None, true},
		{Outdated, None, false}, {Outdated, Outdated, true}, {Outdated, Inconsistent, true},
		{Inconsistent, None, false}, {Inconsistent, Outdated, false}, {Inconsistent, Inconsistent, true},
	} {
		err := Mark{State: c.state}.MayStart(c.order)
		if (err == nil) != c.ok || err != nil && !errors.Is(err, ErrForbidden) {
			t.Errorf("%q with the order %q: %v", c.state, c.order, err)
		}
	}
}

func TestWorst(t *testing.T) {
	got := Worst([]Mark{{State: Current, Term: 5}, {State: Inconsistent, Term: 4}, {State: Outdated, Term: 1}})
	if got.State != Inconsistent {
		t.Errorf("%+v", got)
	}
	if got := Worst([]Mark{{State: Current, Term: 5}, {State: Current, Term: 4}}); got.Term != 4 {
		t.Errorf("two markers: %+v", got)
	}
	if got := Worst(nil); got.State != None {
		t.Errorf("no disks: %+v", got)
	}
}
