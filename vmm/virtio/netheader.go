package virtio

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/pollux-ha/pollux/vmm/platform"
	"github.com/pollux-ha/pollux/vmm/tap"
)

// netHeader is struct virtio_net_hdr (section 5.1.6), as a driver or a tap puts it before a frame.
type netHeader struct {
	flags, gso                                      uint8
	length, segment, csumStart, csumOffset, buffers uint16
}

const (
	headerNeedsCSUM = 1 // VIRTIO_NET_HDR_F_NEEDS_CSUM: from csumStart on it is to be made
	headerDataValid = 2 // VIRTIO_NET_HDR_F_DATA_VALID: it has been checked

	gsoNone  = 0
	gsoTCPv4 = 1
	gsoUDP   = 3 // fragments
	gsoTCPv6 = 4
	gsoUDPL4 = 5    // datagrams
	gsoECN   = 0x80 // with a TCP type: the first segment has CWR

	tcpHeaderMin, tcpChecksum = 20, 16
	udpHeader, udpChecksum    = 8, 6

	// segmentMin is less than any TCP sends in a segment (Linux: 48 bytes with options, of which 40 can be
	// those). A frame of 64 KiB in segments of one byte would cost the host a segment's work for each.
	segmentMin  = 8
	datagramMax = 128 // Linux: UDP_MAX_SEGMENTS
	byFragments = 0xffff

	etherIPv4 = 0x0800
	etherIPv6 = 0x86dd
)

// errHeader says that a frame's header makes no sense with its frame.
var errHeader = errors.New("the frame's header is malformed")

// parseHeader reads the header of a frame that is long enough to have one.
func parseHeader(frame []byte) netHeader {
	le := binary.LittleEndian
	return netHeader{
		flags: frame[0], gso: frame[1], length: le.Uint16(frame[2:]), segment: le.Uint16(frame[4:]),
		csumStart: le.Uint16(frame[6:]), csumOffset: le.Uint16(frame[8:]), buffers: le.Uint16(frame[netNumBuffers:]),
	}
}

// put writes the header before the frame.
func (h *netHeader) put(frame []byte) {
	le := binary.LittleEndian
	frame[0], frame[1] = h.flags, h.gso
	le.PutUint16(frame[2:], h.length)
	le.PutUint16(frame[4:], h.segment)
	le.PutUint16(frame[6:], h.csumStart)
	le.PutUint16(frame[8:], h.csumOffset)
	le.PutUint16(frame[netNumBuffers:], h.buffers)
}

// checkFrame says whether a frame, header first, is one that a tap may be given.
func checkFrame(frame []byte) (netHeader, error) {
	if len(frame) < netHeaderSize+frameMin || len(frame) > platform.MaxFrameBytes {
		return netHeader{}, fmt.Errorf("%d bytes: %w", len(frame), errHeader)
	}
	h := parseHeader(frame)
	tidied := h
	if err := tidied.tidy(frame); err != nil {
		return h, err
	}
	if tidied != h {
		return h, fmt.Errorf("header %+v: %w", h, errHeader)
	}
	return h, nil
}

// tidy checks the header against its frame and brings it into the one form that frames outside of the
// guest have: fields that mean nothing are 0, the length of the headers, which is a hint of whoever made
// it, is the right one. What passes is what the kernel's virtio_net_hdr_to_skb takes.
func (h *netHeader) tidy(frame []byte) error {
	p := frame[netHeaderSize:]
	h.length = 0
	h.flags &= headerNeedsCSUM | headerDataValid
	if h.flags&headerNeedsCSUM == 0 {
		h.csumStart, h.csumOffset = 0, 0
		if h.gso != gsoNone {
			return fmt.Errorf("segments of kind %#x without a checksum: %w", h.gso, errHeader)
		}
	} else if end := int(h.csumStart) + int(h.csumOffset) + 2; h.csumStart < frameMin || end > len(p) {
		return fmt.Errorf("a checksum from %d on, at %d, in %d bytes: %w", h.csumStart, h.csumOffset, len(p), errHeader)
	}
	if h.gso == gsoNone {
		h.segment = 0
		return nil
	}
	return h.tidySegments(p)
}

func (h *netHeader) tidySegments(p []byte) error {
	start := int(h.csumStart)
	transport, offset := udpHeader, udpChecksum
	version, least := 4, segmentMin
	switch h.gso {
	case gsoTCPv6, gsoTCPv6 | gsoECN:
		version = 6
		fallthrough
	case gsoTCPv4, gsoTCPv4 | gsoECN:
		transport, offset = tcpHeaderMin, tcpChecksum
		if start+tcpHeaderMin <= len(p) {
			transport = max(transport, int(p[start+12]>>4)*4)
		}
	case gsoUDP:
		version = 0 // either
	case gsoUDPL4:
		version, least = 0, 1
	default:
		return fmt.Errorf("segments of kind %#x: %w", h.gso, errHeader)
	}
	if int(h.csumOffset) != offset || start+transport > len(p) {
		return fmt.Errorf("segments of kind %#x with a checksum from %d on, at %d, in %d bytes: %w", h.gso, start, h.csumOffset, len(p), errHeader)
	}
	if int(h.segment) < least || h.segment == byFragments || h.gso == gsoUDPL4 && len(p)-start-transport > int(h.segment)*datagramMax {
		return fmt.Errorf("segments of %d bytes, of %d: %w", h.segment, len(p), errHeader)
	}
	if !carries(p, start, version) {
		return fmt.Errorf("segments of kind %#x in no such packet: %w", h.gso, errHeader)
	}
	h.length = uint16(start + transport)
	return nil
}

// carries says whether an Ethernet frame can be an IP packet of the version, 0 for either, whose
// transport header begins at start. What is inside of other protocols (PPPoE, for example) is not known.
func carries(p []byte, start, version int) bool {
	at := frameMin
	ether := binary.BigEndian.Uint16(p[at-2:])
	for ether == 0x8100 || ether == 0x88a8 { // VLAN tags
		if at+4 > len(p) {
			return false
		}
		at += 4
		ether = binary.BigEndian.Uint16(p[at-2:])
	}
	switch ether {
	case etherIPv4:
		return version != 6 && start >= at+20
	case etherIPv6:
		return version != 4 && start >= at+40
	}
	return true
}

// needs is which features the header takes: of the driver, for a frame that it sends, or else for one that
// it is given. A checksum that was checked is just not mentioned to a driver that can't know of it.
func (h *netHeader) needs(sent bool) uint64 {
	if h.flags&headerNeedsCSUM == 0 {
		return 0
	}
	bit := func(toHost, toGuest uint64) uint64 {
		if sent {
			return toHost
		}
		return toGuest
	}
	f := bit(netCSUM, netGuestCSUM)
	switch h.gso &^ gsoECN {
	case gsoTCPv4:
		f |= bit(netHostTSO4, netGuestTSO4)
	case gsoTCPv6:
		f |= bit(netHostTSO6, netGuestTSO6)
	case gsoUDP:
		f |= bit(netHostUFO, 1<<63) // GUEST_UFO is never offered
	case gsoUDPL4:
		f |= bit(netHostUSO, netGuestUSO4|netGuestUSO6)
	}
	if h.gso&gsoECN != 0 {
		f |= bit(netHostECN, netGuestECN)
	}
	return f
}

// netGuestOffloads are the features that let a tap leave work undone.
const netGuestOffloads = netGuestCSUM | netGuestTSO4 | netGuestTSO6 | netGuestECN | netGuestUSO4 | netGuestUSO6

// offloadsOf is what a driver with these features is ready for: nothing at all without checksums, ECN only
// with TCP, either version of UDP only with the other, as taps have it (section 5.1.3.1).
func offloadsOf(features uint64) uint64 {
	o := features & netGuestOffloads
	if o&netGuestCSUM == 0 {
		return 0
	}
	if o&(netGuestTSO4|netGuestTSO6) == 0 {
		o &^= netGuestECN
	}
	if o&(netGuestUSO4|netGuestUSO6) != netGuestUSO4|netGuestUSO6 {
		o &^= netGuestUSO4 | netGuestUSO6
	}
	return o
}

// tapOffloads is the same as a tap says it.
func tapOffloads(offloads uint64) (t tap.Offload) {
	for _, o := range []struct {
		feature uint64
		tap     tap.Offload
	}{
		{netGuestCSUM, tap.Checksum}, {netGuestTSO4, tap.TSO4}, {netGuestTSO6, tap.TSO6}, {netGuestECN, tap.ECN},
		{netGuestUSO4, tap.USO4}, {netGuestUSO6, tap.USO6},
	} {
		if offloads&o.feature != 0 {
			t |= o.tap
		}
	}
	return t
}
