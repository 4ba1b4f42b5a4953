package dataplane

import (
	"fmt"
	"slices"
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
	fault := vmm.DiskError{Op: "write", Offset: 4096, Bytes: 512, Err: fmt.Errorf("disk0.raw: %w", unix.EIO)}
	if !a.p.diskError(fault) {
		t.Error("the guest is told, although there is a replica")
	}
	r.until("b has taken over", func(x pact.Assignment) bool { return x.Primary == partyB && x.Mode == pact.Solo })
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
