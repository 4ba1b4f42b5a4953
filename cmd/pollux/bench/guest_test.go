package bench

import (
	"bytes"
	"io"
	"testing"
	"time"

	"github.com/pollux-ha/pollux/checkpoint"
	"github.com/pollux-ha/pollux/vmm/kvm"
)

func newBench() *bench {
	return &bench{report: newReport(), quick: true, progress: io.Discard, began: time.Now()}
}

// What is measured is what is promised to be: so many pages, arrived as they were sent. No figure is
// judged here.
func TestInProcessRows(t *testing.T) {
	if err := kvm.Check(); err != nil {
		t.Skipf("needs /dev/kvm: %v", err)
	}
	b := newBench()
	what, err := selected([]string{"P1", "P5"})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.run(t.Context(), what); err != nil {
		t.Fatal(err)
	}
	for _, r := range b.report.Rows {
		if r.Samples == 0 || r.Value <= 0 || r.Ratio == nil || len(r.Phases) == 0 {
			t.Errorf("%s, %s lacks something: %+v", r.ID, r.Case, r)
		}
	}
	if len(b.report.Rows) != 7 {
		t.Errorf("%d rows", len(b.report.Rows))
	}
}

func TestStreamDelivers(t *testing.T) {
	s, err := newStream(t.Context(), 16)
	if err != nil {
		t.Fatal(err)
	}
	page := bytes.Repeat([]byte{7}, checkpoint.PageSize)
	sent, err := s.send(&checkpoint.Epoch{Number: 1, Term: 1, Pages: []uint32{3}, Data: page, State: []byte("state")})
	if err != nil {
		t.Fatal(err)
	}
	// TLS adds to the frames and takes nothing away.
	if sent.wireBytes <= sent.stats.WireBytes {
		t.Errorf("%d bytes on the wire for %d bytes of frames", sent.wireBytes, sent.stats.WireBytes)
	}
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(s.replica.Page(3), page) {
		t.Error("the page has not arrived")
	}
}
