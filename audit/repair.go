package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"
)

// A crash in the middle of an append leaves part of a line. Cutting it off is itself logged, and a crash in
// the middle of that must not lose the fact. The steps, all under the file's lock:
//
//  1. the part goes into a file beside the log (path + ".torn"), durably;
//  2. the log is cut, durably;
//  3. a log-repair event that holds the part is appended;
//  4. the file of step 1 goes.
//
// Whoever opens the log and finds that file goes on with step 3. Should the crash have come between 3 and
// 4, the repair is in the log twice.

func (l *Log) tornPath() string { return l.path + ".torn" }

// repair cuts off tail, the bytes behind l.head. kept is what an interrupted repair had cut off before: it
// was not logged yet, or the tail is the rest of logging it.
func (l *Log) repair(tail, kept []byte) error {
	if reason := notTorn(tail, l.head.seq+1, l.head.size); reason != "" {
		return &Broken{Line: l.head.seq + 1, Offset: l.head.size, Reason: reason}
	}
	if bytes.HasSuffix(kept, tail) {
		tail = kept
	} else {
		tail = append(kept, tail...)
	}
	if err := renameio.WriteFile(l.tornPath(), tail, 0o600); err != nil {
		return fmt.Errorf("keep the rest of an unfinished append: %w", err)
	}
	if err := syncDir(filepath.Dir(l.path)); err != nil {
		return fmt.Errorf("keep the rest of an unfinished append: %w", err)
	}
	if err := l.f.Truncate(l.head.size); err != nil {
		return fmt.Errorf("cut off the rest of an unfinished append: %w", err)
	}
	if err := l.f.Sync(); err != nil {
		l.broken = fmt.Errorf("cut off the rest of an unfinished append: %w", explain(err))
		return l.broken
	}
	return l.logRepair(tail)
}

// finishRepair goes on with a repair that a crash has interrupted, and begins one where the log ends in
// an unfinished append.
func (l *Log) finishRepair() error {
	kept, err := os.ReadFile(l.tornPath())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("look for an interrupted repair: %w", err)
	}
	interrupted := err == nil
	before := l.head.seq
	if err := l.catchUp(kept); err != nil {
		return err
	}
	if interrupted && l.head.seq == before { // else the repair was begun anew, and done
		return l.logRepair(kept)
	}
	return nil
}

func (l *Log) logRepair(tail []byte) error {
	text := bytes.TrimRight(tail, "\x00")
	sum := sha256.Sum256(tail)
	err := l.write(Event{Kind: LogRepair, Actor: "audit", Detail: map[string]any{
		"reason": "a crash interrupted an append; it had not been acknowledged",
		"bytes":  len(tail),
		"sha256": hex.EncodeToString(sum[:]),
		// JSON may need six bytes for one.
		"text": string(text[:min(len(text), MaxLine/8)]),
	}})
	if err != nil {
		return fmt.Errorf("log the repair of the event log: %w", err)
	}
	if err := os.Remove(l.tornPath()); err != nil {
		return fmt.Errorf("finish the repair of the event log: %w", err)
	}
	return nil
}

// sector is what a disk writes as a whole, in bytes.
const sector = 512

// notTorn says why tail, all that follows the line before seq from that offset of the file on, can't be the
// rest of an unfinished append; "" means that it is one. Append writes a line at once, its newline last, and
// acknowledges it after that: so a part without the newline was never acknowledged, and neither was one with
// whole sectors that the disk has not written. Those, and blocks that the file system had only allocated,
// read as zeros, which no line contains.
func notTorn(tail []byte, seq uint64, offset int64) string {
	part := bytes.TrimRight(tail, "\x00")
	holes := bytes.IndexByte(part, 0) >= 0
	want := seqPrefix(seq)
	for i := range min(len(part), len(want)) {
		if part[i] != want[i] && (part[i] != 0 || !holes) {
			return "has no end and is not the beginning of the next event"
		}
	}
	newline := bytes.IndexByte(part, '\n')
	switch {
	case len(tail) > MaxLine:
		return fmt.Sprintf("has %d bytes without an end: no append writes as much", len(tail))
	case newline >= 0 && (!holes || newline != len(tail)-1), holes && !wholeSectors(part, offset):
		return "is damaged, and more follows"
	}
	return ""
}

// wholeSectors says whether no sector of p, which begins at that offset of its file, is zero only in part.
func wholeSectors(p []byte, offset int64) bool {
	for len(p) > 0 {
		n := min(sector-int(offset%sector), len(p))
		if zeros := bytes.Count(p[:n], []byte{0}); zeros != 0 && zeros != n {
			return false
		}
		p, offset = p[n:], offset+int64(n)
	}
	return true
}
