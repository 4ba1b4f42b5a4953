package audit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pollux-ha/pollux/tests/crash/shim"
)

// writeEvents appends events of different lengths, some longer than a sector and than a page, in three lives
// of the log: the second closes and deletes segments, the third finds the rest of an append. It notes
// "event N" when it relies on one.
func writeEvents(dir string, note func(string)) error {
	n, path := 0, filepath.Join(dir, "events.jsonl")
	live := func(limits Limits, sizes ...int) error {
		l, err := OpenLimited(path, "a", limits)
		if err != nil {
			return err
		}
		for _, size := range sizes {
			n++
			if err := l.Append(context.Background(), Event{Kind: Fault, Detail: map[string]any{"n": n, "text": strings.Repeat("x", size)}}); err != nil {
				return err
			}
			note(fmt.Sprint("event ", n))
		}
		return l.Close()
	}
	if err := live(Limits{}, 10, 700, 5000, 40); err != nil {
		return err
	}
	if err := live(Limits{SegmentBytes: 600, KeepSegments: 1}, 1, 2, 400, 3, 4, 5); err != nil {
		return err
	}
	if err := tear(path); err != nil {
		return err
	}
	return live(Limits{}, 6, 900)
}

// tear writes the beginning of the next line, as a killed process leaves it.
func tear(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	h, err := readHead(f)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(append(seqPrefix(h.seq+1), strings.Repeat("y", 700)...), h.size)
	return errors.Join(err, f.Close())
}

// checkEvents opens what a loss of power has left, goes on writing, and looks at the whole.
func checkEvents(dir string, notes []string) error {
	path := filepath.Join(dir, "events.jsonl")
	want := 0
	for _, n := range notes {
		fmt.Sscanf(n, "event %d", &want)
	}
	for _, limits := range []Limits{{SegmentBytes: 1, KeepSegments: 9}, {}} {
		l, err := OpenLimited(path, "a", limits)
		if err != nil {
			return err
		}
		if err := errors.Join(l.Append(context.Background(), Event{Kind: Heal}), l.Close()); err != nil {
			return err
		}
	}
	s, err := Verify(path)
	if err != nil {
		return err
	}
	last := 0
	for e, err := range Read(path, Filter{Kinds: []Kind{Fault}}) {
		if err != nil {
			return err
		}
		n := int(e.Detail["n"].(float64))
		if n != last+1 && (last > 0 || s.From == 1) {
			return fmt.Errorf("event %d follows event %d", n, last)
		}
		last = n
	}
	if last < want {
		return fmt.Errorf("event %d was acknowledged, %d is the last", want, last)
	}
	return nil
}

// Whatever moment the power is lost at, and whatever part of the last line is there: the log is repaired, goes
// on, and has all that was acknowledged.
func TestLogSurvivesEveryCrash(t *testing.T) {
	shim.EveryCrash(t, shim.Record(t, writeEvents), checkEvents)
}
