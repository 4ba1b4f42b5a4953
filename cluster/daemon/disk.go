package daemon

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/pollux-ha/pollux/cluster/config"
	"github.com/pollux-ha/pollux/cluster/durable"
	"github.com/pollux-ha/pollux/cluster/pact"
)

const createdFile = "created"

// diskPath is the file of disk i of Spec.AllDisks: vars.raw for the firmware's, after the others.
func diskPath(dir string, s pact.Spec, i int) string {
	if i >= len(s.Disks) {
		return filepath.Join(dir, "vars.raw")
	}
	return filepath.Join(dir, fmt.Sprintf("disk%d.raw", i))
}

func journalPath(dir string) string { return filepath.Join(dir, "journal") }
func consolePath(dir string) string { return filepath.Join(dir, "console.log") }

// readDisks tells what the marks beside this host's copies of a guest's disks say. A mark (see the data
// plane's replica/mark) is a JSON file beside the disk; whatever can't be understood forbids.
func readDisks(cfg *config.Config, a pact.Assignment) diskView {
	dir := cfg.GuestDir(a.Guest)
	if created, err := readCreated(dir); err != nil || created != a.Created && created != 0 {
		return diskView{} // an earlier guest of this name; prepareDir moves it away
	}
	rank := map[string]int{"": 0, "current": 1, "outdated": 2, "inconsistent": 3}
	var worst diskView
	first := true
	for i, d := range a.Spec.AllDisks() {
		if d.ReadOnly {
			continue
		}
		v := readMark(diskPath(dir, a.Spec, i))
		if first || rank[v.state] > rank[worst.state] {
			v.term = min(v.term, orMax(first, worst.term))
			worst = v
		} else {
			worst.term = min(worst.term, v.term)
		}
		first = false
	}
	return worst
}

func orMax(none bool, t pact.Term) pact.Term {
	if none {
		return ^pact.Term(0)
	}
	return t
}

func readMark(disk string) diskView {
	forbidden := diskView{state: "inconsistent"}
	b, err := readSmall(disk + ".mark")
	if errors.Is(err, fs.ErrNotExist) {
		return diskView{}
	}
	if err != nil {
		return forbidden
	}
	var m struct {
		Format int       `json:"format"`
		State  string    `json:"state"`
		Term   pact.Term `json:"term"`
	}
	if json.Unmarshal(b, &m) != nil || m.Format != 1 {
		return forbidden
	}
	switch m.State {
	case "current", "outdated", "inconsistent":
	default:
		return forbidden
	}
	if _, err := os.Stat(disk); err != nil {
		return forbidden // the mark speaks of a file that is gone
	}
	return diskView{state: m.State, term: m.Term}
}

// smallMax is more than any mark has, in bytes.
const smallMax = 64 << 10

// readSmall reads a file that the guest's own process writes. Whoever has that process in his hand must not be able to
// have the daemon follow a link, wait for a pipe or read for ever.
func readSmall(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, errors.Join(fmt.Errorf("%s is no file", path), err)
	}
	return io.ReadAll(io.LimitReader(f, smallMax))
}

func readCreated(dir string) (uint64, error) {
	b, err := os.ReadFile(filepath.Join(dir, createdFile))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
}

// prepareDir makes the directory of a guest's disks. What an earlier guest of the same name has left is
// moved aside, never used. The disk files themselves are made by the data plane, sparse.
func prepareDir(cfg *config.Config, a pact.Assignment) error {
	dir := cfg.GuestDir(a.Guest)
	created, err := readCreated(dir)
	if err != nil {
		return fmt.Errorf("read %s: %w", filepath.Join(dir, createdFile), err)
	}
	if created != 0 && created != a.Created {
		if err := setAside(cfg, a.Guest, created); err != nil {
			return err
		}
	}
	if err := durable.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make the guest's directory: %w", err)
	}
	if created != a.Created {
		if err := durable.WriteFile(filepath.Join(dir, createdFile), []byte(fmt.Sprintln(a.Created)), 0o600); err != nil {
			return fmt.Errorf("write the guest's directory: %w", err)
		}
	}
	for i, d := range a.Spec.AllDisks() {
		info, err := os.Stat(diskPath(dir, a.Spec, i))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("look at disk %d: %w", i, err)
		}
		switch have, want := uint64(info.Size()), d.SizeBytes; {
		case have > want:
			return fmt.Errorf("%s has %d bytes, the guest's disk %d is to have %d: put a file of that size there", diskPath(dir, a.Spec, i), have, i, want)
		case have < want && (d.ReadOnly || readMark(diskPath(dir, a.Spec, i)).state != ""):
			return fmt.Errorf("%s has %d bytes, the guest's disk %d has %d: the file was cut off; restore it", diskPath(dir, a.Spec, i), have, i, want)
		case have < want:
			// An image that an operator has put there for the first start, or a file that was just being made.
			if err := os.Truncate(diskPath(dir, a.Spec, i), int64(want)); err != nil {
				return fmt.Errorf("grow disk %d to its size: %w", i, err)
			}
		}
	}
	return nil
}

// setAside moves a deleted guest's disks where nothing uses them; an operator removes them.
func setAside(cfg *config.Config, guest string, created uint64) error {
	dir := cfg.GuestDir(guest)
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	aside := filepath.Join(cfg.StateDir, "deleted")
	if err := durable.MkdirAll(aside, 0o700); err != nil {
		return err
	}
	to := filepath.Join(aside, fmt.Sprintf("%s-%d", guest, created))
	for n := 1; ; n++ {
		if _, err := os.Lstat(to); errors.Is(err, fs.ErrNotExist) {
			break
		}
		to = filepath.Join(aside, fmt.Sprintf("%s-%d.%d", guest, created, n))
	}
	if err := durable.Rename(dir, to); err != nil {
		return fmt.Errorf("move the disks of the deleted guest %s to %s: %w", guest, to, err)
	}
	return nil
}
