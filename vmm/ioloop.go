package vmm

import (
	"errors"
	"fmt"
	"runtime"
	"sync"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// ioLoop is the thread that waits for the guest's notifications and for taps. Everything in it is
// guarded by the device lock. It goes on while the devices are suspended: a notification means nothing
// to them then, and their activation looks at every queue.
type ioLoop struct {
	lock       sync.Locker
	epoll      int
	wake       int // an eventfd
	registered map[int32]*registration
	last       int32
	closing    bool
	running    bool
	done       chan struct{}
}

// registration is a file that the loop waits for.
type registration struct {
	loop   *ioLoop
	token  int32
	fd     int
	fn     func()
	notify bool // an eventfd, to be read before fn runs
	undo   func() error
	closed bool
}

func newIOLoop(lock sync.Locker) (*ioLoop, error) {
	l := &ioLoop{lock: lock, registered: make(map[int32]*registration), done: make(chan struct{})}
	var err error
	if l.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, fmt.Errorf("make an epoll instance: %w", err)
	}
	if l.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return nil, errors.Join(fmt.Errorf("make an eventfd: %w", err), unix.Close(l.epoll))
	}
	if _, err := l.add(l.wake, func() {}); err != nil {
		return nil, errors.Join(err, unix.Close(l.epoll), unix.Close(l.wake))
	}
	return l, nil
}

func (l *ioLoop) add(fd int, fn func()) (*registration, error) {
	l.last++
	for l.registered[l.last] != nil { // they wrap around, in a guest that lives for days
		l.last++
	}
	r := &registration{loop: l, token: l.last, fd: fd, fn: fn}
	ev := unix.EpollEvent{Events: unix.EPOLLIN, Fd: r.token}
	if err := unix.EpollCtl(l.epoll, unix.EPOLL_CTL_ADD, fd, &ev); err != nil {
		return nil, fmt.Errorf("wait for file %d: %w", fd, err)
	}
	l.registered[r.token] = r
	return r, nil
}

// Close implements platform.Registration. Callbacks run under the device lock, which the caller
// holds, so none of this one can be running.
func (r *registration) Close() error {
	if r.closed {
		return nil
	}
	r.closed = true
	delete(r.loop.registered, r.token)
	var err error
	if e := unix.EpollCtl(r.loop.epoll, unix.EPOLL_CTL_DEL, r.fd, nil); e != nil {
		err = fmt.Errorf("wait no more for file %d: %w", r.fd, e)
	}
	if r.undo != nil {
		err = errors.Join(err, r.undo())
	}
	return err
}

func (l *ioLoop) start(log *zap.Logger) {
	l.running = true
	go l.run(log)
}

func (l *ioLoop) run(log *zap.Logger) {
	defer close(l.done)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var events [32]unix.EpollEvent
	for {
		n, err := unix.EpollWait(l.epoll, events[:], -1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			log.Error("the I/O thread can't wait any more", zap.Error(err))
			return
		}
		// The lock is given back between two callbacks, so that a pause waits for one at most.
		for i := range max(n, 0) {
			if !l.serve(events[i].Fd) {
				return
			}
		}
	}
}

func (l *ioLoop) serve(token int32) bool {
	l.lock.Lock()
	defer l.lock.Unlock()
	if l.closing {
		return false
	}
	r := l.registered[token]
	if r == nil {
		return true
	}
	if r.notify {
		var count [8]byte
		if _, err := unix.Read(r.fd, count[:]); err != nil {
			return true // served already
		}
	}
	r.fn()
	return true
}

// stop ends the thread and waits for it. The device lock is not held.
func (l *ioLoop) stop() {
	if !l.running {
		return
	}
	l.lock.Lock()
	l.closing = true
	l.lock.Unlock()
	_, _ = unix.Write(l.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0}) // it can only be full, which wakes too
	<-l.done
}

func (l *ioLoop) free() error { return errors.Join(unix.Close(l.epoll), unix.Close(l.wake)) }
