package vmm

import (
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// monitor is a mutex with one condition, for threads that are tied to their goroutine. Waiting
// parks the thread itself, in a futex: waking it takes half as long as handing a goroutine over
// from another thread.
type monitor struct {
	sync.Mutex
	word    atomic.Uint32 // changes with every broadcast
	waiters int
}

const (
	futexPrivate = 128
	futexWait    = 0 | futexPrivate
	futexWake    = 1 | futexPrivate

	// spinRounds is about 20 µs, less than it takes to put a thread to sleep and wake it.
	spinRounds = 4000
)

// wait lets go of the mutex until the next broadcast; the caller checks its condition again. spin
// says that the broadcast is near and there are processors to spare.
func (m *monitor) wait(spin bool) {
	w := m.word.Load()
	m.waiters++
	m.Unlock()
	if spin {
		for i := 0; i < spinRounds && m.word.Load() == w; i++ {
		}
	}
	for m.word.Load() == w {
		// EAGAIN (the word has changed) and EINTR are seen in the loop's condition.
		_, _, _ = unix.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(&m.word)), futexWait, uintptr(w), 0, 0, 0)
	}
	m.Lock()
	m.waiters--
}

// broadcast wakes all that wait. The mutex is held.
func (m *monitor) broadcast() {
	m.word.Add(1)
	if m.waiters > 0 {
		_, _, _ = unix.Syscall(unix.SYS_FUTEX, uintptr(unsafe.Pointer(&m.word)), futexWake, 1<<30)
	}
}
