package dataplane

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/pollux-ha/pollux/audit"
	"github.com/pollux-ha/pollux/checkpoint"
	"github.com/pollux-ha/pollux/cluster/agent"
	"github.com/pollux-ha/pollux/cluster/link"
	"github.com/pollux-ha/pollux/cluster/pact"
	"github.com/pollux-ha/pollux/cluster/pki"
	"github.com/pollux-ha/pollux/fencing"
	"github.com/pollux-ha/pollux/lockstep"
	"github.com/pollux-ha/pollux/replica"
	"github.com/pollux-ha/pollux/replica/core"
	"github.com/pollux-ha/pollux/replica/mark"
	"github.com/pollux-ha/pollux/replica/store"
	"github.com/pollux-ha/pollux/vmm"
)

const (
	// statusEvery is how often the daemon hears of a process to which nothing happens.
	statusEvery = 250 * time.Millisecond
	// contactSilences is how many times the silence limit a primary that lives may take to open its
	// next stream, before its replica asks for the guest.
	contactSilences = 4
)

// process is a data-plane process.
type process struct {
	cfg      link.ProcessConfig
	log      *zap.Logger
	identity *pki.Identity // nil: no streams
	store    *store.Store
	config   vmm.Config
	machine  *vmm.Machine
	outlet   outlet
	console  *os.File
	agent    *agent.Socket // nil: none
	side     *replica.Side
	gate     *fencing.Gate
	events   *events
	control  *control
	streams  *streams
	stop     context.CancelFunc // ends the watchers
	watchers sync.WaitGroup
	exit     chan int
	stopped  chan struct{} // closed when the process ends
	ending   sync.Once
	life     life
	why      string // it ends; set before exit
	// confinement is how the process is shut in, for people.
	confinement string

	changed chan struct{} // capacity 1: there is something to tell the daemon

	mu       sync.Mutex
	applied  pact.Assignment // newest from the host's own log
	peer     link.Peer
	engine   *lockstep.Engine // nil: not a primary
	last     pact.Epoch       // from which the primary went on
	order    mark.State       // what an operator has accepted of the disks, for a cold start
	detail   string
	takeover takeover

	diskFailed bool // under the guest, and it is in the event log
}

// start makes the process: disks locked, machine ready, sockets open, no right to anything.
func start(ctx context.Context, cfg link.ProcessConfig, log *zap.Logger, openTap tapOpener) (_ *process, err error) {
	p := &process{cfg: cfg, log: log, exit: make(chan int, 1), changed: make(chan struct{}, 1), stopped: make(chan struct{})}
	var undo []func()
	defer func() {
		if err != nil {
			for i := len(undo) - 1; i >= 0; i-- {
				undo[i]()
			}
		}
	}()
	// Logged before done needs a log first of all.
	if p.events, err = newEvents(cfg, log, p.term); err != nil {
		return nil, err
	}
	undo = append(undo, p.events.Close)
	if err := p.openStore(ctx); err != nil {
		return nil, err
	}
	undo = append(undo, func() { p.store.Close() })
	if cfg.ConsoleLog != "" {
		if p.console, err = os.OpenFile(cfg.ConsoleLog, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600); err != nil {
			return nil, fmt.Errorf("open the console log: %w", err)
		}
		undo = append(undo, func() { p.console.Close() })
	}
	if err := p.makeMachine(openTap); err != nil {
		return nil, err
	}
	undo = append(undo, func() { p.machine.Close() })
	if cfg.PKI != "" {
		if p.identity, err = pki.Load(cfg.PKI); err != nil {
			return nil, err
		}
	}
	t := cfg.Timeouts
	p.side = replica.New(replica.Config{
		Guest: cfg.Guest, Self: cfg.Party, RAM: p.machine.RAM(), Disks: p.store, Handler: (*roles)(p),
		Boot:   bootDigest(p.config),
		Limits: checkpoint.DefaultLimits(), Check: p.machine.LoadState,
		Silence: t.Silence, Heartbeat: t.Heartbeat, AskAgain: t.AskAgain, FirstContact: contactSilences * t.Silence,
		Log: log.Named("replica"),
	})
	undo = append(undo, p.side.Close)
	p.gate = fencing.NewGate(t.Silence, fencing.Boot, func(gap time.Duration) {
		log.Warn("this process stood still", zap.Duration("for", gap))
		p.side.Step(core.Gap{})
	})
	if err := p.listen(&undo); err != nil {
		return nil, err
	}
	// All that has to be opened is open, and nobody has been heard yet.
	if p.confinement, err = shutIn(cfg, log); err != nil {
		return nil, err
	}
	watch, stop := context.WithCancel(context.Background())
	p.stop = stop
	p.watchers.Go(func() { p.gate.Watch(watch) })
	p.watchers.Go(func() { p.watchDisks(watch) })
	p.watchers.Go(func() { p.tell(watch) })
	p.control.run()
	if p.streams != nil {
		p.streams.run()
	}
	log.Info("ready", zap.Int("pid", os.Getpid()), zap.String("stream_address", p.streamAddress()))
	return p, nil
}

func (p *process) openStore(ctx context.Context) (err error) {
	c := store.Config{Guest: p.cfg.Guest, Journal: p.cfg.Journal, JournalBytes: p.cfg.JournalBytes}
	for i, d := range p.cfg.Spec.AllDisks() {
		c.Disks = append(c.Disks, store.DiskConfig{Path: p.cfg.Disks[i], Size: int64(d.SizeBytes), ReadOnly: d.ReadOnly})
	}
	ctx, cancel := context.WithTimeout(ctx, p.cfg.Timeouts.DiskLock)
	defer cancel()
	p.store, err = store.Open(ctx, c)
	return err
}

func (p *process) makeMachine(openTap tapOpener) (err error) {
	if p.config, err = machineConfig(p.cfg, p.store.Disks(), openTap); err != nil {
		return err
	}
	p.config.Output, p.config.OnPause = &p.outlet, p.outlet.pause
	p.config.Log = p.log.Named("vmm")
	p.config.OnPower = p.power
	p.config.OnMemoryFault = p.memoryFault
	p.config.OnFault = p.hostFault
	p.config.OnDiskError = p.diskError
	p.machine, err = vmm.New(p.config)
	return err
}

func (p *process) listen(undo *[]func()) error {
	l, err := listenControl(p.cfg.ControlSocket)
	if err != nil {
		return err
	}
	*undo = append(*undo, func() { l.Close() })
	if err := p.listenAgent(); err != nil {
		return err
	}
	if p.agent != nil {
		*undo = append(*undo, func() { p.agent.Close() })
	}
	p.control = &control{l: l, log: p.log.Named("link"), hello: p.hello, take: p.take, up: p.daemonUp}
	if p.cfg.StreamListen == "" {
		return nil
	}
	if p.streams, err = listenStreams(p.cfg.StreamListen, p.identity, p.side, p.log.Named("stream")); err != nil {
		return err
	}
	*undo = append(*undo, func() { p.streams.close() })
	return nil
}

func (p *process) streamAddress() string {
	if p.streams == nil {
		return ""
	}
	return p.streams.l.Addr().String()
}

// wait returns the exit code once the process has nothing to do any more.
func (p *process) wait(ctx context.Context) int {
	select {
	case code := <-p.exit:
		return code
	case <-ctx.Done():
	}
	// Nobody ends a data-plane process by SIGTERM as a matter of routine. Its guest stops here, its
	// stream closes, and a replica that is entitled takes over.
	p.events.Note(audit.Fault, map[string]any{"reason": "SIGTERM"})
	p.side.Step(core.Failed{Err: "terminated by a signal"})
	return <-p.exit
}

// end stops everything and lets wait return.
func (p *process) end(code int, why string) {
	p.ending.Do(func() {
		p.log.Info("ending", zap.String("why", why))
		p.why = why
		engine := p.currentEngine()
		if err := p.machine.Stop(); err != nil {
			p.log.Error("stop the machine", zap.Error(err))
		}
		if engine != nil {
			engine.Close()
		}
		p.outlet.engine.Store(nil)
		if err := p.store.Close(); err != nil {
			p.log.Error("close the disks", zap.Error(err))
		}
		p.announceStatus()
		go p.finish(code)
	})
}

// finish closes what the Side's own goroutines may still be using.
func (p *process) finish(code int) {
	close(p.stopped)
	p.stop()
	if p.streams != nil {
		p.streams.close()
	}
	p.side.Close()
	p.watchers.Wait()
	p.control.close()
	if p.agent != nil {
		p.agent.Close()
	}
	p.events.Close()
	if err := p.machine.Close(); err != nil {
		p.log.Error("free the machine", zap.Error(err))
	}
	if p.console != nil {
		p.console.Close()
	}
	_ = os.Remove(p.cfg.ControlSocket)
	p.exit <- code
}

func (p *process) term() pact.Term {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.applied.Term
}

func (p *process) currentEngine() *lockstep.Engine {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.engine
}

// watchDisks ends the process when its disks can't be written: nothing may be acknowledged or taken
// over here any more.
func (p *process) watchDisks(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-p.store.Failed():
		err := p.store.Err()
		p.events.Note(audit.Fault, map[string]any{"what": "disk", "reason": err.Error()})
		if e := p.currentEngine(); e != nil {
			e.Fault("disk: " + err.Error())
			return
		}
		p.side.Step(core.Failed{Err: "disk: " + err.Error()})
	}
}

var errNotExchanged = errors.New("the primary that this process was has kept no final epoch")
