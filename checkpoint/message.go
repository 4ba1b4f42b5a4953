package checkpoint

import (
	"encoding/binary"
	"fmt"

	"github.com/pollux-ha/pollux/cluster/pact"
	"github.com/pollux-ha/pollux/vmm/platform"
)

func (*Hello) kind() frameKind       { return kindHello }
func (*Welcome) kind() frameKind     { return kindWelcome }
func (*Ack) kind() frameKind         { return kindAck }
func (*Durable) kind() frameKind     { return kindDurable }
func (*Heartbeat) kind() frameKind   { return kindHeartbeat }
func (*HigherTerm) kind() frameKind  { return kindHigherTerm }
func (*DiskDigests) kind() frameKind { return kindDiskDigests }
func (*Received) kind() frameKind    { return kindReceived }
func (*Goodbye) kind() frameKind     { return kindGoodbye }
func (*Staged) kind() frameKind      { return kindEpochEnd }

const (
	maxDisks = 32
	// MaxDigestsPerMessage bounds the digests that one DiskDigests carries.
	MaxDigestsPerMessage = 4096
	// MaxFrameBytes bounds one Ethernet frame with its header, segmentation offload included.
	MaxFrameBytes = platform.MaxFrameBytes
)

// appendMessage appends the payload of m to b.
func appendMessage(b []byte, m Message) ([]byte, error) {
	le := binary.LittleEndian
	switch m := m.(type) {
	case *Hello:
		if len(m.DiskSizes) > maxDisks {
			return nil, fmt.Errorf("%w: %d disks, at most %d", ErrLimit, len(m.DiskSizes), maxDisks)
		}
		b = le.AppendUint16(b, m.Version)
		b = appendString(b, m.Guest)
		b = le.AppendUint64(b, uint64(m.Term))
		b = appendParty(appendParty(b, m.Primary), m.Replica)
		b = le.AppendUint64(b, m.Stream)
		b = le.AppendUint32(b, m.RAMPages)
		b = append(b, boolByte(m.Resume))
		b = append(b, m.Boot[:]...)
		b = append(b, byte(len(m.DiskSizes)))
		for _, s := range m.DiskSizes {
			b = le.AppendUint64(b, s)
		}
	case *Welcome:
		b = le.AppendUint16(b, m.Version)
		b = le.AppendUint64(b, m.Stream)
		b = appendParty(b, m.Party)
		b = le.AppendUint64(b, uint64(m.LastEpoch))
		b = append(b, m.LastDigest[:]...)
		b = appendString(b, m.Refused)
	case *Ack:
		b = le.AppendUint64(b, uint64(m.Epoch))
		b = append(b, m.Digest[:]...)
	case *Durable:
		b = le.AppendUint64(b, uint64(m.Epoch))
	case *Heartbeat:
		b = le.AppendUint64(b, uint64(m.Term))
		b = le.AppendUint64(b, m.Sequence)
	case *HigherTerm:
		b = le.AppendUint64(b, uint64(m.Term))
	case *DiskDigests:
		if len(m.Digests) > MaxDigestsPerMessage {
			return nil, fmt.Errorf("%w: %d digests in one message, at most %d", ErrLimit, len(m.Digests), MaxDigestsPerMessage)
		}
		b = append(b, m.Disk, boolByte(m.Last))
		b = le.AppendUint32(b, m.ChunkBytes)
		b = le.AppendUint64(b, m.First)
		b = le.AppendUint64(b, m.Zeros)
		b = le.AppendUint16(b, uint16(len(m.Digests)))
		for i := range m.Digests {
			b = append(b, m.Digests[i][:]...)
		}
	case *Received:
		for _, f := range m.Frames {
			if len(f.Data) > MaxFrameBytes {
				return nil, fmt.Errorf("%w: Ethernet frame of %d bytes", ErrLimit, len(f.Data))
			}
			b = appendFrame(b, f)
		}
		if len(b) > maxPayload {
			return nil, fmt.Errorf("%w: %d bytes of received frames in one message", ErrLimit, len(b))
		}
	case *Goodbye:
		b = appendString(b, m.Reason)
	case *PagesWanted, *PageCopy, *PagesLost, *PageSums:
		return appendPageMessage(b, m)
	default:
		return nil, fmt.Errorf("a %T can't be written as a message", m)
	}
	return b, nil
}

// parseMessage decodes the payload of a message frame. What it returns does not alias p.
func parseMessage(k frameKind, p []byte) (Message, error) {
	c := &cursor{b: p}
	switch k {
	case kindHello:
		m := &Hello{Version: c.u16(), Guest: c.str(), Term: pact.Term(c.u64()), Primary: c.party(), Replica: c.party(),
			Stream: c.u64(), RAMPages: c.u32(), Resume: c.u8() != 0, Boot: c.digest()}
		n := c.u8()
		if n > maxDisks {
			return nil, fmt.Errorf("%w: hello names %d disks", ErrLimit, n)
		}
		for range n {
			m.DiskSizes = append(m.DiskSizes, c.u64())
		}
		return m, c.end("hello")
	case kindWelcome:
		m := &Welcome{Version: c.u16(), Stream: c.u64(), Party: c.party(), LastEpoch: pact.Epoch(c.u64()), LastDigest: c.digest(), Refused: c.str()}
		return m, c.end("welcome")
	case kindAck:
		m := &Ack{Epoch: pact.Epoch(c.u64()), Digest: c.digest()}
		return m, c.end("ack")
	case kindDurable:
		m := &Durable{Epoch: pact.Epoch(c.u64())}
		return m, c.end("durable")
	case kindHeartbeat:
		m := &Heartbeat{Term: pact.Term(c.u64()), Sequence: c.u64()}
		return m, c.end("heartbeat")
	case kindHigherTerm:
		m := &HigherTerm{Term: pact.Term(c.u64())}
		return m, c.end("higher-term")
	case kindDiskDigests:
		m := &DiskDigests{Disk: c.u8(), Last: c.u8() != 0, ChunkBytes: c.u32(), First: c.u64(), Zeros: c.u64()}
		n := c.u16()
		if n > MaxDigestsPerMessage {
			return nil, fmt.Errorf("%w: %d digests in one message", ErrLimit, n)
		}
		if m.ChunkBytes == 0 {
			return nil, fmt.Errorf("%w: digests of empty chunks", ErrCorrupt)
		}
		m.Digests = make([]Digest, n)
		for i := range m.Digests {
			m.Digests[i] = c.digest()
		}
		return m, c.end("disk digests")
	case kindReceived:
		m := &Received{}
		for len(c.b) > 0 && !c.short {
			f, err := c.frame()
			if err != nil {
				return nil, err
			}
			m.Frames = append(m.Frames, f)
		}
		return m, c.end("received frames")
	case kindGoodbye:
		m := &Goodbye{Reason: c.str()}
		return m, c.end("goodbye")
	}
	return parsePageMessage(k, p)
}

func appendParty(b []byte, p pact.Party) []byte {
	return binary.LittleEndian.AppendUint64(appendString(b, p.Host), uint64(p.Incarnation))
}

func (c *cursor) party() pact.Party {
	return pact.Party{Host: c.str(), Incarnation: pact.Incarnation(c.u64())}
}

func appendFrame(b []byte, f Frame) []byte {
	b = binary.LittleEndian.AppendUint64(b, uint64(f.Epoch))
	b = append(b, f.NIC)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(f.Data)))
	return append(b, f.Data...)
}

// frame reads an Ethernet frame into memory of its own.
func (c *cursor) frame() (Frame, error) {
	f := Frame{Epoch: pact.Epoch(c.u64()), NIC: c.u8()}
	n := c.u32()
	if n > MaxFrameBytes {
		return f, fmt.Errorf("%w: Ethernet frame of %d bytes", ErrLimit, n)
	}
	f.Data = append([]byte(nil), c.bytes(uint64(n))...)
	return f, nil
}

func boolByte(v bool) byte {
	if v {
		return 1
	}
	return 0
}
