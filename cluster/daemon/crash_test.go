package daemon

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/pollux-ha/pollux/cluster/config"
	"github.com/pollux-ha/pollux/cluster/pact"
	"github.com/pollux-ha/pollux/replica/mark"
	"github.com/pollux-ha/pollux/tests/crash/shim"
)

func crashGuest(created uint64) pact.Assignment {
	return guest(func(a *pact.Assignment) {
		a.Created = created
		a.Spec.Disks = []pact.DiskSpec{{SizeBytes: 512}}
	})
}

// twoGuests is a guest whose disk is in use, and after it another of the same name. It notes "exists N" when
// the cluster knows the N-th, and "used N" when its disk has what only it may find again.
func twoGuests(dir string, note func(string)) error {
	cfg := &config.Config{Name: "a", StateDir: filepath.Join(dir, "state")}
	for created := uint64(1); created <= 2; created++ {
		a := crashGuest(created)
		note(fmt.Sprint("exists ", created))
		if err := prepareDir(cfg, a); err != nil {
			return err
		}
		disk := diskPath(cfg.GuestDir(a.Guest), a.Spec, 0)
		f, err := os.OpenFile(disk, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
		if err != nil {
			return err
		}
		content := make([]byte, 512)
		content[0] = byte(created)
		if _, err := f.Write(content); err != nil {
			return err
		}
		if err := f.Sync(); err != nil {
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
		if err := mark.Write(disk, mark.Mark{State: mark.Current, Term: pact.Term(created)}); err != nil {
			return err
		}
		note(fmt.Sprint("used ", created))
	}
	return nil
}

// checkGuests is the daemon that comes back for the guest that there was last.
func checkGuests(dir string, notes []string) error {
	exists, used := uint64(1), uint64(0)
	for _, n := range notes {
		fmt.Sscanf(n, "exists %d", &exists)
		fmt.Sscanf(n, "used %d", &used)
	}
	cfg := &config.Config{Name: "a", StateDir: filepath.Join(dir, "state")}
	a := crashGuest(exists)
	before := readDisks(cfg, a)
	if err := prepareDir(cfg, a); err != nil {
		return err
	}
	after := readDisks(cfg, a)
	disk := diskPath(cfg.GuestDir(a.Guest), a.Spec, 0)
	switch b, err := os.ReadFile(disk); {
	case before != after:
		return fmt.Errorf("before the directory was made ready its disk was %+v, and then %+v", before, after)
	case used == a.Created && (err != nil || b[0] != byte(used) || after != diskView{"current", pact.Term(used)}):
		return fmt.Errorf("guest %d does not find its disk: %+v, %w", used, after, err)
	case err == nil && len(b) > 0 && b[0] != 0 && b[0] != byte(a.Created):
		return fmt.Errorf("guest %d finds the disk of guest %d", a.Created, b[0])
	case after.state == "current" && uint64(after.term) != a.Created:
		return fmt.Errorf("guest %d finds the mark of guest %d", a.Created, after.term)
	}
	return nil
}

// Whatever moment the power is lost at: a guest finds its own disk again and never that of an earlier guest
// of its name.
func TestGuestsDirectorySurvivesEveryCrash(t *testing.T) {
	shim.EveryCrash(t, shim.Record(t, twoGuests), checkGuests)
}
