// Package gossip is the cluster's membership as SWIM sees it: who is alive at the moment. It decides
// nothing; it feeds status, alarms, and the choice of whom to ask first.
package gossip

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/memberlist"
	"go.uber.org/zap"
)

// Meta is what a member tells of itself with every message of membership; at most 512 bytes.
type Meta struct {
	Role           string `json:"r"`
	Version        string `json:"v,omitempty"`
	ClusterAddress string `json:"c"`
	Cluster        string `json:"i"` // the cluster's id
	// Leaving announces a goodbye: memberlist itself does not tell it from a death.
	Leaving bool `json:"l,omitempty"`
}

// State is how gossip sees a member.
type State string

const (
	Alive   State = "alive"
	Gone    State = "gone" // it stopped answering
	Left    State = "left" // it said goodbye
	Unknown State = "unknown"
)

// Member is a member as gossip sees it.
type Member struct {
	Name    string
	Address string // of gossip
	State   State
	Meta    Meta
	Since   time.Time
}

// Options is what Open needs.
type Options struct {
	Name    string
	Address string // host:port, UDP and TCP
	Key     []byte // AES-256
	Meta    Meta
	// Changed is told of every change of a member. It must not block.
	Changed func(Member)
	Log     *zap.Logger
}

// List is this member's view.
type List struct {
	o    Options
	list *memberlist.Memberlist
	meta []byte

	mu    sync.Mutex
	known map[string]Member
}

// Open begins to take part; Join finds the others.
func Open(o Options) (*List, error) {
	host, portText, err := net.SplitHostPort(o.Address)
	if err != nil {
		return nil, fmt.Errorf("gossip_address: %w", err)
	}
	port, err := strconv.Atoi(portText)
	if err != nil {
		return nil, fmt.Errorf("gossip_address: %w", err)
	}
	l := &List{o: o, known: map[string]Member{}}
	if l.meta, err = json.Marshal(o.Meta); err != nil {
		return nil, fmt.Errorf("encode what this member tells of itself: %w", err)
	}
	if len(l.meta) > memberlist.MetaMaxSize {
		return nil, fmt.Errorf("this member tells %d bytes of itself, at most %d are possible", len(l.meta), memberlist.MetaMaxSize)
	}
	c := memberlist.DefaultLANConfig()
	c.Name = o.Name
	c.BindAddr, c.BindPort = host, port
	c.AdvertiseAddr, c.AdvertisePort = host, port
	c.SecretKey = o.Key
	c.Delegate, c.Events = l, l
	c.DeadNodeReclaimTime = 10 * time.Second // a member may come back with another address
	c.Logger = log.New(&zapWriter{o.Log.Named("gossip")}, "", 0)
	t, err := newTransport(&memberlist.NetTransportConfig{BindAddrs: []string{host}, BindPort: port, Logger: c.Logger})
	if err == nil {
		c.Transport = t
		if l.list, err = memberlist.Create(c); err != nil {
			err = errors.Join(err, t.Shutdown())
		}
	}
	if errors.Is(err, syscall.EADDRINUSE) || err != nil && strings.Contains(err.Error(), "address already in use") {
		return nil, fmt.Errorf("gossip_address %s is in use: another Pollux daemon runs here, or another program has the port", o.Address)
	}
	if err != nil {
		return nil, fmt.Errorf("open gossip_address %s: %w", o.Address, err)
	}
	return l, nil
}

// Join asks members at these addresses for the others. It succeeds where one of them answers.
func (l *List) Join(addresses []string) error {
	others := slices.DeleteFunc(slices.Clone(addresses), func(a string) bool { return a == l.o.Address })
	if len(others) == 0 {
		return nil
	}
	if _, err := l.list.Join(others); err != nil {
		return fmt.Errorf("find the other members: %w", err)
	}
	return nil
}

// Members returns all members that were ever seen, this one included, by name.
func (l *List) Members() []Member {
	l.mu.Lock()
	all := make([]Member, 0, len(l.known))
	for _, m := range l.known {
		all = append(all, m)
	}
	l.mu.Unlock()
	slices.SortFunc(all, func(a, b Member) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// State tells how one member is.
func (l *List) State(name string) State {
	for _, m := range l.Members() {
		if m.Name == name {
			return m.State
		}
	}
	return Unknown
}

// Close says goodbye and ends.
func (l *List) Close() error {
	meta := l.o.Meta
	meta.Leaving = true
	if b, err := json.Marshal(meta); err == nil {
		l.mu.Lock()
		l.meta = b
		l.mu.Unlock()
		_ = l.list.UpdateNode(time.Second) // nobody may be there to hear it
	}
	leave := l.list.Leave(time.Second)
	return errors.Join(leave, l.list.Shutdown())
}

func (l *List) note(n *memberlist.Node, s State) {
	m := Member{Name: n.Name, Address: n.Address(), State: s, Since: time.Now()}
	_ = json.Unmarshal(n.Meta, &m.Meta) // a member of another version may tell other things
	l.mu.Lock()
	l.known[n.Name] = m
	l.mu.Unlock()
	if l.o.Changed != nil {
		l.o.Changed(m)
	}
}

// NotifyJoin, NotifyLeave and NotifyUpdate are memberlist's events.
func (l *List) NotifyJoin(n *memberlist.Node)   { l.note(n, Alive) }
func (l *List) NotifyUpdate(n *memberlist.Node) { l.note(n, Alive) }
func (l *List) NotifyLeave(n *memberlist.Node) {
	var m Meta
	if json.Unmarshal(n.Meta, &m) == nil && m.Leaving {
		l.note(n, Left)
		return
	}
	l.note(n, Gone)
}

// NodeMeta and the rest are memberlist's delegate: nothing but the metadata is gossiped.
func (l *List) NodeMeta(int) []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.meta
}
func (l *List) NotifyMsg([]byte)                {}
func (l *List) GetBroadcasts(int, int) [][]byte { return nil }
func (l *List) LocalState(bool) []byte          { return nil }
func (l *List) MergeRemoteState([]byte, bool)   {}

// zapWriter takes memberlist's log lines: "[WARN] memberlist: ...".
type zapWriter struct{ log *zap.Logger }

var _ io.Writer = (*zapWriter)(nil)

func (w *zapWriter) Write(b []byte) (int, error) {
	line := strings.TrimSpace(string(b))
	level, text, ok := strings.Cut(line, " ")
	if !ok {
		level, text = "", line
	}
	text = strings.TrimPrefix(text, "memberlist: ")
	switch level {
	case "[ERR]", "[ERROR]":
		w.log.Info(text)
	default:
		w.log.Debug(text)
	}
	return len(b), nil
}
