package virtio

import "encoding/binary"

// Commands of the control queue (section 5.1.6.5): class and command.
const (
	ctrlRX            = 0
	ctrlMAC           = 1
	ctrlAnnounce      = 3
	ctrlMQ            = 4
	ctrlGuestOffloads = 5

	ctrlMACTable = 0
	ctrlMACAddr  = 1

	// ctrlMax bounds the data of a command: two tables of more addresses than any driver knows.
	ctrlMax = 2 + 2*(4+6*1024)

	ctrlOK  = 0
	ctrlErr = 1
)

// command executes a chain of the control queue and returns how many bytes of an answer it wrote.
func (n *Net) command(c *chain) uint32 {
	if c.writable == 0 {
		return 0 // nobody wants to know
	}
	answer := byte(ctrlErr)
	if c.readable >= 2 && c.readable <= ctrlMax {
		data := make([]byte, c.readable)
		if n.obey(data[0], data[1], data[2:c.read(n.p.RAM(), 0, data)]) {
			answer = ctrlOK
		}
	}
	return uint32(scatter(n.p.RAM(), c.in, 0, []byte{answer}))
}

func (n *Net) obey(class, command byte, data []byte) bool {
	le := binary.LittleEndian
	switch {
	case class == ctrlRX && n.negotiated(netCtrlRX):
		// The NIC gives its driver all that comes, as it may: the bridge has sorted it already.
		return len(data) == 1 && data[0] <= 1 && (command <= 1 || command <= 5 && n.negotiated(netCtrlRXExtra))
	case class == ctrlMAC && command == ctrlMACTable && n.negotiated(netCtrlRX):
		return macTables(data)
	case class == ctrlMAC && command == ctrlMACAddr && n.negotiated(netCtrlMACAddr):
		if len(data) != 6 || data[0]&1 != 0 {
			return false
		}
		n.setMAC([6]byte(data))
		n.generation++
		return true
	case class == ctrlAnnounce && command == 0 && n.negotiated(netGuestAnnounce):
		if n.announce {
			n.announce = false
			n.generation++
		}
		return len(data) == 0
	case class == ctrlMQ && command == 0 && n.negotiated(netMQ):
		if len(data) != 2 {
			return false
		}
		return n.usePairs(int(le.Uint16(data)))
	case class == ctrlGuestOffloads && command == 0 && n.negotiated(netCtrlGuestOffloads):
		if len(data) != 8 {
			return false
		}
		wanted := le.Uint64(data)
		if wanted&^(n.features&netGuestOffloads) != 0 {
			return false
		}
		n.offloads = offloadsOf(wanted)
		return n.replug()
	}
	return false
}

// macTables says whether the data are two tables of addresses.
func macTables(data []byte) bool {
	for range 2 {
		if len(data) < 4 {
			return false
		}
		entries := uint64(binary.LittleEndian.Uint32(data))
		if entries*6 > uint64(len(data)-4) {
			return false
		}
		data = data[4+6*entries:]
	}
	return len(data) == 0
}

// usePairs makes the driver use its first pairs. Frames for the others are lost.
func (n *Net) usePairs(pairs int) bool {
	if pairs < 1 || pairs > len(n.pairs) {
		return false
	}
	n.used = pairs
	for i := pairs; i < len(n.pairs); i++ {
		for _, f := range n.pairs[i].parked {
			n.parkedFrames--
			n.parkedBytes -= len(f.data)
		}
		n.pairs[i].parked = nil
	}
	n.updatePolling() // no queue that leaves may still be polled
	return n.replug()
}

// replug makes the tap follow a command. A tap that does not has no carrier.
func (n *Net) replug() bool {
	if n.plug() != nil {
		n.fail()
		return false
	}
	return true
}
