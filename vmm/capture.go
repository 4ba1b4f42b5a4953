package vmm

import (
	"errors"
	"fmt"
	"math/bits"
	"runtime/debug"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pollux-ha/pollux/vmm/memory"
	"github.com/pollux-ha/pollux/vmm/platform"
)

// Capture takes what one checkpoint consists of on the guest's side. It is made once and used
// again: Pause.Capture overwrites it.
type Capture struct {
	Pages   []uint32 // page indexes as memory.RAM numbers them, ascending
	Data    []byte   // their contents, len(Pages)*memory.PageSize bytes
	Zero    []uint32 // further pages, which are zero now; ascending, none of Pages
	State   []byte   // vCPUs and devices, in platform.AppendState's format
	Timings CaptureTimings
}

// CaptureTimings says where a pause went.
type CaptureTimings struct {
	Stop    time.Duration // from RequestPause to the last vCPU out of the guest
	Harvest time.Duration // reading the dirty log
	Copy    time.Duration
	State   time.Duration // of vCPUs and devices
	Clear   time.Duration // protecting the harvested pages again
}

// stateRoom is enough for the state of a small machine.
const stateRoom = 64 << 10

// NewCapture makes one with room for so many pages, touched already so that copying into it costs
// no page faults. It grows when needed.
func NewCapture(arenaPages int) *Capture {
	c := &Capture{State: make([]byte, 0, stateRoom)}
	c.grow(max(arenaPages, 1))
	touch(c.State[:cap(c.State)])
	return c
}

func (c *Capture) grow(pages int) {
	if cap(c.Pages) >= pages && cap(c.Data) >= pages*memory.PageSize {
		return
	}
	c.Pages = make([]uint32, pages)
	for i := range c.Pages {
		c.Pages[i] = 1
	}
	c.Data = make([]byte, pages*memory.PageSize)
	touch(c.Data)
}

func touch(b []byte) {
	for i := 0; i < len(b); i += memory.PageSize {
		b[i] = 1
	}
}

// Pause is a moment in which no vCPU runs and no device moves. It lasts as long as the call of
// OnPause that it is given to.
type Pause struct {
	m       *Machine
	valid   atomic.Bool
	timings CaptureTimings
}

var errNoPause = errors.New("a pause is used after its OnPause has returned")

// Capture takes everything that changed since the last capture, and the whole state, into c. Where
// it fails nothing is lost: the next one has it all. An error that wraps ErrMemoryFault says that a
// page is damaged; it has been reported as a MemoryFault too.
func (p *Pause) Capture(c *Capture) error {
	m := p.m
	if !p.valid.Load() {
		return errNoPause
	}
	for _, v := range m.vcpus {
		if v.saveErr != nil {
			return fmt.Errorf("save the state of vCPU %d: %w", v.id, v.saveErr)
		}
	}
	c.Timings = p.timings
	t0 := time.Now()
	n, zero, err := m.dirty.harvest(m)
	if err != nil {
		return err
	}
	t1 := time.Now()
	if cap(c.Pages) < n || cap(c.Data) < n*memory.PageSize {
		c.grow(n + n/4)
	}
	c.Pages, c.Data = c.Pages[:n], c.Data[:n*memory.PageSize]
	if c.Zero = c.Zero[:0]; cap(c.Zero) < zero {
		c.Zero = make([]uint32, 0, zero)
	}
	if err := m.copyDirty(c); err != nil {
		return err
	}
	t2 := time.Now()
	m.saveErr = nil
	c.State = platform.AppendState(c.State[:0], m.saveOrder)
	if m.saveErr != nil {
		return fmt.Errorf("save the machine's state: %w", m.saveErr)
	}
	t3 := time.Now()
	if err := m.dirty.clear(m); err != nil {
		return err
	}
	t4 := time.Now()
	c.Timings.Harvest = t1.Sub(t0)
	c.Timings.Copy = t2.Sub(t1)
	c.Timings.State += t3.Sub(t2)
	c.Timings.Clear = t4.Sub(t3)
	return nil
}

// Forget drops the record of everything written up to now, without copying it. Whoever starts to
// copy the whole memory beside the running guest begins with it.
func (p *Pause) Forget() error {
	if !p.valid.Load() {
		return errNoPause
	}
	if _, _, err := p.m.dirty.harvest(p.m); err != nil {
		return err
	}
	return p.m.dirty.clear(p.m)
}

// copyDirty copies the harvested pages. A damaged page must not kill the process: on this thread
// SIGBUS is blocked, which it would not survive, so it is let through meanwhile and turned into a
// panic that ends here.
func (m *Machine) copyDirty(c *Capture) (err error) {
	if err := unix.PthreadSigmask(unix.SIG_UNBLOCK, &busSignal, nil); err != nil {
		return fmt.Errorf("let memory errors through: %w", err)
	}
	old := debug.SetPanicOnFault(true)
	defer func() {
		debug.SetPanicOnFault(old)
		if e := unix.PthreadSigmask(unix.SIG_BLOCK, &busSignal, nil); e != nil && err == nil {
			err = fmt.Errorf("hold memory errors back: %w", e)
		}
		if r := recover(); r != nil {
			f, ok := r.(interface{ Addr() uintptr })
			if !ok {
				panic(r)
			}
			off, ok := offsetIn(m.ram.Bytes(), uint64(f.Addr()))
			if !ok {
				panic(r)
			}
			fault := MemoryFault{Page: off / memory.PageSize, GPA: m.gpaOf(off), VCPU: -1, Optional: true}
			m.reportFault(fault)
			err = fmt.Errorf("copy page %d: %w", fault.Page, ErrMemoryFault)
		}
	}()
	ram, pages, data := m.ram.Bytes(), c.Pages, c.Data
	n := 0
	from, run := 0, 0 // pages that follow one another are copied at once
	for i, w := range m.dirty.all {
		if w == 0 {
			continue
		}
		for z := m.dirty.zeros(i); z != 0; z &= z - 1 {
			c.Zero = append(c.Zero, uint32(i*64+bits.TrailingZeros64(z)))
		}
		for w &^= m.dirty.zeros(i); w != 0; {
			page := i*64 + bits.TrailingZeros64(w)
			w &= w - 1
			pages[n] = uint32(page)
			n++
			if page != from+run {
				copy(data, ram[from*memory.PageSize:(from+run)*memory.PageSize])
				data = data[run*memory.PageSize:]
				from, run = page, 0
			}
			run++
		}
	}
	copy(data, ram[from*memory.PageSize:(from+run)*memory.PageSize])
	return nil
}
