package shim

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What is tried at each operation.
const (
	window  = 3
	chances = 4
)

// EveryCrash lets the power fail after every operation, and checks each different thing that this may
// leave.
func EveryCrash(t *testing.T, tape Tape, check func(dir string, notes []string) error) {
	t.Helper()
	scratch := Scratch(t)
	r := rand.New(rand.NewPCG(1, 4))
	images, failures := 0, 0
	seen := map[string]bool{}
	for n := 0; n <= len(tape); n++ {
		notes := tape.Notes(n)
		for _, c := range tape.Cases(n, window, chances, r) {
			img := tape.After(n, c.Loss)
			key := img.Key() + strings.Join(notes, ";")
			if seen[key] {
				continue
			}
			seen[key] = true
			images++
			dir := filepath.Join(scratch, fmt.Sprint(images))
			err := os.Mkdir(dir, 0o700)
			if err == nil {
				err = img.Write(dir)
			}
			if err != nil {
				t.Fatal(err)
			}
			if err := check(dir, notes); err != nil {
				t.Errorf("power lost after operation %d, %s: %v\nbefore:%s", n-1, c.Title, err, tape.Story(n-12, n))
				if failures++; failures == 3 {
					t.FailNow()
				}
			}
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Logf("%d operations, %d different images", len(tape), images)
}
