package virtio

import "encoding/binary"

// Events of control messages (section 5.3.6.2): id u32, event u16, value u16.
const (
	controlReady   = 0 // the driver: it is there
	controlAdd     = 1
	controlPort    = 3 // the driver: a port of its own is ready
	controlConsole = 4
	controlOpen    = 6 // both: the other end of a port is open, or not
	controlName    = 7 // the name follows

	controlSize = 8
	maxControl  = controlSize + len(AgentPort)
)

// Messages that are due to a port, in the order in which they are sent. There is at most one of each, so
// that a driver that asks again and again, and never listens, costs nothing.
const (
	dueAdd = 1 << iota
	dueConsole
	dueName
	dueOpen
	dueAll = dueAdd | dueConsole | dueName | dueOpen
)

// control takes a message of the driver's.
func (c *Console) control(ch *chain) uint32 {
	var m [controlSize]byte
	if ch.read(c.p.RAM(), 0, m[:]) < len(m) || !c.negotiated(consoleMultiport) {
		return 0
	}
	le := binary.LittleEndian
	id, event, value := le.Uint32(m[:]), le.Uint16(m[4:]), le.Uint16(m[6:])
	if event == controlReady {
		if value == 1 {
			for i := range c.ports {
				c.ports[i].due |= dueAdd
			}
		}
		return 0
	}
	if id >= portCount {
		return 0
	}
	port := &c.ports[id]
	switch event {
	case controlPort:
		if value != 1 {
			break
		}
		// This end is always open: who listens comes and goes, and what is said to nobody is lost.
		port.due |= dueOpen
		if id == portConsole {
			port.due |= dueConsole
		} else {
			port.due |= dueName
		}
	case controlOpen:
		if port.open = value == 1; !port.open && id == portAgent {
			port.input = port.input[:0]
		}
	}
	return 0
}

// tell sends the messages that are due, as far as the driver has made room for them.
func (c *Console) tell() {
	c.fill(consoleControlRX, func() bool { return c.ports[portConsole].due|c.ports[portAgent].due != 0 }, func(ch *chain) int {
		m := c.nextMessage()
		return scatter(c.p.RAM(), ch.in, 0, m)
	})
}

// nextMessage takes the message that is due next. Ports are added before anything else is said of one.
func (c *Console) nextMessage() []byte {
	for bit := uint8(dueAdd); bit <= dueOpen; bit <<= 1 {
		for id := range c.ports {
			if c.ports[id].due&bit == 0 {
				continue
			}
			c.ports[id].due &^= bit
			var event uint16
			switch bit {
			case dueAdd:
				event = controlAdd
			case dueConsole:
				event = controlConsole
			case dueName:
				event = controlName
			case dueOpen:
				event = controlOpen
			}
			m := binary.LittleEndian.AppendUint32(c.message[:0], uint32(id))
			m = binary.LittleEndian.AppendUint16(m, event)
			m = binary.LittleEndian.AppendUint16(m, 1)
			if bit == dueName {
				m = append(m, AgentPort...)
			}
			return m
		}
	}
	return nil
}
