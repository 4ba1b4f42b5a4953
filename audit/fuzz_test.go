package audit

import (
	"errors"
	"os"
	"testing"
)

// FuzzRead feeds files to the readers and to Open: no panic, no damage that goes unseen, and what Open
// accepts can be appended to and keeps its whole lines.
func FuzzRead(f *testing.F) {
	path, _ := sample(f, 3)
	good, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:len(good)-20])
	f.Add(append(good[:len(good)-20:len(good)-20], 0, 0, 0))
	f.Add([]byte("\n\n{}\n"))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, content []byte) {
		path := dir + "/events.jsonl"
		os.Remove(path + ".torn")
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		before, verifyErr := Verify(path)
		n := uint64(0)
		for _, err := range Read(path, Filter{}) {
			if err == nil {
				n++
			} else if verifyErr == nil {
				t.Fatalf("Verify is content, Read is not: %v", err)
			}
		}
		if verifyErr == nil && n != before.Events {
			t.Fatalf("Read gave %d events, Verify counted %d", n, before.Events)
		}
		l, err := Open(path, "a")
		if err != nil {
			var b *Broken
			if !errors.As(err, &b) {
				t.Fatalf("Open: %v, want *Broken", err)
			}
			return
		}
		defer l.Close()
		if err := l.Append(t.Context(), Event{Kind: Fault}); err != nil {
			t.Fatal(err)
		}
		after, err := Verify(path)
		if verifyErr == nil && (err != nil || after.Events != before.Events+1) {
			t.Fatalf("before %+v, after %+v: %v", before, after, err)
		}
	})
}
