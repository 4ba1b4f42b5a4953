package daemon

import (
	"go.uber.org/zap"

	"github.com/pollux-ha/pollux/audit"
	"github.com/pollux-ha/pollux/cluster/config"
	"github.com/pollux-ha/pollux/cluster/link"
	"github.com/pollux-ha/pollux/fencing"
	"github.com/pollux-ha/pollux/fencing/watchdog"
)

// kernelDog is the kernel's watchdog, where the configuration names one.
type kernelDog struct {
	*watchdog.Dog
	path string
}

func (d *Daemon) newDog(c config.Fencing) kernelDog {
	if c.Watchdog == "" || !d.isHost() {
		return kernelDog{}
	}
	open := func() (watchdog.File, error) { return watchdog.Open(c.Watchdog) }
	return kernelDog{watchdog.New(open, c.WatchdogTimeout.D(), fencing.Boot, func(what string, err error) {
		d.log.Info("kernel watchdog", zap.String("device", c.Watchdog), zap.String("what", what), zap.Error(err))
		detail := map[string]any{"agent": c.Watchdog, "target": d.name, "what": what}
		if err != nil {
			detail["reason"] = err.Error()
		}
		d.record(audit.Fence, "", 0, "daemon", detail)
	}), c.Watchdog}
}

// WatchdogInfo is the kernel watchdog of this host.
type WatchdogInfo struct {
	Device   string `json:"device,omitempty"` // empty: the configuration names none
	Armed    bool   `json:"armed"`
	Identity string `json:"identity,omitempty"`
	Error    string `json:"error,omitempty"` // why it can't be armed
}

func (d kernelDog) info() WatchdogInfo {
	s := d.State()
	i := WatchdogInfo{Device: d.path, Armed: s.Armed, Identity: s.Identity}
	if s.Err != nil {
		i.Error = s.Err.Error()
	}
	return i
}

// turned tells the watchdog that the keeper's loop has gone round. A guest needs the watchdog while a twin counts on
// its primary here to be gone when it is silent: also when the guest was taken over and the process has not stopped.
func (k *keeper) turned() {
	if k.d.dog.Dog == nil {
		return
	}
	a, exists := k.d.node.Guest(k.guest)
	duty, word := false, any(nil)
	for _, p := range k.living() {
		p.mu.Lock()
		s := p.status
		p.mu.Unlock()
		acts := s != nil && s.Role == link.RolePrimary || exists && a.Runs() && a.Primary == p.party
		if acts && (!exists || len(a.Spec.Hosts) > 1) {
			duty, word = true, any(s)
		}
	}
	k.d.dog.Turn(k.guest, duty, word)
}

// off ends the keeper's part.
func (k *keeper) off() { k.d.dog.Turn(k.guest, false, nil) }
