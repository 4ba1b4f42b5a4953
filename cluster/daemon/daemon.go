// Package daemon is the control plane of one machine at work: it joins Raft and gossip, starts and
// watches the data-plane processes of its guests, and carries out what operators want.
//
// Invariants. A daemon decides nothing about who runs a guest: it proposes, and passes on to processes
// what its own log has applied. It says that a process has ended only when the kernel says so. A guest
// has at most one process on a host. Its own end takes no guest down: processes have sessions of their
// own, and are found again. Whatever was ordered by an operator is in the event log before it is done.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/pollux-ha/pollux/audit"
	"github.com/pollux-ha/pollux/cluster/config"
	"github.com/pollux-ha/pollux/cluster/consensus"
	"github.com/pollux-ha/pollux/cluster/gossip"
	"github.com/pollux-ha/pollux/cluster/pact"
	"github.com/pollux-ha/pollux/cluster/pki"
	"github.com/pollux-ha/pollux/cluster/wire"
	"github.com/pollux-ha/pollux/fencing"
)

// Daemon is a running one.
type Daemon struct {
	cfg     *config.Config
	name    string
	role    pki.Role
	version string
	log     *zap.Logger

	audit   *audit.Log
	id      *pki.Identity
	cluster *pki.Cluster
	issuer  *pki.Issuer // nil: the CA's key is elsewhere
	port    *wire.Port
	server  *wire.Server
	client  *wire.Client
	node    *consensus.Node
	gossip  *gossip.List
	peers   *peers

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	up     atomic.Bool // all the parts are there

	confiner confiner

	models bool   // guests have CPU models
	cpu    string // what this host's CPU can give to guests; "": it could not be found out

	mu      sync.Mutex
	keepers map[string]*keeper
	fits    map[fit]string

	renewing sync.Mutex    // one renewal of the certificate at a time
	roster   chan struct{} // the members, or their certificates, have changed

	forwarding sync.Mutex // what is told to processes is in the log's order
	records    chan audit.Event

	history *history
	fencer  *fencer
	reports fenceReports
	dog     kernelDog
	leaving atomic.Bool // it gives its guests away, and ends
}

// Open starts the daemon. role must be that of the machine's certificate. cpu, which may be nil, finds out what
// guests can run here.
func Open(cfg *config.Config, role pki.Role, version string, cpu HostCPU, log *zap.Logger) (*Daemon, error) {
	d := &Daemon{
		cfg: cfg, name: cfg.Name, role: role, version: version, log: log,
		confiner: confiner{cfg: cfg}, keepers: map[string]*keeper{}, roster: make(chan struct{}, 1), fits: map[fit]string{}, records: make(chan audit.Event, 1024),
	}
	d.peers = newPeers(d)
	d.history = newHistory(cfg.Flapping, fencing.Boot)
	d.dog = d.newDog(cfg.Fencing)
	d.ctx, d.cancel = context.WithCancel(context.Background())
	d.fencer = newFencer(d, cfg.Fencing.When, cfg.Fencing.Patience.D(), d.newDevices(), d.begin)
	if err := d.open(cpu); err != nil {
		d.cancel()
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

func (d *Daemon) open(cpu HostCPU) error {
	if err := d.identify(); err != nil {
		return err
	}
	var err error
	limits := audit.Limits{SegmentBytes: d.cfg.Events.SegmentBytes, KeepSegments: d.cfg.Events.KeepSegments}
	if d.audit, err = audit.OpenLimited(d.cfg.EventLog(), d.name, limits); err != nil {
		return err
	}
	if err := d.audit.Append(d.ctx, audit.Event{Kind: audit.DaemonStart, Actor: "daemon", Detail: map[string]any{"version": d.version, "role": string(d.role)}}); err != nil {
		return fmt.Errorf("the event log can't be written: %w", err)
	}
	d.wg.Go(d.writeRecords)
	d.probeCPU(cpu)

	var node atomic.Pointer[consensus.Node]
	allowed := func(p pki.Peer) error {
		if n := node.Load(); n != nil {
			return n.Allowed(p)
		}
		return nil
	}
	if d.port, err = wire.Listen(d.cfg.ClusterAddress, d.id, d.issuer, allowed, d.log.Named("port")); err != nil {
		return err
	}
	d.client = wire.NewClient(d.id)
	if d.isHost() {
		// Before anybody is told that a process has ended, those that live must be known.
		if err := d.adopt(); err != nil {
			return err
		}
	}
	d.gossip, err = gossip.Open(gossip.Options{
		Name: d.name, Address: d.cfg.GossipAddress, Key: d.cluster.GossipKey, Log: d.log, Changed: d.memberChanged,
		Meta: gossip.Meta{Role: string(d.role), Version: d.version, ClusterAddress: d.cfg.ClusterAddress, Cluster: d.cluster.ID},
	})
	if err != nil {
		return err
	}
	d.node, err = consensus.Open(consensus.Options{
		Identity: d.id, Port: d.port, Client: d.client, Dir: d.cfg.RaftDir(), Timeouts: d.cfg.Timeouts,
		Self: consensus.Member{
			Name: d.name, Role: d.role, ClusterAddress: d.cfg.ClusterAddress, GossipAddress: d.cfg.GossipAddress,
			ReplicationAddress: d.cfg.ReplicationAddress, Version: d.version, CPU: d.cpu,
		},
		Found: d.cluster.Founder, Seeds: d.cluster.Seeds, Log: d.log.Named("consensus"),
		Founded: func() error {
			d.cluster.Founder = false
			return d.cluster.Store(d.cfg.PKIDir())
		},
		Changed: d.changed,
		Joined: func() {
			select {
			case d.roster <- struct{}{}:
			default:
			}
		},
	})
	if err != nil {
		return err
	}
	node.Store(d.node)
	h := d.node.Handlers()
	for name, f := range d.handlers() {
		h[name] = f
	}
	d.server = d.port.Serve(h)
	d.up.Store(true)
	d.refresh()
	d.wg.Go(d.findMembers)
	d.wg.Go(func() { d.keepRevoked(d.ctx) })
	d.wg.Go(func() { d.keepCertificate(d.ctx) })
	d.wg.Go(d.tellOut)
	d.wg.Go(d.releaseLeftovers)
	if d.isHost() {
		d.wg.Go(func() { d.peers.run(d.ctx) })
		d.wg.Go(func() { d.confiner.keepCertificates(d.ctx, d.log) })
	}
	d.log.Info("daemon is up", zap.String("name", d.name), zap.String("role", string(d.role)), zap.String("cluster_address", d.cfg.ClusterAddress))
	return nil
}

func (d *Daemon) identify() error {
	var err error
	if d.cluster, err = pki.LoadCluster(d.cfg.PKIDir()); err != nil {
		return err
	}
	if d.id, err = pki.Load(d.cfg.PKIDir()); err != nil {
		return err
	}
	if d.id.Name() != d.name {
		return fmt.Errorf("the configuration calls this machine %q, its certificate %q", d.name, d.id.Name())
	}
	if d.id.Role() != d.role {
		return fmt.Errorf("this machine's certificate is a %s's: run `pollux %s`", d.id.Role(), d.id.Role())
	}
	if d.isHost() && d.cfg.ReplicationAddress == "" {
		return errors.New("replication_address is not set: a host needs it for checkpoint streams")
	}
	d.issuer, err = pki.NewIssuer(d.cfg.PKIDir(), d.id, d.cluster)
	if errors.Is(err, pki.ErrNoIssuer) {
		d.issuer, err = nil, nil
	}
	if d.issuer != nil {
		d.issuer.Seeds, d.issuer.Admit, d.issuer.Refused = d.seeds, d.admit, d.notAdmitted
	}
	return err
}

// Close ends the daemon in an orderly way. Guests go on.
func (d *Daemon) Close() error {
	d.mu.Lock() // from here on nothing is begun any more
	d.cancel()
	d.mu.Unlock()
	d.dog.Close()
	var errs []error
	if d.node != nil {
		errs = append(errs, d.node.Close())
	}
	if d.gossip != nil {
		if err := d.gossip.Close(); err != nil {
			d.log.Info("leave gossip", zap.Error(err))
		}
	}
	if d.server != nil {
		errs = append(errs, d.server.Close())
	}
	if d.client != nil {
		d.client.Close()
	}
	if d.port != nil {
		errs = append(errs, d.port.Close())
	}
	d.wg.Wait()
	if d.audit != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		errs = append(errs, d.audit.Append(ctx, audit.Event{Kind: audit.DaemonStop, Actor: "daemon"}), d.audit.Close())
	}
	return errors.Join(errs...)
}

func (d *Daemon) isHost() bool { return d.role == pki.RoleHost }

// Node, Gossip, Name and the like are for the API.
func (d *Daemon) Node() *consensus.Node   { return d.node }
func (d *Daemon) Gossip() *gossip.List    { return d.gossip }
func (d *Daemon) Name() string            { return d.name }
func (d *Daemon) Role() pki.Role          { return d.role }
func (d *Daemon) Identity() *pki.Identity { return d.id }
func (d *Daemon) Version() string         { return d.version }
func (d *Daemon) ClusterID() string       { return d.cluster.ID }
func (d *Daemon) Config() *config.Config  { return d.cfg }
func (d *Daemon) Done() <-chan struct{}   { return d.ctx.Done() }
func (d *Daemon) StopTime() time.Duration { return d.cfg.Timeouts.Stop.D() }

// program is the command of a data-plane process.
func (d *Daemon) program() []string {
	if len(d.cfg.Program) > 0 {
		return d.cfg.Program
	}
	// The path by which this program runs, which stays right when the file is replaced by an upgrade.
	if self, err := os.Executable(); err == nil {
		return []string{self}
	}
	return []string{"/proc/self/exe"}
}

// record writes an event that nothing waits for.
func (d *Daemon) record(kind audit.Kind, guest string, term pact.Term, actor string, detail map[string]any) {
	select {
	case d.records <- audit.Event{Time: time.Now(), Kind: kind, Guest: guest, Term: uint64(term), Actor: actor, Detail: detail}:
	default:
		d.log.Error("the event log does not keep up; an event is lost", zap.String("kind", string(kind)), zap.String("guest", guest))
	}
}

func (d *Daemon) writeRecords() {
	write := func(e audit.Event) {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := d.audit.Append(ctx, e); err != nil {
			d.log.Error("the event log can't be written", zap.String("kind", string(e.Kind)), zap.Any("detail", e.Detail), zap.Error(err))
		}
	}
	for {
		select {
		case e := <-d.records:
			write(e)
		case <-d.ctx.Done():
			for {
				select {
				case e := <-d.records:
					write(e)
				default:
					return
				}
			}
		}
	}
}

// adopt takes up the processes of an earlier daemon.
func (d *Daemon) adopt() error {
	found, err := adopt(d.cfg.ProcessDir(), d.name, d.log, func(guest string) func(any) { return d.keeper(guest).tellFrom })
	if err != nil {
		return err
	}
	for _, p := range found {
		k := d.keeper(p.guest)
		k.mu.Lock()
		k.procs = append(k.procs, p)
		k.mu.Unlock()
	}
	return nil
}

// keeper finds the keeper of a guest, or makes it.
func (d *Daemon) keeper(guest string) *keeper {
	d.mu.Lock()
	defer d.mu.Unlock()
	k, ok := d.keepers[guest]
	if !ok {
		k = newKeeper(d, guest)
		if d.ctx.Err() != nil {
			close(k.done) // the daemon is ending; nobody keeps anything any more
			return k
		}
		d.keepers[guest] = k
		d.wg.Go(func() { k.run(d.ctx) })
	}
	return k
}

// begin runs f beside, unless the daemon is ending.
func (d *Daemon) begin(f func()) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ctx.Err() != nil {
		return false
	}
	d.wg.Go(f)
	return true
}

func (d *Daemon) allKeepers() []*keeper {
	d.mu.Lock()
	defer d.mu.Unlock()
	all := make([]*keeper, 0, len(d.keepers))
	for _, k := range d.keepers {
		all = append(all, k)
	}
	return all
}

func (d *Daemon) nudgeAll() {
	for _, k := range d.allKeepers() {
		k.nudge()
	}
}

// changed is told of every assignment that an applied entry has touched.
func (d *Daemon) changed(a pact.Assignment, exists bool) {
	if !d.up.Load() {
		return
	}
	d.follow(a, exists)
	if !d.isHost() {
		return
	}
	d.mu.Lock()
	k, ok := d.keepers[a.Guest]
	d.mu.Unlock()
	if !ok {
		if !exists || !slices.Contains(a.Spec.Hosts, d.name) {
			return
		}
		k = d.keeper(a.Guest)
	}
	for _, p := range k.living() {
		d.forward(a.Guest, p)
	}
	k.nudge()
	select {
	case d.peers.wake <- struct{}{}:
	default:
	}
}

// refresh brings all keepers up to date after the start.
func (d *Daemon) refresh() {
	for _, a := range d.node.Guests() {
		d.changed(a, true)
	}
	d.nudgeAll()
}

// forward tells a process the newest assignment that this host's own log has led to.
func (d *Daemon) forward(guest string, p *process) {
	if !d.up.Load() || !d.node.Current() {
		return
	}
	d.forwarding.Lock()
	defer d.forwarding.Unlock()
	if a, ok := d.node.Guest(guest); ok {
		p.assign(a)
	}
}

// gone ends the keeper of a guest that was deleted, and puts away what it has left on this host.
func (d *Daemon) gone(k *keeper, last pact.Assignment) {
	d.mu.Lock()
	if d.keepers[k.guest] == k {
		delete(d.keepers, k.guest)
	}
	d.mu.Unlock()
	if last.Guest != "" {
		if err := errors.Join(removeTaps(last), setAside(d.cfg, last.Guest, last.Created)); err != nil {
			d.log.Error("put away a deleted guest", zap.String("guest", last.Guest), zap.Error(err))
		}
	}
}

// memberChanged notes what gossip has seen.
func (d *Daemon) memberChanged(m gossip.Member) {
	if m.Name == d.name {
		return
	}
	d.log.Info("member", zap.String("name", m.Name), zap.String("state", string(m.State)), zap.String("address", m.Address))
	d.record(audit.Membership, "", 0, "daemon", map[string]any{"member": m.Name, "state": string(m.State), "role": m.Meta.Role, "version": m.Meta.Version})
	if d.up.Load() {
		d.nudgeAll()
	}
}

// admit records that a machine is let in, before it gets its certificate.
func (d *Daemon) admit(name string, role pki.Role) error {
	return d.audit.Append(d.ctx, audit.Event{Kind: audit.Membership, Actor: "daemon", Detail: map[string]any{"member": name, "role": string(role), "state": "let in by its token"}})
}

// notAdmitted records that a machine was not let in.
func (d *Daemon) notAdmitted(from, name string, err error, before int) {
	d.RecordAccess("stranger", map[string]any{"from": from, "what": "join", "name": name, "reason": err.Error(), "not_mentioned_before": before})
}

// seeds are the members that a joiner is told of.
func (d *Daemon) seeds() []pki.Seed {
	self := pki.Seed{Name: d.name, ClusterAddress: d.cfg.ClusterAddress, GossipAddress: d.cfg.GossipAddress}
	seeds := []pki.Seed{self}
	if !d.up.Load() {
		return seeds
	}
	for _, m := range d.node.Members() {
		if m.Name != d.name {
			seeds = append(seeds, pki.Seed{Name: m.Name, ClusterAddress: m.ClusterAddress, GossipAddress: m.GossipAddress})
		}
	}
	return seeds
}

const findEvery = 5 * time.Second

// findMembers keeps this member in touch with all that the roster names, and remembers them for the
// next start.
func (d *Daemon) findMembers() {
	for first := true; ; first = false {
		if !first {
			pause(d.ctx, findEvery)
		}
		if d.ctx.Err() != nil {
			return
		}
		members := d.seeds()[1:]
		if len(members) == 0 {
			members = d.cluster.Seeds
		}
		var addresses []string
		for _, m := range members {
			if m.Name != d.name && d.gossip.State(m.Name) != gossip.Alive {
				addresses = append(addresses, m.GossipAddress)
			}
		}
		if len(addresses) > 0 {
			if err := d.gossip.Join(addresses); err != nil {
				d.log.Debug("gossip", zap.Error(err))
			}
		}
		if seeds := d.seeds()[1:]; len(seeds) > 0 && !slices.Equal(seeds, d.cluster.Seeds) && d.node.Current() {
			d.cluster.Seeds = seeds
			if err := d.cluster.Store(d.cfg.PKIDir()); err != nil {
				d.log.Warn("remember the members", zap.Error(err))
			}
		}
	}
}
