package virtio

import (
	"encoding/binary"
	"net"

	"github.com/pollux-ha/pollux/vmm/platform/codec"
)

// netStateVersion 2 knows of offloads, a control queue and several queue pairs. In version 1 a NIC had two
// queues and an address for ever.
const netStateVersion = 2

// StateVersion implements platform.Stateful.
func (n *Net) StateVersion() uint16 { return netStateVersion }

// RestoreState implements platform.Stateful.
func (n *Net) RestoreState(version uint16, b []byte) error {
	if version == 1 {
		b = n.fromVersion1(b)
	}
	return n.device.RestoreState(version, b)
}

func (n *Net) save(b []byte) []byte {
	b = append(b, n.permanent[:]...)
	b = codec.AppendBool(b, n.linkUp)
	b = codec.AppendBool(b, n.failed)
	b = append(b, n.MAC()...)
	b = binary.LittleEndian.AppendUint16(b, uint16(n.mtu))
	b = codec.AppendBool(b, n.announce)
	b = binary.LittleEndian.AppendUint16(b, uint16(n.used))
	return binary.LittleEndian.AppendUint64(b, n.offloads)
}

func (n *Net) load(r *codec.Reader, _ []queue) (apply func()) {
	permanent := r.Take(6)
	linkUp, failed := r.Bool(), r.Bool()
	var mac [6]byte
	r.Fill(mac[:])
	mtu, announce, used, offloads := int(r.U16()), r.Bool(), int(r.U16()), r.U64()
	if permanent != nil && [6]byte(permanent) != n.permanent {
		r.Failf("NIC with address %s, this one has %s", net.HardwareAddr(permanent), net.HardwareAddr(n.permanent[:]))
	}
	if mtu != n.mtu {
		r.Failf("NIC with an MTU of %d, this one has %d", mtu, n.mtu)
	}
	if mac[0]&1 != 0 || used < 1 || used > len(n.pairs) || offloads != offloadsOf(offloads) || offloads&^n.offered != 0 {
		r.Failf("NIC with address %s, %d of %d queue pairs, offloads %#x", net.HardwareAddr(mac[:]), used, len(n.pairs), offloads)
	}
	return func() {
		n.linkUp, n.failed = linkUp, failed
		n.setMAC(mac)
		n.announce, n.used, n.offloads = announce, used, offloads
		n.parking, n.moved = false, true
		n.forgetParked()
		for i := range n.pairs {
			n.pairs[i].starved = false
			_ = n.setPolling(i, false) // a restored NIC is suspended
		}
	}
}

// fromVersion1 makes a state of version 1 one of version 2 of this NIC: with the queues and vectors that the
// old one lacked, as nobody has set them up, and with the registers that count them. Bytes that make no
// sense are left as they are, for the decoder to refuse.
func (n *Net) fromVersion1(b []byte) []byte {
	const (
		config   = 256
		vectors  = 3 // one a queue and one for the configuration
		entry    = 16
		queue    = 35
		table    = config + 1
		pending  = table + vectors*entry
		registry = pending + 8
		queues   = registry + 23
		model    = queues + 2*queue
		size     = model + 8
	)
	if len(b) != size {
		return b
	}
	le := binary.LittleEndian
	out := append([]byte(nil), b[:pending]...)
	const capMSIX, vectorCount, notifyLength = 0x11, 2, 12
	for at := int(n.fn.Config(0x34, 1)); at != 0; at = int(n.fn.Config(at+1, 1)) {
		switch {
		case n.fn.Config(at, 1) == capMSIX:
			le.PutUint16(out[at+vectorCount:], le.Uint16(out[at+vectorCount:])-(vectors-1)+uint16(n.msix.Vectors()-1))
		case n.fn.Config(at, 1) == capVendor && n.fn.Config(at+3, 1) == cfgNotify:
			le.PutUint32(out[at+notifyLength:], uint32(n.fn.Config(at+notifyLength, 4)))
		}
	}
	for range n.msix.Vectors() - vectors {
		out = le.AppendUint32(append(out, make([]byte, entry-4)...), 1) // masked
	}
	out = append(out, b[pending:model]...)
	for i := range n.queues[2:] {
		q := n.queues[2+i]
		q.reset()
		out = q.save(out)
	}
	out = append(out, b[model:]...)        // address, link, failed
	out = append(out, b[model:model+6]...) // the address in use
	out = le.AppendUint16(out, uint16(n.mtu))
	out = codec.AppendBool(out, false)
	out = le.AppendUint16(out, 1)
	return le.AppendUint64(out, 0)
}
