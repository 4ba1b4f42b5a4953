package daemon

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/pollux-ha/pollux/cluster/gossip"
	"github.com/pollux-ha/pollux/cluster/link"
	"github.com/pollux-ha/pollux/cluster/pact"
	"github.com/pollux-ha/pollux/cluster/pki"
	"github.com/pollux-ha/pollux/cluster/wire"
)

// ProcessInfo is a data-plane process of some host.
type ProcessInfo struct {
	Guest   string       `json:"guest"`
	Party   pact.Party   `json:"party"`
	PID     int          `json:"pid"`
	Address string       `json:"address"` // of its checkpoint stream
	Status  *link.Status `json:"status,omitempty"`
}

// HostInfo is what a daemon tells the others of itself.
type HostInfo struct {
	Name      string            `json:"name"`
	Role      pki.Role          `json:"role"`
	Version   string            `json:"version"`
	Processes []ProcessInfo     `json:"processes"`
	Notes     map[string]string `json:"notes,omitempty"`   // by guest: why it is not where it should be
	Leaving   bool              `json:"leaving,omitempty"` // it gives its guests away, and ends
	// Certificate is its own.
	Certificate *Certificate `json:"certificate,omitempty"`
}

const (
	pollSolo      = 250 * time.Millisecond
	pollProtected = 2 * time.Second
	pollTimeout   = 2 * time.Second
)

// peers knows the processes of other hosts, as far as this host's primaries and those that may become
// primaries need them.
type peers struct {
	d    *Daemon
	wake chan struct{}

	mu    sync.Mutex
	hosts map[string]HostInfo
}

func newPeers(d *Daemon) *peers {
	return &peers{d: d, wake: make(chan struct{}, 1), hosts: map[string]HostInfo{}}
}

// twin is where the would-be or the named replica of a guest listens; zero: nowhere.
func (p *peers) twin(a pact.Assignment) link.Peer {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, host := range a.Spec.Hosts {
		if host == a.Primary.Host || a.Mode == pact.Solo && p.d.noReplica(a, host) != "" {
			continue
		}
		for _, o := range p.hosts[host].Processes {
			switch {
			case o.Guest != a.Guest || o.Address == "":
			case a.Mode == pact.Protected && o.Party != a.Replica:
			case a.Mode == pact.Solo && o.Status != nil && o.Status.Role != link.RoleWaiting && o.Status.Role != link.RoleReplica:
			default:
				return link.Peer{Party: o.Party, Address: o.Address}
			}
		}
	}
	return link.Peer{}
}

// needed lists the hosts to ask, and whether that is urgent.
func (p *peers) needed() (hosts []string, urgent bool) {
	for _, a := range p.d.node.Guests() {
		// A replica that becomes the primary by a switchover calls its twin at once.
		if !a.Runs() || a.Primary.Host != p.d.name && (a.Mode != pact.Protected || a.Replica.Host != p.d.name) {
			continue
		}
		for _, h := range a.Spec.Hosts {
			if h != p.d.name && !slices.Contains(hosts, h) {
				hosts = append(hosts, h)
			}
			urgent = urgent || h != p.d.name && a.Mode == pact.Solo
		}
	}
	return hosts, urgent
}

func (p *peers) run(ctx context.Context) {
	for {
		hosts, urgent := p.needed()
		var wg sync.WaitGroup
		for _, h := range hosts {
			wg.Go(func() {
				info, err := p.d.askHost(ctx, h, pollTimeout)
				if err != nil {
					return // the last that was known stands; a dial tells whether it is so
				}
				p.mu.Lock()
				p.hosts[h] = info
				p.mu.Unlock()
			})
		}
		wg.Wait()
		every := pollProtected
		if urgent {
			every = pollSolo
		}
		if len(hosts) > 0 {
			p.d.nudgeAll()
		}
		select {
		case <-ctx.Done():
			return
		case <-p.wake:
			pause(ctx, 20*time.Millisecond) // several changes often come at once
		case <-time.After(every):
		}
	}
}

// askHost asks another daemon what runs there.
func (d *Daemon) askHost(ctx context.Context, name string, timeout time.Duration) (HostInfo, error) {
	m, ok := d.node.Member(name)
	if !ok {
		return HostInfo{}, errNoMember(name)
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var info HostInfo
	err := d.client.Call(ctx, wire.At(m.Name, m.ClusterAddress), "host", struct{}{}, &info)
	return info, err
}

// Info is what this daemon tells of itself.
func (d *Daemon) Info() HostInfo {
	info := HostInfo{Name: d.name, Role: d.role, Version: d.version, Notes: map[string]string{}, Leaving: d.leaving.Load()}
	c := d.Certificate()
	info.Certificate = &c
	for _, k := range d.allKeepers() {
		if n := k.getNote(); n != "" {
			info.Notes[k.guest] = n
		}
		for _, p := range k.living() {
			h, s, said := p.said()
			i := ProcessInfo{Guest: k.guest, Party: p.party, PID: p.proc.Pid, Address: h.StreamAddress}
			if said {
				i.Status = &s
			}
			info.Processes = append(info.Processes, i)
		}
	}
	slices.SortFunc(info.Processes, func(a, b ProcessInfo) int {
		return cmp.Or(cmp.Compare(a.Guest, b.Guest), cmp.Compare(a.Party.Incarnation, b.Party.Incarnation))
	})
	return info
}

// Ask asks all members, this one included, what runs there. Those that did not answer are missing.
func (d *Daemon) Ask(ctx context.Context, timeout time.Duration) map[string]HostInfo {
	var mu sync.Mutex
	var wg sync.WaitGroup
	all := map[string]HostInfo{d.name: d.Info()}
	for _, m := range d.node.Members() {
		if m.Name == d.name {
			continue
		}
		wg.Go(func() {
			info, err := d.askHost(ctx, m.Name, timeout)
			if err != nil {
				return
			}
			mu.Lock()
			all[m.Name] = info
			mu.Unlock()
		})
	}
	wg.Wait()
	return all
}

// chosenForReplica says whether, of a guest's hosts, this one is where a replica is wanted: the first in
// the operator's order that is there, can run the guest and is not the primary's.
func (d *Daemon) chosenForReplica(a pact.Assignment) bool {
	for _, h := range a.Spec.Hosts {
		switch {
		case h == a.Primary.Host, d.noReplica(a, h) != "":
		case h == d.name:
			return true
		case d.gossip.State(h) == gossip.Alive:
			return false
		}
	}
	return false
}

// order is an operator's order to another host's daemon.
type order struct {
	Kind         string       `json:"kind"` // "start", "stop", "switchover", "balloon", "reset", "dump"
	Guest        string       `json:"guest"`
	Loss         string       `json:"loss,omitempty"`
	Inconsistent bool         `json:"inconsistent,omitempty"`
	Force        bool         `json:"force,omitempty"`
	AfterSeconds float64      `json:"after_seconds,omitempty"`
	Operator     string       `json:"operator,omitempty"`
	MemoryBytes  uint64       `json:"memory_bytes,omitempty"` // of "balloon"
	Path         string       `json:"path,omitempty"`         // of "dump"
	Damage       *link.Damage `json:"damage,omitempty"`       // of "damage"
	// Index is what the host's own log must have come to before the order makes sense.
	Index uint64 `json:"index,omitempty"`
}

// tellHost gives an order to the host that has to carry it out.
func (d *Daemon) tellHost(ctx context.Context, host string, o order) error {
	if host == d.name {
		return d.obey(ctx, o)
	}
	m, ok := d.node.Member(host)
	if !ok {
		return errNoMember(host)
	}
	var nothing struct{}
	return d.client.Call(ctx, wire.At(m.Name, m.ClusterAddress), "order", o, &nothing)
}

func (d *Daemon) obey(ctx context.Context, o order) error {
	if !d.isHost() {
		return errNoGuests
	}
	if err := d.node.WaitApplied(ctx, o.Index); err != nil {
		return fmt.Errorf("%w: this host has not caught up: %w", ErrUnreachable, err)
	}
	k := d.keeper(o.Guest)
	switch o.Kind {
	case "start":
		k.tell(orderStart{startOrder{loss: o.Loss, operator: o.Operator, inconsistent: o.Inconsistent}})
	case "stop":
		k.tell(orderStop{force: o.Force, after: time.Duration(o.AfterSeconds * float64(time.Second)), operator: o.Operator})
	case "switchover":
		answer := make(chan error, 1)
		k.tell(orderSwitchover{answer})
		return k.await(ctx, answer)
	case "balloon":
		answer := make(chan error, 1)
		k.tell(orderPrimary{link.Order{Kind: link.OrderBalloon, MemoryBytes: o.MemoryBytes}, answer})
		return k.await(ctx, answer)
	case link.OrderReset, link.OrderDump:
		answer := make(chan error, 1)
		k.tell(orderPrimary{link.Order{Kind: o.Kind, Path: o.Path}, answer})
		return k.await(ctx, answer)
	case link.OrderDamage:
		if o.Damage == nil {
			return errOrder(o.Kind)
		}
		answer := make(chan error, 1)
		k.tell(orderCopy{link.Order{Kind: o.Kind, Damage: o.Damage}, answer})
		return k.await(ctx, answer)
	default:
		return errOrder(o.Kind)
	}
	return nil
}

func (d *Daemon) handlers() map[string]wire.Handler {
	return map[string]wire.Handler{
		"host": func(context.Context, pki.Peer, []byte) (any, error) { return d.Info(), nil },
		"order": func(ctx context.Context, _ pki.Peer, body []byte) (any, error) {
			var o order
			if err := json.Unmarshal(body, &o); err != nil {
				return nil, err
			}
			return struct{}{}, d.obey(ctx, o)
		},
		"agent": d.askedAgent,
		"renew": func(ctx context.Context, who pki.Peer, body []byte) (any, error) {
			var q renewRequest
			if err := json.Unmarshal(body, &q); err != nil {
				return nil, err
			}
			der, err := d.issue(ctx, who, q.CSR)
			return renewAnswer{Certificate: der}, err
		},
	}
}
