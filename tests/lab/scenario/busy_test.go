package scenario

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/pollux-ha/pollux/tests/lab"
	"github.com/pollux-ha/pollux/tests/lab/parts"
)

// busyWork keeps a Debian guest busy: packages, archives, a compiler, and what they leave in its page cache. Each round does
// something else to other files.
const busyWork = `set -e
cd /srv
for round in $(seq 100000); do
	tar -cf etc-$round.tar /etc /usr/share/zoneinfo 2>/dev/null
	gzip -1 etc-$round.tar
	apt-get install -y -q /srv/packages/*.deb >/dev/null 2>&1
	for n in 1 2 3 4; do
		printf '#include <stdio.h>\nint main(void) { printf("%%d\\n", %d * %d); return 0; }\n' $round $n >p$n.c
		tcc -o p$n p$n.c
		[ "$(./p$n)" = $((round * n)) ]
	done
	apt-get purge -y -q bc tree zip unzip >/dev/null 2>&1
	rm -f etc-$((round - 2)).tar.gz
	sync
	echo $round >/srv/rounds
done`

// A guest that works hard is mirrored without divergence, also by way of a takeover: once it stands still, memory and disk
// are the same on both hosts.
func TestBusyGuestIsMirrored(t *testing.T) {
	for _, cpus := range []int{1, 2} {
		t.Run(fmt.Sprintf("%d-cpu", cpus), func(t *testing.T) {
			s := newStage(t, options{cpus: cpus})
			_, err := s.run(s.Context(), strings.NewReader(busyWork), s.sshCommand("cat >/srv/busy")...)
			s.must("the guest knows its work", err)
			s.inBackground("busy", "sh /srv/busy")
			s.rounds(2)
			dead, _ := s.pullPlug()
			s.rounds(1)
			s.must(dead.Name+" is on again", dead.PowerOn(s.Context()))
			s.protected()
			s.rounds(1)

			// The kernel stops every CPU where it is, with interrupts off; nothing is written back or unmounted first.
			_, err = s.ssh(s.Context(), "systemd-run --quiet --on-active=1 halt --force --force")
			s.must("the guest is told to halt", err)
			s.agree()
		})
	}
}

// rounds waits until the guest has done n further rounds of its work.
func (s *stage) rounds(n int) {
	s.Helper()
	first := -1
	s.eventually(fmt.Sprintf("%d rounds of work", n), func(ctx context.Context) error {
		out, err := s.ssh(ctx, "systemctl is-active --quiet busy.service && cat /srv/rounds 2>/dev/null || echo 0")
		if err != nil {
			return err
		}
		var done int
		if _, err := fmt.Sscan(out, &done); err != nil {
			return err
		}
		if first < 0 {
			first = done
		}
		if done < first+n {
			return fmt.Errorf("%d of %d", done-first, n)
		}
		return nil
	})
}

// agree waits until both hosts hold the same memory and the same disk of the guest, which stands still.
func (s *stage) agree() {
	s.Helper()
	ctx, cancel := context.WithTimeout(s.Context(), patience)
	defer cancel()
	program, err := parts.Program(ctx, "./tests/lab/scenario/inside")
	if err != nil {
		s.Fatal(err)
	}
	for _, h := range s.lab.Hosts() {
		if err := h.Put(ctx, "/bin/inside", program); err != nil {
			s.Fatal(err)
		}
	}
	var pages int
	s.eventually("both hosts hold the same memory and the same disk", func(ctx context.Context) error {
		g, err := s.cluster.Status(ctx, guestName)
		if err != nil {
			return err
		}
		if g.State != "protected" {
			return fmt.Errorf("the guest is %s (%s)", g.State, g.Detail)
		}
		pids := make(map[string]int)
		for _, p := range g.Processes {
			pids[p.Host] = p.PID
		}
		for _, what := range []string{"memory", "disk"} {
			var sums [2][]byte
			for i, h := range s.lab.Hosts() {
				if sums[i], err = s.pages(ctx, h, what, pids[h.Name]); err != nil {
					return err
				}
			}
			if err := differences(what, sums[0], sums[1]); err != nil {
				return err
			}
			pages += len(sums[0]) / 8
		}
		return nil
	})
	s.Logf("%d pages of memory and disk are equal", pages)
}

// pages returns the digests of the guest's memory, as the process holds it, or of its disk.
func (s *stage) pages(ctx context.Context, h *lab.Host, what string, pid int) ([]byte, error) {
	file := lab.StateDir + "/guests/" + guestName + "/disk0.raw"
	if what == "memory" {
		// The one that the process calls guest RAM.
		out, err := h.Exec(ctx, "sh", "-c", fmt.Sprintf("for f in /proc/%d/fd/*; do case $(readlink $f) in /memfd:*ram*) echo $f;; esac; done", pid))
		if err != nil {
			return nil, err
		}
		files := strings.Fields(out)
		if len(files) == 0 {
			return nil, fmt.Errorf("process %d on %s has no guest memory", pid, h.Name)
		}
		file = files[0]
	}
	if _, err := h.Exec(ctx, "inside", "pages", file, "/tmp/pages"); err != nil {
		return nil, err
	}
	local := filepath.Join(h.Dir, "pages")
	if err := h.Get(ctx, "/tmp/pages", local); err != nil {
		return nil, err
	}
	return os.ReadFile(local)
}

// differences says which pages differ.
func differences(what string, a, b []byte) error {
	if len(a) != len(b) || len(a) == 0 {
		return fmt.Errorf("%s: %d pages on one host, %d on the other", what, len(a)/8, len(b)/8)
	}
	var differ []int
	for i := 0; i < len(a); i += 8 {
		if binary.LittleEndian.Uint64(a[i:]) != binary.LittleEndian.Uint64(b[i:]) {
			differ = append(differ, i/8)
		}
	}
	if len(differ) > 0 {
		return fmt.Errorf("%s: %d of %d pages differ: %v", what, len(differ), len(a)/8, slices.Clip(differ[:min(20, len(differ))]))
	}
	return nil
}
