package watchdog

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
)

// File is an open watchdog device.
type File interface {
	io.WriteCloser
	// Info is what the driver says of itself.
	Info() (Info, error)
	// SetTimeout asks for a timeout, and tells which one it has become. In seconds.
	SetTimeout(seconds int) (int, error)
}

// Info is a driver.
type Info struct {
	Identity string // "Software Watchdog"
	// MagicClose: it can be disarmed.
	MagicClose bool
	// Timeout: its timeout can be set.
	Timeout bool
}

const (
	feedsPerTimeout = 4
	reopenAfter     = 30 * time.Second
)

// Dog is the watchdog of this host. It may be nil: then there is none.
type Dog struct {
	open    func() (File, error)
	timeout time.Duration
	clock   func() time.Duration
	tell    func(what string, err error)

	mu     sync.Mutex
	closed bool
	file   File // nil: not armed
	info   Info
	every  time.Duration // between two feeds at least
	fed    time.Duration
	failed time.Duration // when it could not be armed, where err says why
	err    error
	rota   map[string]*watch
}

// watch is one on the rota.
type watch struct {
	turned, alive bool // since the last feed
	word          any  // the last sign of life
}

// New makes a watchdog that is not armed. open opens the device; tell, which must not block, hears of everything
// that people should know.
func New(open func() (File, error), timeout time.Duration, clock func() time.Duration, tell func(what string, err error)) *Dog {
	return &Dog{open: open, timeout: timeout, clock: clock, tell: tell, rota: map[string]*watch{}}
}

// Turn is called by the decision loop of each guest, every time it has gone round. duty says that the guest needs
// the watchdog; word is the newest sign of life from its data plane, any value that differs from the one before.
func (d *Dog) Turn(guest string, duty bool, word any) {
	if d == nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return
	}
	if !duty {
		delete(d.rota, guest)
		if len(d.rota) == 0 {
			d.disarm()
		}
		return
	}
	w := d.rota[guest]
	if w == nil {
		w = &watch{}
		d.rota[guest] = w
	}
	w.turned = true
	if word != w.word {
		w.alive, w.word = true, word
	}
	if d.arm() {
		d.feed()
	}
}

// arm opens the device; mu is held.
func (d *Dog) arm() bool {
	now := d.clock()
	if d.file != nil {
		return true
	}
	if d.err != nil && now-d.failed < reopenAfter {
		return false
	}
	f, err := d.open()
	if err != nil {
		d.fail(now, fmt.Errorf("open the watchdog device: %w", err))
		return false
	}
	// From here on it runs.
	d.file, d.fed, d.err, d.every = f, now, nil, d.timeout/feedsPerTimeout
	if d.info, err = f.Info(); err != nil {
		d.info = Info{Identity: "unknown"}
	}
	seconds := int((d.timeout + time.Second - 1) / time.Second)
	got, err := f.SetTimeout(seconds)
	if err != nil || got <= 0 {
		// How long it waits is not known: it is fed at every turn.
		d.every = 0
		d.tell("the watchdog's timeout can't be set; it has its own", err)
	} else {
		d.every = time.Duration(got) * time.Second / feedsPerTimeout
	}
	for _, w := range d.rota {
		w.turned, w.alive = false, false
	}
	d.tell(fmt.Sprintf("watchdog armed: %s, %d s", d.info.Identity, got), nil)
	return true
}

func (d *Dog) fail(now time.Duration, err error) {
	d.failed = now
	if d.err == nil || d.err.Error() != err.Error() {
		d.tell("the watchdog can't be used: this host is not reset when it hangs", err)
	}
	d.err = err
}

// feed writes where everybody has shown up; mu is held.
func (d *Dog) feed() {
	now := d.clock()
	if now-d.fed < d.every {
		return
	}
	alive := false
	for _, w := range d.rota {
		if !w.turned {
			return
		}
		alive = alive || w.alive
	}
	if !alive {
		return
	}
	if _, err := d.file.Write([]byte{'\n'}); err != nil {
		d.tell("feed the watchdog", err) // it is tried again at the next turn; should it go on, the host is reset
		return
	}
	d.fed = now
	for _, w := range d.rota {
		w.turned, w.alive = false, false
	}
}

// disarm is the magic close; mu is held.
func (d *Dog) disarm() {
	if d.file == nil {
		return
	}
	_, err := d.file.Write([]byte{'V'})
	err = errors.Join(err, d.file.Close())
	d.file = nil
	switch {
	case err != nil:
		d.tell("the watchdog could not be disarmed: the host is reset unless somebody feeds it", err)
	case !d.info.MagicClose:
		d.tell("watchdog closed; its driver does not say that this disarms it", nil)
	default:
		d.tell("watchdog disarmed", nil)
	}
}

// Close disarms it for good.
func (d *Dog) Close() {
	if d == nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.disarm()
	d.closed = true
}

// State is a watchdog's, for people.
type State struct {
	Armed    bool
	Identity string
	Err      error // why it is not armed though it should be
}

// State tells how it is.
func (d *Dog) State() State {
	if d == nil {
		return State{}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return State{Armed: d.file != nil, Identity: d.info.Identity, Err: d.err}
}
