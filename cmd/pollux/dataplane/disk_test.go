package dataplane

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/pollux-ha/pollux/audit"
	"github.com/pollux-ha/pollux/cluster/pact"
	"github.com/pollux-ha/pollux/vmm"
)

// TestDiskFault: a disk that fails under a protected guest hands it over, and the guest hears nothing; one
// that fails under a guest without a replica is the guest's own trouble.
func TestDiskFault(t *testing.T) {
	r, a, b, _ := pairUp(t)
	r.until("a knows that it is protected", func(pact.Assignment) bool { return a.status.Mode == "protected" })
	fault := vmm.DiskError{Op: "write", Offset: 4096, Bytes: 512, Err: fmt.Errorf("disk0.raw: %w", unix.EIO)}
	if !a.p.diskError(fault) {
		t.Error("the guest is told, although there is a replica")
	}
	r.until("b has taken over", func(x pact.Assignment) bool { return x.Primary == partyB && x.Mode == pact.Solo })
	a.drain() // answers to what was asked before: on a slow machine it was asked more than once
	if r.ask(a, b) != b {
		t.Fatal("a answered after b had taken over")
	}
	for range 2 {
		if b.p.diskError(fault) {
			t.Error("the guest is not told, although there is nobody else")
		}
	}
	if got := a.reasons(t, audit.Fault); !slices.Contains(got, fault.Error()) {
		t.Errorf("a's log knows of %q", got)
	}
}

// TestDiscardIsMirrored: what a discard made zero here is zero on the twin, and what was around it is not.
func TestDiscardIsMirrored(t *testing.T) {
	r, a, b, _ := pairUp(t)
	disk := a.p.store.Disks()[0]
	const written, hole = 256 << 10, 64 << 10
	at := disk.Size() - written
	want := bytes.Repeat([]byte("mirrored"), written/8)
	if _, err := disk.WriteAt(want, at); err != nil {
		t.Fatal(err)
	}
	if err := disk.Zero(at+4096+512, hole, true); err != nil {
		t.Skipf("needs a file system with holes: %v", err)
	}
	a.p.machine.Lock() // as the disk's worker does
	a.p.outlet.DiskWritten(0, at, bytes.Clone(want))
	a.p.outlet.DiskZeroed(0, at+4096+512, hole, true)
	a.p.machine.Unlock()
	clear(want[4096+512 : 4096+512+hole])
	if r.ask(a) != a { // what it says after that is seen only once the replica has it
		t.Fatal("somebody else answered")
	}
	r.kill(a)
	r.until("b has taken over", func(x pact.Assignment) bool { return x.Primary == partyB && x.CurrentDisk.Host == "b" })
	got := make([]byte, written)
	if _, err := b.p.store.Disks()[0].ReadAt(got, at); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("the twin holds something else")
	}
}

// TestReadOnlyDisk: a guest with a disk that it can't write to is protected as any other; where the hosts'
// images of it differ it is not, and an operator is told why.
func TestReadOnlyDisk(t *testing.T) {
	needsKVM(t)
	const size = 3*64<<10 + 4096
	for _, same := range []bool{true, false} {
		t.Run(fmt.Sprint("same ", same), func(t *testing.T) {
			certs := certificates(t)
			r := newRaft(t, func(s *pact.Spec) {
				s.Disks = append(s.Disks, pact.DiskSpec{SizeBytes: size, ReadOnly: true})
			})
			launch := func(p pact.Party, fill byte) *member {
				dir := t.TempDir()
				if err := os.WriteFile(filepath.Join(dir, "disk1.raw"), bytes.Repeat([]byte{fill}, size), 0o600); err != nil {
					t.Fatal(err)
				}
				return r.launch(p, dir, certs[p.Host])
			}
			fill := byte('b')
			if same {
				fill = 'a'
			}
			a, _ := launch(partyA, 'a'), launch(partyB, fill)
			if v := r.propose(pact.Command{Kind: pact.Start, Guest: "g", By: partyA}); !v.Applied {
				t.Fatal(v.Reason)
			}
			if same {
				r.until("protected", protectedBy(partyA))
				return
			}
			r.until("a says why there is no replica", func(pact.Assignment) bool { return strings.Contains(a.status.Detail, "disk 1 can only be read") })
		})
	}
}
