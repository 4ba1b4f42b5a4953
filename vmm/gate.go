package vmm

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"go.uber.org/zap"

	"github.com/pollux-ha/pollux/vmm/platform"
)

// gate is where the vCPU threads meet when they are to be out of the guest. All of them arrive; all
// save their state, which then holds every interrupt that one of them sent to another; the last one
// runs OnPause; all leave, unless something holds them. Its mutex is taken after the device lock,
// never before.
type gate struct {
	monitor
	arrived  int
	releases uint64 // how often all have left

	requested bool      // a pause is asked for
	since     time.Time // of the request
	out       time.Time // when the last vCPU arrived
	saving    int       // vCPUs that are saving their state for it
	saved     int       // vCPUs that have
	round     uint64    // of pauses, from 1 on
	pausing   bool      // OnPause runs
	pauser    int       // on this thread

	busy    bool   // whoever holds the machine exclusively is at work
	claimed bool   // somebody waits for that
	runs    uint64 // how often Start was called

	started bool // by Start, until Stop
	staying bool // by an OnPause that said so, until Resume
	closing bool
	power   platform.PowerEvent
	told    bool // OnPower has been called
	broken  bool // OnFault has been called
}

// held says whether the vCPUs have to wait.
func (g *gate) held() bool { return !g.started || g.staying || g.power != 0 || g.broken }

// reserved says that no pause may begin.
func (g *gate) reserved() bool { return g.busy || g.claimed && !g.staying }

// exclusive runs fn while no vCPU runs, none saves its state and no pause is under way or begins. The vCPUs
// have been called out, and something holds them. It waits for the end of a stay. run is the gate's runs of the
// guest that is meant: once that one has been stopped fn is not called any more.
func (m *Machine) exclusive(run uint64, fn func() error) error {
	g := &m.gate
	g.Lock()
	for {
		if g.closing || !g.started || g.runs != run {
			g.claimed = false
			g.broadcast()
			g.Unlock()
			return ErrStopped
		}
		if g.arrived == len(m.vcpus) && !g.pausing && g.saving == 0 && !g.staying {
			break
		}
		g.claimed = true
		g.wait(false)
	}
	// What was saved for a pause that has not come yet is saved again.
	g.busy, g.claimed, g.saved = true, false, 0
	g.round++
	g.Unlock()
	err := fn()
	g.Lock()
	g.busy = false
	g.broadcast()
	g.Unlock()
	return err
}

// RequestPause asks for a pause and returns at once. All vCPUs leave the guest; the last one to do
// so calls OnPause. Requests that come before that are one. While the vCPUs are held anyway, by a
// stay or after a power event, a request makes another pause with no run of the guest between.
// Before Start it waits for Start; Stop forgets it.
func (m *Machine) RequestPause() {
	g := &m.gate
	g.Lock()
	if !g.requested {
		g.requested, g.since = true, time.Now()
		m.callOut()
	}
	g.Unlock()
}

// Resume ends a stay that an OnPause began by returning false: the devices and the vCPUs go on.
func (m *Machine) Resume() {
	m.Lock()
	defer m.Unlock()
	g := &m.gate
	g.Lock()
	staying := g.staying && g.started
	g.Unlock()
	if !staying {
		return
	}
	m.activateOrCrash()
	g.Lock()
	g.staying = false
	g.broadcast()
	g.Unlock()
}

// callOut makes every vCPU thread come to the gate. The gate's mutex is held.
func (m *Machine) callOut() {
	m.attention.Store(true)
	for _, v := range m.vcpus {
		v.kick()
	}
	m.gate.broadcast()
}

// attend takes a vCPU's thread through the gate. It returns when the vCPU may run, or false when
// the thread is to end.
func (m *Machine) attend(v *vcpu) bool {
	v.complete()
	g := &m.gate
	g.Lock()
	defer g.Unlock()
	release := g.releases
	if g.arrived++; g.arrived == len(m.vcpus) {
		g.out = time.Now()
		g.broadcast()
	}
	for {
		switch {
		case g.releases != release:
			v.kvm.SetImmediateExit(false)
			return true
		case g.closing:
			return false
		case g.arrived < len(m.vcpus), g.pausing, g.reserved():
			g.wait(m.spin && g.requested && !g.reserved())
		case g.requested && g.started && v.savedRound <= g.round:
			round := g.round
			g.saving++
			g.Unlock()
			if m.cfg.OnPause != nil {
				v.save()
			}
			g.Lock()
			if g.saving--; g.claimed {
				g.broadcast()
			}
			if round != g.round { // stopped meanwhile
				g.broadcast()
				continue
			}
			v.savedRound = round + 1
			if g.saved++; g.saved == len(m.vcpus) {
				m.pauseHere()
			}
		case g.requested && g.started: // others are still saving
			g.wait(m.spin)
		case g.power != 0 && g.started && !g.told:
			g.told = true
			if m.cfg.OnPower != nil {
				go m.cfg.OnPower(g.power)
			}
		case g.held():
			g.wait(false)
		default:
			g.arrived = 0
			g.releases++
			m.attention.Store(false)
			g.broadcast()
		}
	}
}

// pauseHere runs a pause on this thread. The gate's mutex is held, but not meanwhile.
func (m *Machine) pauseHere() {
	g := &m.gate
	g.requested, g.pausing, g.pauser = false, true, unix.Gettid()
	if g.out.Before(g.since) { // they were here already
		g.out = g.since
	}
	m.pause.timings = CaptureTimings{Stop: g.out.Sub(g.since), State: time.Since(g.out)}
	wasStaying := g.staying
	g.Unlock()

	goOn := true
	m.Lock()
	if m.cfg.OnPause != nil {
		m.pause.valid.Store(true)
		goOn = m.cfg.OnPause(&m.pause)
		m.pause.valid.Store(false)
	}
	switch {
	case !goOn && !wasStaying:
		m.suspend()
		g.Lock()
		if g.started { // not stopped by OnPause itself
			m.park()
		}
		g.Unlock()
	case goOn && wasStaying:
		m.activateOrCrash()
	}
	g.Lock()
	m.Unlock()
	g.staying, g.pausing, g.pauser, g.saved = !goOn, false, 0, 0
	g.round++
	g.broadcast()
}

// activateOrCrash lets the devices go on. The device lock is held.
func (m *Machine) activateOrCrash() {
	if err := m.activate(); err != nil {
		m.hostFault(fmt.Errorf("a device does not go on: %w", err))
	}
}

// hostFault stops the guest for good: it is this host that can't go on with it.
func (m *Machine) hostFault(err error) {
	m.log.Error("this host can't run the guest any more", zap.Error(err))
	if m.cfg.OnFault == nil {
		m.PowerEvent(platform.Crashed)
		return
	}
	g := &m.gate
	g.Lock()
	defer g.Unlock()
	if !g.broken {
		g.broken = true
		m.callOut()
		go m.cfg.OnFault(err)
	}
}
