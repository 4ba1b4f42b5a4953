package lockstep

import (
	"encoding/binary"
	"net"

	"github.com/pollux-ha/pollux/vmm/platform"
)

const (
	announceEvery = 4  // pulses between two announcements
	announceLeast = 10 // announcements, even if the loser is known to have stopped
)

// announcementBytes is the least that an Ethernet frame has, and more than the request needs.
const announcementBytes = platform.FrameHeaderBytes + 60

// announcement is a reverse ARP request from a network card: whatever it asks, each switch on its way
// learns where the card is now. It needs no IP address, and no host answers it. It begins with the header
// of a plain frame.
func announcement(mac net.HardwareAddr) []byte {
	be := binary.BigEndian
	f := make([]byte, platform.FrameHeaderBytes, announcementBytes)
	f = append(f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff)
	f = append(f, mac...)
	f = be.AppendUint16(f, 0x8035) // RARP
	f = be.AppendUint16(f, 1)      // Ethernet
	f = be.AppendUint16(f, 0x0800) // IPv4
	f = append(f, 6, 4)
	f = be.AppendUint16(f, 3) // request reverse
	f = append(f, mac...)
	f = append(f, 0, 0, 0, 0)
	f = append(f, mac...)
	f = append(f, 0, 0, 0, 0)
	return append(f, make([]byte, announcementBytes-len(f))...)
}

// Announce tells the network where the guest's cards are, again and again: the loser's host may go on
// saying otherwise until it has stopped. It ends with StopAnnouncing, or some time after a replica has
// been reached: a loser becomes one only after it has stopped. Nothing is said while nothing may leave
// this host.
func (e *Engine) Announce() {
	e.mu.Lock()
	e.announcing, e.announced = true, 0
	e.unlock()
	e.announce()
}

// StopAnnouncing ends Announce.
func (e *Engine) StopAnnouncing() {
	e.mu.Lock()
	e.announcing = false
	e.unlock()
}

// announce sends one round, if it is due. It is called from the pulse.
func (e *Engine) announce() {
	e.mu.Lock()
	due := e.announcing && !e.core.Blocked() && e.announced%announceEvery == 0
	if e.announcing && !e.core.Blocked() {
		e.announced++
	}
	if e.announced >= announceEvery*announceLeast && e.stream != nil && e.stream.up {
		e.announcing = false
	}
	e.unlock()
	if !due {
		return
	}
	if e.cfg.MACs == nil {
		return
	}
	for nic, mac := range e.cfg.MACs() {
		if len(mac) == 6 {
			_ = e.cfg.Machine.Emit(nic, announcement(mac)) // lost like any frame; another follows
		}
	}
}
