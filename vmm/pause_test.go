package vmm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/pollux-ha/pollux/vmm/memory"
	"github.com/pollux-ha/pollux/vmm/platform"
)

// writeList makes the guest write once to each address of the list at guestData+0x1000 whenever
// the number at guestData changes, and then say so at guestData+8.
func writeList() []byte {
	return newAsm().
		ebx(guestData).
		raw(0x4d, 0x31, 0xc0). // xor r8,r8
		label("wait").
		raw(0x48, 0x8b, 0x03). // mov rax,[rbx]
		raw(0x4c, 0x39, 0xc0). // cmp rax,r8
		je("wait").
		raw(0x49, 0x89, 0xc0). // mov r8,rax
		esi(guestData+0x1000).
		label("next").
		raw(0x48, 0x8b, 0x3e). // mov rdi,[rsi]
		raw(0x48, 0x85, 0xff). // test rdi,rdi
		je("done").
		raw(0x48, 0xff, 0x07).       // inc qword [rdi]
		raw(0x48, 0x83, 0xc6, 0x08). // add rsi,8
		jmp("next").
		label("done").
		raw(0x4c, 0x89, 0x43, 0x08). // mov [rbx+8],r8
		jmp("wait").
		bytes()
}

// writer is a guest that writes what it is told to.
type writer struct {
	m    *Machine
	turn uint64
}

func (w *writer) list(t testing.TB, pages []int) {
	var l []byte
	for _, p := range pages {
		l = binary.LittleEndian.AppendUint64(l, w.m.gpaOf(p*memory.PageSize)+128)
	}
	if err := w.m.RAM().Write(guestData+0x1000, binary.LittleEndian.AppendUint64(l, 0)); err != nil {
		t.Fatal(err)
	}
}

// write has the guest go through the list and waits until it has.
func (w *writer) write(t testing.TB) {
	w.turn++
	if err := w.m.RAM().Write(guestData, binary.LittleEndian.AppendUint64(nil, w.turn)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the guest has written", func() bool { return w.m.peek(guestData+8) == w.turn })
}

func TestDirtyTrackingIsExact(t *testing.T) {
	const first, pages = guestHeap / memory.PageSize, 3000
	c := NewCapture(16) // it has to grow
	done := make(chan error)
	var m *Machine
	m = newMachine(t, Config{OnPause: func(p *Pause) bool {
		err := p.Capture(c)
		for i, page := range c.Pages {
			if !bytes.Equal(c.Data[i*memory.PageSize:(i+1)*memory.PageSize], m.RAM().Page(int(page))) {
				err = errors.Join(err, errors.New("the arena differs from memory"))
				break
			}
		}
		done <- err
		return true
	}})
	load(t, m, writeList(), nil)
	if err := m.SetDirtyLogging(true); err != nil {
		t.Fatal(err)
	}
	start(t, m)
	capture := func() {
		t.Helper()
		m.RequestPause()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	w := &writer{m: m}
	var all []int
	for p := range pages {
		all = append(all, first+p)
	}
	// Two rounds through everything bring all page tables to rest.
	for from := 0; from < pages; from += 500 {
		w.list(t, all[from:from+500])
		w.write(t)
		w.write(t)
		capture()
	}
	capture()
	for _, stride := range []int{1, 7, 63, 64, 65, 500} {
		var want []int
		for p := 0; p < pages && len(want) < 500; p += stride {
			want = append(want, first+p)
		}
		w.list(t, want)
		capture() // takes the VMM's write of the list
		w.write(t)
		const tables = 6
		if n, err := m.DirtyCount(); err != nil || n < len(want)+1 || n > len(want)+1+tables {
			t.Errorf("stride %d: %d pages are dirty, %v; want %d", stride, n, err, len(want)+1)
		}
		// One page that the VMM alone has written, and one that both have.
		if err := m.RAM().Write(guestHeap+8000*memory.PageSize, []byte{byte(stride)}); err != nil {
			t.Fatal(err)
		}
		if err := m.RAM().Write(guestHeap+8, []byte{byte(stride)}); err != nil {
			t.Fatal(err)
		}
		want = append(want, guestData/memory.PageSize, first+8000)
		slices.Sort(want)
		capture()
		var got []int
		for _, p := range besidesTables(c.Pages) {
			got = append(got, int(p))
		}
		if !slices.Equal(got, want) {
			t.Errorf("stride %d: captured %d pages, want %d: %v", stride, len(got), len(want), diff(got, want))
		}
	}
	capture()
	if len(besidesTables(c.Pages)) != 0 {
		t.Errorf("nothing was written, and %v captured", c.Pages)
	}
}

func diff(a, b []int) (d []int) {
	for _, x := range a {
		if !slices.Contains(b, x) {
			d = append(d, x)
		}
	}
	for _, x := range b {
		if !slices.Contains(a, x) {
			d = append(d, -x)
		}
	}
	return d
}

func TestForgetBeginsAnew(t *testing.T) {
	c := NewCapture(1)
	done := make(chan error)
	forget := true
	m := newMachine(t, Config{OnPause: func(p *Pause) bool {
		if forget {
			done <- p.Forget()
		} else {
			done <- p.Capture(c)
		}
		return true
	}})
	load(t, m, writeList(), nil)
	if err := m.SetDirtyLogging(true); err != nil {
		t.Fatal(err)
	}
	start(t, m)
	for _, forget = range []bool{true, false} {
		m.RequestPause()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	if len(c.Pages) > 8 {
		t.Errorf("%d pages are left after Forget", len(c.Pages))
	}
	if err := m.SetDirtyLogging(true); err != nil { // again: everything counts
		t.Fatal(err)
	}
	m.RequestPause()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if len(c.Pages) != m.RAM().Pages() {
		t.Errorf("%d pages after logging was switched on again, want %d", len(c.Pages), m.RAM().Pages())
	}
	if err := m.SetDirtyLogging(false); err != nil {
		t.Fatal(err)
	}
	m.RequestPause()
	if err := <-done; !errors.Is(err, errLogOff) {
		t.Errorf("capture without logging: %v", err)
	}
}

// port answers reads with 1, counts them and calls a function in each.
type port struct {
	mu    sync.Mutex
	reads int
	in    func(n int)
}

func (p *port) Read(_ uint64, data []byte) {
	p.mu.Lock()
	p.reads++
	n := p.reads
	p.mu.Unlock()
	clear(data)
	data[0] = 1
	if p.in != nil {
		p.in(n)
	}
}
func (p *port) Write(uint64, []byte) {}

// An access that is half done when the pause comes is completed before the state is saved: the
// restored guest neither repeats nor misses it.
func TestHalfDoneAccess(t *testing.T) {
	for _, c := range []struct {
		name string
		mmio bool
		read []byte
	}{
		{"port", false, newAsm().edx(0x5000).raw(0xec).bytes()},          // in al,dx
		{"mmio", true, newAsm().edx(0xd0000000).raw(0x8a, 0x02).bytes()}, // mov al,[rdx]
	} {
		t.Run(c.name, func(t *testing.T) {
			code := newAsm().
				ebx(guestData).raw(0x48, 0x31, 0xc9). // xor rcx,rcx
				label("again").
				raw(0x31, 0xc0).       // xor eax,eax
				raw(c.read...).        //
				raw(0x48, 0x01, 0xc1). // add rcx,rax
				raw(0x48, 0x89, 0x0b). // mov [rbx],rcx
				jmp("again").bytes()
			const stopAt = 50
			cap := NewCapture(1 << 14)
			type image struct{ ram, state []byte }
			images := make(chan image, 1)
			build := func(p *port, onPause func(*Pause) bool) *Machine {
				m := newMachine(t, Config{OnPause: onPause})
				m.Lock()
				defer m.Unlock()
				space, base := m.Ports(), uint64(0x5000)
				if c.mmio {
					space, base = m.MMIO(), 0xd0000000
				}
				if err := space.Map(base, 8, p); err != nil {
					t.Fatal(err)
				}
				return m
			}
			p := &port{}
			var m *Machine
			m = build(p, func(pause *Pause) bool {
				if err := pause.Capture(cap); err != nil {
					t.Error(err)
				}
				images <- image{bytes.Clone(m.RAM().Bytes()), bytes.Clone(cap.State)}
				return false
			})
			p.in = func(n int) {
				if n == stopAt {
					m.RequestPause() // while the vCPU waits for the result
				}
			}
			load(t, m, code, nil)
			if err := m.SetDirtyLogging(true); err != nil {
				t.Fatal(err)
			}
			start(t, m)
			img := <-images
			if n := binary.LittleEndian.Uint64(img.ram[guestData:]); n != stopAt-1 {
				t.Fatalf("the guest has counted %d, not %d: the pause came late", n, stopAt-1)
			}
			if r := m.vcpus[0].state.regs; r.RAX != 1 {
				t.Errorf("the saved vCPU has %d from its last read", r.RAX)
			}

			q := &port{}
			other := build(q, nil)
			stopped := make(chan struct{})
			q.in = func(n int) {
				if n == 10 {
					other.PowerEvent(platform.PowerOff)
					close(stopped)
				}
			}
			copy(other.RAM().Bytes(), img.ram)
			if err := other.LoadState(img.state); err != nil {
				t.Fatal(err)
			}
			start(t, other)
			<-stopped
			if err := other.Stop(); err != nil {
				t.Fatal(err)
			}
			// The tenth read is complete but not counted yet.
			if got := other.peek(guestData); got != stopAt+9 {
				t.Errorf("the guest has counted %d reads of %d", got, stopAt+9)
			}
		})
	}
}

func TestStayAndResume(t *testing.T) {
	c := NewCapture(1 << 14)
	paused := make(chan *Pause, 1)
	answer := make(chan bool, 1)
	m := newMachine(t, Config{OnPause: func(p *Pause) bool {
		if err := p.Capture(c); err != nil {
			t.Error(err)
		}
		paused <- p
		return <-answer
	}})
	load(t, m, countCode, nil)
	if err := m.SetDirtyLogging(true); err != nil {
		t.Fatal(err)
	}
	m.Resume() // nothing to resume
	start(t, m)
	eventually(t, "the guest counts", func() bool { return m.peek(guestData) > 100 })
	m.RequestPause()
	p := <-paused
	answer <- false
	at := m.peek(guestData)
	// A pause in a stay sees the same guest again.
	for _, goOn := range []bool{false, true} {
		m.RequestPause()
		<-paused
		if now := m.peek(guestData); now != at {
			t.Errorf("the guest ran in a stay: %d, then %d", at, now)
		}
		answer <- goOn
	}
	eventually(t, "the guest goes on", func() bool { return m.peek(guestData) > at })
	if err := p.Capture(c); err == nil {
		t.Error("a pause is good after its end")
	}
	m.RequestPause()
	<-paused
	answer <- false
	at = m.peek(guestData)
	eventually(t, "the stay begins", func() bool { m.gate.Lock(); defer m.gate.Unlock(); return m.gate.staying })
	m.Resume()
	eventually(t, "the guest goes on", func() bool { return m.peek(guestData) > at })
}

func TestStopAtAnyTime(t *testing.T) {
	stop := func(t *testing.T, m *Machine) {
		t.Helper()
		done := make(chan error, 2)
		for range 2 {
			go func() { done <- m.Stop() }()
		}
		for range 2 {
			select {
			case err := <-done:
				if err != nil {
					t.Fatal(err)
				}
			case <-time.After(20 * time.Second):
				t.Fatal("Stop does not return")
			}
		}
		at := m.peek(guestData)
		m.Resume()
		m.RequestPause()
		if now := m.peek(guestData); now != at {
			t.Errorf("the guest runs after Stop: %d, then %d", at, now)
		}
	}
	t.Run("before Start", func(t *testing.T) {
		m := newMachine(t, Config{})
		load(t, m, countCode, nil)
		stop(t, m)
	})
	t.Run("while it runs", func(t *testing.T) {
		m := newMachine(t, Config{})
		load(t, m, countCode, nil)
		start(t, m)
		stop(t, m)
	})
	t.Run("during a pause", func(t *testing.T) {
		in, out := make(chan struct{}), make(chan struct{})
		m := twoCPUs(t, Config{OnPause: func(*Pause) bool { close(in); <-out; return true }})
		start(t, m)
		m.RequestPause()
		<-in
		done := make(chan error, 1)
		go func() { done <- m.Stop() }()
		eventually(t, "Stop has begun", func() bool { m.gate.Lock(); defer m.gate.Unlock(); return !m.gate.started })
		select {
		case err := <-done:
			t.Errorf("Stop returns inside of a pause: %v", err)
		default:
		}
		close(out)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		stop(t, m)
	})
	t.Run("during a stay", func(t *testing.T) {
		in := make(chan struct{}, 1)
		m := newMachine(t, Config{OnPause: func(*Pause) bool { in <- struct{}{}; return false }})
		load(t, m, countCode, nil)
		start(t, m)
		m.RequestPause()
		<-in
		stop(t, m)
	})
	t.Run("by OnPause", func(t *testing.T) {
		var m *Machine
		got := make(chan error, 1)
		m = newMachine(t, Config{OnPause: func(*Pause) bool { got <- m.Stop(); return true }})
		load(t, m, countCode, nil)
		start(t, m)
		m.RequestPause()
		if err := <-got; !errors.Is(err, ErrInPause) {
			t.Errorf("Stop inside of a pause: %v", err)
		}
		stop(t, m)
	})
	t.Run("in a storm of pauses", func(t *testing.T) {
		c := NewCapture(1 << 14)
		m := twoCPUs(t, Config{OnPause: func(p *Pause) bool { _ = p.Capture(c); return true }})
		if err := m.SetDirtyLogging(true); err != nil {
			t.Fatal(err)
		}
		start(t, m)
		end := make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() {
			for {
				select {
				case <-end:
					return
				default:
					m.RequestPause()
				}
			}
		})
		at := m.peek(guestData)
		eventually(t, "the guest counts", func() bool { return m.peek(guestData) > at+100 })
		stop(t, m)
		close(end)
		wg.Wait()
	})
}

// A stopped machine becomes a replica: it takes a checkpoint and goes on from it.
func TestStoppedMachineIsLoadedAgain(t *testing.T) {
	c := NewCapture(1 << 14)
	paused := make(chan uint64)
	var m *Machine
	m = twoCPUs(t, Config{OnPause: func(p *Pause) bool {
		if err := p.Capture(c); err != nil {
			t.Error(err)
		}
		paused <- m.peek(guestData)
		return true
	}})
	if err := m.SetDirtyLogging(true); err != nil {
		t.Fatal(err)
	}
	start(t, m)
	for range 5 {
		m.RequestPause()
		at := <-paused
		state := bytes.Clone(c.State)
		eventually(t, "the guest goes on", func() bool { return m.peek(guestData) > at+100 })
		if err := m.Stop(); err != nil {
			t.Fatal(err)
		}
		if err := m.LoadState(state); err != nil {
			t.Fatal(err)
		}
		now := m.peek(guestData) // memory is not brought back: the guest's register decides
		start(t, m)
		eventually(t, "the guest goes on from the checkpoint", func() bool { n := m.peek(guestData); return n > at && n != now })
	}
}

func TestPowerEvents(t *testing.T) {
	for _, c := range []struct {
		name string
		want platform.PowerEvent
		code []byte
	}{
		{"reset", platform.Reset, newAsm().edx(platform.ResetPort).eax(platform.ResetValue).raw(0xee).jmp("x").label("x").short(0xeb, "x").bytes()},
		{"triple fault", platform.Crashed, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			events := make(chan platform.PowerEvent, 10)
			captured := make(chan []byte, 1)
			cap := NewCapture(1 << 14)
			m := newMachine(t, Config{
				OnPower: func(e platform.PowerEvent) { events <- e },
				OnPause: func(p *Pause) bool {
					if err := p.Capture(cap); err != nil {
						t.Error(err)
					}
					captured <- bytes.Clone(cap.State)
					return true
				}})
			load(t, m, c.code, nil)
			if c.code == nil {
				// No descriptor table: the first exception kills it.
				e := userEntry()
				e.IDT.Limit = 0
				if err := m.vcpus[0].enter(e); err != nil {
					t.Fatal(err)
				}
				if err := m.RAM().Write(guestCode, []byte{0x0f, 0x0b}); err != nil { // ud2
					t.Fatal(err)
				}
			}
			if err := m.SetDirtyLogging(true); err != nil {
				t.Fatal(err)
			}
			start(t, m)
			if e := <-events; e != c.want {
				t.Fatalf("power event %v, want %v", e, c.want)
			}
			// The last words of the guest can still be captured, and whoever restores them learns
			// that there is nothing to run.
			m.RequestPause()
			state := <-captured
			other := newMachine(t, Config{OnPower: func(e platform.PowerEvent) { events <- e }})
			copy(other.RAM().Bytes(), m.RAM().Bytes())
			if err := other.LoadState(state); err != nil {
				t.Fatal(err)
			}
			start(t, other)
			if e := <-events; e != c.want {
				t.Errorf("restored: power event %v, want %v", e, c.want)
			}
			if len(events) != 0 {
				t.Errorf("%d more power events", len(events))
			}
		})
	}
}
