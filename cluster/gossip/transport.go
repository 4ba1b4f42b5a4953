package gossip

import (
	"net"
	"sync"

	"github.com/hashicorp/memberlist"

	"github.com/pollux-ha/pollux/cluster/wire"
)

// roomMax bounds the connections that have come in and are not closed yet. A member's takes milliseconds.
const roomMax = 64

// transport is memberlist's own, but strangers who connect and say nothing are bounded in number: the
// daemon's file descriptors are for others, too.
type transport struct {
	*memberlist.NetTransport
	lobby   *wire.Lobby
	streams chan net.Conn
	done    chan struct{}
	end     func() // once
	wg      sync.WaitGroup
}

func newTransport(c *memberlist.NetTransportConfig) (*transport, error) {
	n, err := memberlist.NewNetTransport(c)
	if err != nil {
		return nil, err
	}
	t := &transport{NetTransport: n, lobby: wire.NewLobby(roomMax), streams: make(chan net.Conn), done: make(chan struct{})}
	t.end = sync.OnceFunc(func() { close(t.done) })
	t.wg.Go(t.receive)
	return t, nil
}

func (t *transport) receive() {
	for {
		select {
		case c := <-t.NetTransport.StreamCh():
			leave, ok := t.lobby.Enter(c)
			if !ok {
				continue
			}
			select {
			case t.streams <- &visitor{Conn: c, leave: leave}:
			case <-t.done:
				c.Close()
			}
		case <-t.done:
			return
		}
	}
}

// StreamCh gives memberlist the connections that have come in.
func (t *transport) StreamCh() <-chan net.Conn { return t.streams }

// Shutdown ends it. It may be called again.
func (t *transport) Shutdown() error {
	t.lobby.Close()
	err := t.NetTransport.Shutdown() // may hand a last connection over before it returns
	t.end()
	t.wg.Wait()
	return err
}

// visitor is a connection that makes room when it is closed.
type visitor struct {
	net.Conn
	leave func()
}

func (v *visitor) Close() error {
	v.leave()
	return v.Conn.Close()
}
