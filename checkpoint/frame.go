package checkpoint

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"sync"
	"time"
)

// A frame on the wire, little endian:
//
//	magic "PXCP" u32 | kind u8 | version u8 | flags u16 = 0 | length u32 | sequence u64 |
//	crc32c of the payload u32 | crc32c of the 24 bytes before u32 | payload
//
// The sequence counts the frames of one direction from 0: a frame that was replayed, left out or
// reordered is noticed even where all checksums are right.
const (
	frameMagic      = 0x50435850 // "PXCP"
	frameHeaderSize = 28
	// maxPayload bounds one frame; encoders split before this.
	maxPayload = 4 << 20
)

type frameKind uint8

const (
	kindHello frameKind = iota + 1
	kindWelcome
	kindAck
	kindDurable
	kindHeartbeat
	kindHigherTerm
	kindDiskDigests
	kindReceived
	kindGoodbye
	kindEpochBegin
	kindPages
	kindState
	kindWrites
	kindFrames
	kindEpochEnd
	kindPagesWanted
	kindPageCopy
	kindPagesLost
	kindPageSums
)

// ofEpoch says that a frame is a part of an epoch, and not a message.
func (k frameKind) ofEpoch() bool { return k >= kindEpochBegin && k <= kindEpochEnd }

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// flushBytes is how much a Writer gathers before it hands it to the connection: some TLS records.
const flushBytes = 64 << 10

// Writer writes frames to a connection. Its methods may be called from several goroutines; frames
// are never torn.
type Writer struct {
	mu       sync.Mutex
	w        io.Writer
	buf      []byte
	sequence uint64
	bytes    uint64
	sending  time.Duration
	err      error
}

// NewWriter returns a Writer on w. Errors of w stick: after one, every call returns it.
func NewWriter(w io.Writer) *Writer {
	return &Writer{w: w, buf: make([]byte, 0, flushBytes+frameHeaderSize+4096)}
}

// Write sends a message and flushes.
func (w *Writer) Write(m Message) error {
	payload, err := appendMessage(nil, m)
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.frame(m.kind(), payload)
	return w.flush()
}

// part adds an epoch's part without forcing it out.
func (w *Writer) part(k frameKind, payload []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.frame(k, payload)
	if len(w.buf) >= flushBytes {
		return w.flush()
	}
	return w.err
}

// end adds an epoch's last part and flushes.
func (w *Writer) end(payload []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.frame(kindEpochEnd, payload)
	return w.flush()
}

// frame appends one frame to the buffer; w.mu is held.
func (w *Writer) frame(k frameKind, payload []byte) {
	at := len(w.buf)
	w.buf = binary.LittleEndian.AppendUint32(w.buf, frameMagic)
	w.buf = append(w.buf, byte(k), Version, 0, 0)
	w.buf = binary.LittleEndian.AppendUint32(w.buf, uint32(len(payload)))
	w.buf = binary.LittleEndian.AppendUint64(w.buf, w.sequence)
	w.buf = binary.LittleEndian.AppendUint32(w.buf, crc32.Checksum(payload, castagnoli))
	w.buf = binary.LittleEndian.AppendUint32(w.buf, crc32.Checksum(w.buf[at:], castagnoli))
	w.buf = append(w.buf, payload...)
	w.sequence++
	w.bytes += uint64(frameHeaderSize + len(payload))
}

// flush hands the buffer to the connection; w.mu is held.
func (w *Writer) flush() error {
	if w.err == nil && len(w.buf) > 0 {
		start := time.Now()
		if _, err := w.w.Write(w.buf); err != nil {
			w.err = fmt.Errorf("write to the checkpoint stream: %w", err)
		}
		w.sending += time.Since(start)
	}
	w.buf = w.buf[:0]
	return w.err
}

// totals returns the bytes framed and the time spent in Write calls so far.
func (w *Writer) totals() (uint64, time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.bytes, w.sending
}

// frameReader reads frames from a connection and checks all that a frame says of itself.
type frameReader struct {
	r        io.Reader
	sequence uint64
	header   [frameHeaderSize]byte
	payload  []byte
}

// next returns the next frame; its payload is valid until the next call.
func (f *frameReader) next() (frameKind, []byte, error) {
	if _, err := io.ReadFull(f.r, f.header[:]); err != nil {
		if err == io.ErrUnexpectedEOF {
			return 0, nil, fmt.Errorf("checkpoint stream ends inside a frame header: %w", err)
		}
		return 0, nil, err // io.EOF between frames is an orderly close of the connection
	}
	h := f.header[:]
	if binary.LittleEndian.Uint32(h) != frameMagic {
		return 0, nil, fmt.Errorf("%w: no frame starts here (magic %#x)", ErrCorrupt, h[:4])
	}
	if crc32.Checksum(h[:24], castagnoli) != binary.LittleEndian.Uint32(h[24:]) {
		return 0, nil, fmt.Errorf("%w: frame header checksum mismatch", ErrCorrupt)
	}
	if h[5] != Version {
		return 0, nil, fmt.Errorf("%w: peer speaks %d, this program %d: run the same release on both hosts", ErrVersion, h[5], Version)
	}
	if h[6] != 0 || h[7] != 0 {
		return 0, nil, fmt.Errorf("%w: unknown frame flags %#x", ErrCorrupt, h[6:8])
	}
	size := binary.LittleEndian.Uint32(h[8:])
	if size > maxPayload {
		return 0, nil, fmt.Errorf("%w: frame of %d bytes, at most %d", ErrLimit, size, maxPayload)
	}
	if got := binary.LittleEndian.Uint64(h[12:]); got != f.sequence {
		return 0, nil, fmt.Errorf("%w: frame %d where %d was due", ErrSequence, got, f.sequence)
	}
	f.sequence++
	if cap(f.payload) < int(size) {
		f.payload = make([]byte, max(int(size), 64<<10))
	}
	p := f.payload[:size]
	if _, err := io.ReadFull(f.r, p); err != nil {
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return 0, nil, fmt.Errorf("checkpoint stream ends inside a frame: %w", io.ErrUnexpectedEOF)
		}
		return 0, nil, err
	}
	if crc32.Checksum(p, castagnoli) != binary.LittleEndian.Uint32(h[20:]) {
		return 0, nil, fmt.Errorf("%w: frame payload checksum mismatch", ErrCorrupt)
	}
	return frameKind(h[4]), p, nil
}
