package vmm

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/pollux-ha/pollux/vmm/memory"
	"github.com/pollux-ha/pollux/vmm/platform"
)

// BenchmarkPause measures the pause that a checkpoint costs, beside its baseline: stopping the vCPU,
// saving its state and copying the same scattered pages, without finding out which they are and
// without watching them again. Both are medians from the request to the moment at which the vCPU
// may go on; the two kinds take turns.
func BenchmarkPause(b *testing.B) {
	for _, cpus := range []int{1, 2} {
		for _, pages := range []int{10, 100, 1000, 4000} {
			b.Run(fmt.Sprintf("cpus=%d/pages=%d", cpus, pages), func(b *testing.B) { benchmarkPause(b, cpus, pages) })
		}
	}
}

func benchmarkPause(b *testing.B, cpus, pages int) {
	c := NewCapture(1 << 16)
	scratch := NewCapture(1 << 14)
	var asked time.Time
	var full, base []time.Duration
	var timings CaptureTimings
	var dirty, n int
	baseline := false
	done := make(chan error)
	var m *Machine
	cfg := Config{MemoryBytes: 256 << 20, CPUs: cpus, OnPause: func(p *Pause) bool {
		if baseline {
			at := 0
			for _, page := range c.Pages {
				at += copy(scratch.Data[at:], m.RAM().Page(int(page)))
			}
			scratch.State = platform.AppendState(scratch.State[:0], m.saveOrder)
			base = append(base, time.Since(asked))
			done <- nil
			return true
		}
		err := p.Capture(c)
		full = append(full, time.Since(asked))
		timings.Stop += c.Timings.Stop
		timings.Harvest += c.Timings.Harvest
		timings.Copy += c.Timings.Copy
		timings.State += c.Timings.State
		timings.Clear += c.Timings.Clear
		dirty += len(c.Pages)
		n++
		done <- err
		return true
	}}
	if cpus == 2 {
		m = twoCPUs(b, cfg)
	} else {
		m = newMachine(b, cfg)
	}
	load(b, m, writeList(), nil)
	w := &writer{m: m}
	var list []int
	for p := range pages { // scattered: every other page
		list = append(list, guestHeap/memory.PageSize+2*p)
	}
	// A list longer than a page runs through the pages after guestData; all of it is read only.
	w.list(b, list)
	if err := m.SetDirtyLogging(true); err != nil {
		b.Fatal(err)
	}
	start(b, m)
	pause := func(asBaseline bool) {
		baseline = asBaseline
		asked = time.Now()
		m.RequestPause()
		if err := <-done; err != nil {
			b.Fatal(err)
		}
	}
	for range 3 {
		w.write(b)
		pause(false)
	}
	full, base, timings, dirty, n = full[:0], base[:0], CaptureTimings{}, 0, 0
	b.ResetTimer()
	for range b.N {
		w.write(b)
		pause(false)
		w.write(b)
		pause(true)
		pause(false) // takes what was written before the baseline
		full, n = full[:len(full)-1], n-1
		dirty -= len(c.Pages)
	}
	b.StopTimer()
	median := func(d []time.Duration) float64 {
		slices.Sort(d)
		return float64(d[len(d)/2]) / 1e3
	}
	b.ReportMetric(median(full), "µs/pause")
	b.ReportMetric(median(base), "µs/baseline")
	b.ReportMetric(median(full)/median(base), "ratio")
	b.ReportMetric(float64(dirty)/float64(n), "pages")
	b.ReportMetric(0, "ns/op")
	us := func(d time.Duration) float64 { return float64(d.Microseconds()) / float64(2*n) }
	b.Logf("means in µs over both kinds of captures: stop %.0f, harvest %.0f, copy %.0f, state %.0f, clear %.0f",
		us(timings.Stop), us(timings.Harvest), us(timings.Copy), us(timings.State), us(timings.Clear))
}

// A pause allocates nothing on the heap once its capture has grown.
func TestCaptureDoesNotAllocate(t *testing.T) {
	c := NewCapture(1 << 15)
	done := make(chan float64)
	n := 0
	m := newMachine(t, Config{OnPause: func(p *Pause) bool {
		if n++; n == 1 {
			if err := p.Capture(c); err != nil {
				t.Error(err)
			}
			done <- 0
			return true
		}
		done <- testing.AllocsPerRun(50, func() {
			if err := p.Capture(c); err != nil {
				t.Error(err)
			}
		})
		return true
	}})
	load(t, m, countCode, nil)
	if err := m.SetDirtyLogging(true); err != nil {
		t.Fatal(err)
	}
	start(t, m)
	m.RequestPause()
	<-done
	m.RequestPause()
	if allocs := <-done; allocs > 12 { // the names of the parts
		t.Errorf("%v allocations in a capture", allocs)
	} else {
		t.Logf("%v allocations in a capture", allocs)
	}
}
