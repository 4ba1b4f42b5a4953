package vmm

import "github.com/pollux-ha/pollux/vmm/virtio"

// SetBalloon asks the guest to give so many bytes of its memory back; 0: none. How far it has come is in
// Balloon. The wish is part of the machine's state.
func (m *Machine) SetBalloon(bytes uint64) error {
	m.Lock()
	defer m.Unlock()
	return m.devices.balloon.SetTarget(bytes)
}

// Balloon tells how much memory the guest has given back, and how it is off with the rest.
func (m *Machine) Balloon() virtio.BalloonStatus {
	m.Lock()
	defer m.Unlock()
	return m.devices.balloon.Status()
}

// Hints asks the guest for its free pages from this pause on. fn hears of each run of them by page index,
// with the device lock held. Such a page need not be mirrored, as long as it has not been written since
// this pause: then Discard may make it zero. Nil ends that.
func (p *Pause) Hints(fn func(page, pages int)) {
	if p.valid.Load() {
		p.m.devices.balloon.Hints(fn)
	}
}

// Discard makes pages zero, here and with the next capture. No vCPU runs, so whoever knows that a free
// page has not been written knows it still when it is done.
func (p *Pause) Discard(page, pages int) error {
	if !p.valid.Load() {
		return errNoPause
	}
	return p.m.ram.DiscardPages(page, pages)
}

// EndHints ends what Pause.Hints has begun.
func (m *Machine) EndHints() {
	m.Lock()
	defer m.Unlock()
	m.devices.balloon.Hints(nil)
}
