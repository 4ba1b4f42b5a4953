package memory

import (
	"bytes"
	"errors"
	"testing"
)

func poison(t *testing.T, r *RAM, page int) {
	t.Helper()
	err := r.Poison(page)
	if errors.Is(err, ErrNoPoison) {
		t.Skipf("needs userfaultfd: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// Whoever reads or writes damaged memory for the guest waits until it is mended, and then does all of it.
func TestAccessMends(t *testing.T) {
	r := newRAM(t, 1<<20)
	data := bytes.Repeat([]byte{7}, 4*PageSize)
	if err := r.Write(0, data); err != nil {
		t.Fatal(err)
	}
	r.HarvestDirty(make([]uint64, r.DirtyWords()), nil)
	mended := 0
	r.OnDamage(func(page int) error {
		mended++
		r.NoteDamage(page)
		return r.Mend(page, data[:PageSize])
	})
	got := make([]byte, 3*PageSize)
	for name, access := range map[string]func() error{
		"read":  func() error { return r.Read(PageSize/2, got) },
		"view":  func() error { b, err := r.View(PageSize/2, uint64(len(got))); copy(got, b); return err },
		"write": func() error { return r.Write(PageSize/2, data[:len(got)]) },
		"fill": func() error {
			return r.Fill(PageSize/2, uint64(len(got)), func(b []byte) error { copy(b, data); return nil })
		},
	} {
		mended = 0
		clear(got)
		for _, p := range []int{0, 2, 3} {
			poison(t, r, p)
		}
		if err := access(); err != nil || mended != 3 {
			t.Fatalf("%s: %v, %d pages mended", name, err, mended)
		}
		if name[0] != 'w' && name[0] != 'f' && !bytes.Equal(got, data[:len(got)]) {
			t.Errorf("%s: not what was there", name)
		}
		if err := r.Read(PageSize/2, got); err != nil || !bytes.Equal(got, data[:len(got)]) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Where nobody mends it, it is an error of the access, and nothing counts as written that was not.
func TestAccessFails(t *testing.T) {
	r := newRAM(t, 1<<20)
	lost := errors.New("lost")
	r.OnDamage(func(int) error { return lost })
	poison(t, r, 5)
	b := make([]byte, 16)
	if err := r.Read(5*PageSize, b); !errors.Is(err, ErrDamaged) || !errors.Is(err, lost) {
		t.Errorf("read: %v", err)
	}
	if err := r.Write(5*PageSize, b); !errors.Is(err, ErrDamaged) || r.IsDirty(5) {
		t.Errorf("write: %v", err)
	}
	if _, err := r.View(5*PageSize-8, 16); !errors.Is(err, ErrDamaged) {
		t.Errorf("view: %v", err)
	}
	for _, write := range []bool{false, true} {
		if err := r.Access(5*PageSize, b, write); !errors.Is(err, ErrDamaged) || r.IsDirty(5) {
			t.Errorf("access: %v", err)
		}
	}
	if err := r.Try(5, make([]byte, PageSize)); !errors.Is(err, ErrDamaged) {
		t.Errorf("try: %v", err)
	}
}

// A copy that comes after the page has been given back is not put in its place.
func TestMendAfterDiscard(t *testing.T) {
	r := newRAM(t, 1<<20)
	old := bytes.Repeat([]byte{9}, PageSize)
	for round := range 3 { // also of a page that has been healed before
		if err := r.Write(5*PageSize, old); err != nil {
			t.Fatal(err)
		}
		poison(t, r, 5)
		if round < 2 {
			r.NoteDamage(5)
		}
		if err := r.Discard(4*PageSize, 3*PageSize); err != nil {
			t.Fatal(err)
		}
		if err := r.Mend(5, old); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, PageSize)
		if err := r.Try(5, got); err != nil || !bytes.Equal(got, make([]byte, PageSize)) {
			t.Fatalf("a discarded page: %v, %v", err, got[:8])
		}
		if dirty, _ := harvest(r); len(dirty) == 0 {
			t.Error("it does not count as written")
		}
	}
	r.NoteDamage(6)
	if err := r.Mend(6, old); err != nil || !bytes.Equal(r.Page(6), old) {
		t.Errorf("a noted page is not mended: %v", err)
	}
}
