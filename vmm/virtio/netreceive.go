package virtio

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

// Inject gives the guest a frame as if it had been received, and says whether there was room for it.
// The frame may come from another host: one that makes no sense, or that this guest's driver does not
// expect, is dropped. The observer does not hear of it. The device lock is held.
func (n *Net) Inject(frame []byte) bool {
	h, err := checkFrame(frame)
	if err != nil || !n.running() || h.needs(false)&^n.offloads != 0 {
		return false
	}
	pair := int(h.buffers)
	if pair >= n.used || !n.queues[2*pair].enabled {
		pair = 0
	}
	q := &n.queues[2*pair]
	if !q.enabled {
		return false
	}
	ok, _, err := n.deliver(q, frame)
	n.publish(2 * pair)
	if err != nil {
		n.needsReset()
		n.updatePolling()
	}
	return ok
}

// wantsFrames says whether the tap's queue of a pair is to be read.
func (n *Net) wantsFrames(i int) bool {
	if i >= n.used || n.failed || !n.queues[2*i].enabled {
		return false
	}
	if n.parking {
		return n.status&(statusDriverOK|statusNeedsReset) == statusDriverOK &&
			n.parkedFrames < parkedFrames && n.parkedBytes+len(n.rx) <= parkedBytes
	}
	return n.running() && !n.pairs[i].starved && len(n.pairs[i].parked) == 0
}

// updatePolling polls the tap just while frames can be received. A tap that can't be polled has no
// carrier.
func (n *Net) updatePolling() {
	for i := range n.pairs {
		if err := n.setPolling(i, n.wantsFrames(i)); err != nil {
			n.fail()
			return
		}
	}
}

func (n *Net) fail() {
	n.failed = true
	for i := range n.pairs {
		_ = n.setPolling(i, false) // it can't be read any more, whatever becomes of the registration
	}
	n.configChanged()
}

func (n *Net) setPolling(i int, on bool) (err error) {
	p := &n.pairs[i]
	switch {
	case on && p.poll == nil:
		if p.poll, err = n.p.Poll(p.fd, func() { n.receive(i) }); err != nil {
			p.poll = nil
			return fmt.Errorf("poll the tap of NIC %d: %w", n.index, err)
		}
	case !on && p.poll != nil:
		err = p.poll.Close()
		p.poll = nil
	}
	return err
}

// readTap reads one frame into the receive buffer; none means that there is none.
func (n *Net) readTap(i int) (frame []byte, err error) {
	for {
		m, err := unix.Read(n.pairs[i].fd, n.rx)
		switch err {
		case nil:
			return n.rx[:m], nil
		case unix.EINTR:
		case unix.EAGAIN, unix.EINVAL: // EINVAL: a frame for which the kernel has no header; it is lost
			return nil, nil
		default:
			return nil, fmt.Errorf("read the tap of NIC %d: %w", n.index, err)
		}
	}
}

// take makes a frame from the tap one that the guest may have: its header gets the form that headers have
// outside of the guest, and the number of the pair. Frames that were on their way when the driver changed
// its mind about offloads are lost.
func (n *Net) take(i int, frame []byte) bool {
	if len(frame) < netHeaderSize+frameMin {
		return false
	}
	h := parseHeader(frame)
	h.buffers = uint16(i)
	if h.tidy(frame) != nil || h.needs(false)&^n.offloads != 0 {
		return false
	}
	h.put(frame)
	return true
}

// drainStale drops what came before anybody was there to have it.
func (n *Net) drainStale() {
	if !n.active {
		return
	}
	for i := range n.used {
		for range staleMax {
			if f, err := n.readTap(i); f == nil || err != nil {
				break
			}
		}
	}
}

// receive runs on the I/O thread while the tap's queue has frames.
func (n *Net) receive(i int) {
	if n.parking {
		n.park(i)
		return
	}
	if !n.wantsFrames(i) {
		n.updatePolling()
		return
	}
	p, q := &n.pairs[i], &n.queues[2*i]
	var err error
	for range receiveBatch {
		var room bool
		if room, err = n.buffers(p, q, 0); err != nil || !room {
			break
		}
		frame, rerr := n.readTap(i)
		if rerr != nil {
			n.fail()
			break
		}
		if frame == nil {
			break
		}
		if !n.take(i, frame) {
			continue
		}
		var ok, later bool
		if ok, later, err = n.deliver(q, frame); err != nil {
			break
		}
		if later {
			n.keep(p, frame, false)
			break
		}
		if ok && n.onReceive != nil {
			n.onReceive(frame)
		}
	}
	n.publish(2 * i)
	if err != nil {
		n.needsReset()
	}
	n.deliverParked(i) // or find out that only a kick helps
	n.updatePolling()
}

// buffers says whether there are more than had buffers to receive into. If not, a kick will tell.
func (n *Net) buffers(p *netPair, q *queue, had uint16) (bool, error) {
	free, err := q.available()
	if err != nil || free > had {
		return err == nil, err
	}
	more, err := q.armAfter(had)
	p.starved = err == nil && !more
	return more, err
}

// keep puts a frame aside for the guest.
func (n *Net) keep(p *netPair, frame []byte, told bool) {
	p.parked = append(p.parked, parkedFrame{append([]byte(nil), frame...), told})
	n.parkedFrames++
	n.parkedBytes += len(frame)
}

// park takes frames from the tap for a guest that stands still.
func (n *Net) park(i int) {
	p := &n.pairs[i]
	for range receiveBatch {
		if !n.wantsFrames(i) {
			break
		}
		frame, err := n.readTap(i)
		if err != nil {
			n.parking = false // the activation finds it out as well
			break
		}
		if frame == nil {
			break
		}
		if !n.take(i, frame) {
			continue
		}
		n.keep(p, frame, true)
		if n.onReceive != nil {
			n.onReceive(p.parked[len(p.parked)-1].data)
		}
	}
	for i := range n.pairs {
		if !n.wantsFrames(i) {
			_ = n.setPolling(i, false) // it can only have been taken off already
		}
	}
}

// deliverParked gives the guest what it has buffers for. The rest goes before all that is in the tap.
func (n *Net) deliverParked(i int) {
	p, q := &n.pairs[i], &n.queues[2*i]
	if len(p.parked) == 0 || !n.running() || i >= n.used {
		return
	}
	for had := uint16(0); len(p.parked) > 0; {
		room, err := n.buffers(p, q, had)
		if err == nil && !room {
			break
		}
		f := p.parked[0]
		var ok, later bool
		if err == nil {
			ok, later, err = n.deliver(q, f.data)
		}
		if err == nil && later {
			had, err = q.available() // fewer than it takes
			if err == nil {
				continue
			}
		}
		if err != nil {
			n.forgetParked()
			n.publish(2 * i)
			n.needsReset()
			return
		}
		if had = 0; ok && !f.told && n.onReceive != nil {
			n.onReceive(f.data)
		}
		n.parkedFrames--
		n.parkedBytes -= len(f.data)
		p.parked[0], p.parked = parkedFrame{}, p.parked[1:]
	}
	n.publish(2 * i)
}

func (n *Net) forgetParked() {
	for i := range n.pairs {
		n.pairs[i].parked = nil
	}
	n.parkedFrames, n.parkedBytes = 0, 0
}

// deliver puts a frame, which has been checked, into the guest: into one buffer or, where the driver
// agreed to that, into as many as it takes. A frame for which there will never be room is dropped and the
// buffers kept; later means that it takes more buffers than there are now.
func (n *Net) deliver(q *queue, frame []byte) (ok, later bool, err error) {
	h := parseHeader(frame)
	if n.offloads&netGuestCSUM == 0 {
		h.flags &^= headerDataValid // section 5.1.6.4.1
	}
	h.buffers = 1
	var head [netHeaderSize]byte
	h.put(head[:])
	n.heads = n.heads[:0]
	c := &n.chain
	for done := 0; ; c = &n.more {
		if len(n.heads) == int(q.size) {
			q.unpopLast(len(n.heads)) // it does not even fit into a full queue
			return false, false, nil
		}
		found, err := q.pop(c)
		if err != nil {
			return false, false, err
		}
		if !found {
			q.unpopLast(len(n.heads))
			return false, len(n.heads) > 0, nil
		}
		m := int(min(c.writable, uint64(len(frame)-done)))
		if !n.negotiated(netMrgRXBuf) && m < len(frame) || done == 0 && m < netHeaderSize {
			q.unpopLast(len(n.heads) + 1)
			return false, false, nil
		}
		if done == 0 {
			scatter(n.p.RAM(), c.in, 0, head[:])
			scatter(n.p.RAM(), c.in, netHeaderSize, frame[netHeaderSize:m])
		} else {
			scatter(n.p.RAM(), c.in, 0, frame[done:done+m])
		}
		n.heads = append(n.heads, used{c.head, uint32(m)})
		if done += m; done == len(frame) {
			break
		}
	}
	if len(n.heads) > 1 {
		scatter(n.p.RAM(), n.chain.in, netNumBuffers, binary.LittleEndian.AppendUint16(nil, uint16(len(n.heads))))
	}
	for _, u := range n.heads {
		if err := q.push(u.head, u.n); err != nil {
			return false, false, err
		}
	}
	return true, false, nil
}
