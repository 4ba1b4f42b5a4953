package scenario

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"testing"

	"github.com/pollux-ha/pollux/tests/lab/images"
	"github.com/pollux-ha/pollux/tests/lab/parts"
)

// takeovers is how often the plug is pulled; with -short less often.
func takeovers() int {
	if testing.Short() {
		return 2
	}
	return 10
}

// PostgreSQL serves its clients through one power cut after another: no connection breaks, and what was acknowledged is
// there; database and both disks are sound.
func TestPostgresOutlivesItsHosts(t *testing.T) {
	s := newStage(t, options{})
	s.databaseUp()
	l := s.startLoad()
	l.more(50)
	for round := range takeovers() {
		s.Logf("takeover %d", round+1)
		dead, _ := s.pullPlug()
		l.more(20)
		s.must(dead.Name+" is on again", dead.PowerOn(s.Context()))
		s.protected()
		l.more(20)
		s.mirror()
	}
	l.end()
	ctx, cancel := context.WithTimeout(s.Context(), 2*patience)
	defer cancel()
	l.check(ctx)
	s.amcheck(ctx)
	s.stopGuest()
	s.sound(s.disks())
}

// sound looks at both copies of the guest's disk: they are equal, and their file system is whole.
func (s *stage) sound(copies map[string]string) {
	s.Helper()
	sums := make(map[string]string)
	for host, disk := range copies {
		sums[digestOf(s, disk)] += host
		if err := fsck(s.Context(), disk); err != nil {
			s.Errorf("the disk on %s: %v", host, err)
		}
	}
	if len(sums) != 1 {
		s.Errorf("the copies of the disk differ: %v", sums)
	}
	s.step("both disks have been looked at: %v", sums)
}

func digestOf(s *stage, path string) string {
	s.Helper()
	f, err := os.Open(path)
	if err != nil {
		s.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		s.Fatal(err)
	}
	return fmt.Sprintf("%x", h.Sum(nil)[:8])
}

// fsck looks at the root file system of a disk that was shut down in an orderly way: nothing is to be put right.
func fsck(ctx context.Context, disk string) error {
	path, err := parts.Tool("e2fsck")
	if err != nil {
		return err
	}
	out, err := exec.CommandContext(ctx, path, "-fn", fmt.Sprintf("%s?offset=%d", disk, images.RootOffset)).CombinedOutput()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return fmt.Errorf("e2fsck: %w\n%s", err, out)
	}
	return err
}
