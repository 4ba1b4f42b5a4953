package wire

import (
	"errors"
	"net"
	"sync"
	"time"
)

// acceptAgain is the pause after an error of accept: out of file descriptors, most likely, and some may come free.
const acceptAgain = 50 * time.Millisecond

// Lobby holds connections that have not shown yet who they are. It has room for few: where one comes
// and there is none, the one that has waited longest has to go, of those from the busiest address. So
// connections that say nothing keep nobody out for longer than a member needs to show its certificate.
type Lobby struct {
	room int

	mu      sync.Mutex
	waiting map[*visitor]struct{}
	closed  bool
}

type visitor struct {
	conn  net.Conn
	since time.Time
	from  string
}

// NewLobby makes a lobby for that many connections.
func NewLobby(room int) *Lobby { return &Lobby{room: room, waiting: map[*visitor]struct{}{}} }

// Enter takes a connection in until leave is called; if it has to go before, it is closed. False: the
// lobby is closed, and so is conn now.
func (l *Lobby) Enter(conn net.Conn) (leave func(), ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		conn.Close()
		return nil, false
	}
	if len(l.waiting) >= l.room {
		v := l.longest()
		delete(l.waiting, v)
		v.conn.Close()
	}
	v := &visitor{conn: conn, since: time.Now(), from: hostOf(conn.RemoteAddr())}
	l.waiting[v] = struct{}{}
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.waiting, v)
	}, true
}

// Receive takes in the connections that come to a listener, until either is closed, and has each served, which must
// not keep the next one waiting. Errors of accept are told, and no reason to give up: who can't be called is as
// good as gone.
func (l *Lobby) Receive(from net.Listener, trouble func(error), serve func(conn net.Conn, leave func())) {
	for {
		conn, err := from.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			trouble(err)
			time.Sleep(acceptAgain)
			continue
		}
		leave, ok := l.Enter(conn)
		if !ok {
			return
		}
		serve(conn, leave)
	}
}

// longest is the one that has to go; mu is held.
func (l *Lobby) longest() *visitor {
	count := map[string]int{}
	for v := range l.waiting {
		count[v.from]++
	}
	var victim *visitor
	for v := range l.waiting {
		if victim == nil || count[v.from] > count[victim.from] || count[v.from] == count[victim.from] && v.since.Before(victim.since) {
			victim = v
		}
	}
	return victim
}

// Close closes all that wait, and all that come.
func (l *Lobby) Close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	for v := range l.waiting {
		v.conn.Close()
	}
}

func hostOf(a net.Addr) string {
	host, _, err := net.SplitHostPort(a.String())
	if err != nil {
		return a.String()
	}
	return host
}
