package checkpoint

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/zeebo/xxh3"
)

// Parts of an epoch, in this order on the wire: one begin, pages of the background section, pages of
// the dirty section, state, writes, frames, one end.
const (
	sectionBackground = 0
	sectionDirty      = 1

	pageZero  = 0 // all zero
	pageRaw   = 1 // PageSize bytes follow
	pageDelta = 2 // length u16, XXH3-64 of the resulting page u64, word-run delta

	writeData  = 0 // the bytes follow
	writeZeros = 1
	writeUnmap = 2 // zeros, their space given back
	// writeCost is what a disk write counts in Limits.WriteBytes beside its bytes on the wire.
	writeCost = 64

	// batchPages is how many pages share one frame and one S2 block.
	batchPages    = 64
	maxBatchBytes = batchPages * (PageSize + 16)
	// maxPartBytes is where disk writes and frames are split into several parts.
	maxPartBytes = 1 << 20
)

// EncoderConfig sizes an Encoder.
type EncoderConfig struct {
	CachePages int // pages whose content sent last is kept for deltas
}

// DefaultCachePages is 64 MiB worth of pages.
const DefaultCachePages = 64 << 20 / PageSize

// Encoder turns epochs into frames. It keeps what deltas refer to, so one Encoder belongs to one
// stream at a time. It is used by one goroutine.
type Encoder struct {
	cache    *pageCache
	previous Digest
	state    []byte // sent last

	hash                xxh3.Hasher128
	body, payload       []byte
	pages, writes, held packer
}

// NewEncoder makes an Encoder for a fresh stream.
func NewEncoder(cfg EncoderConfig) *Encoder {
	return &Encoder{cache: newPageCache(cfg.CachePages)}
}

// Reset prepares for a new stream: all deltas' references are forgotten, and the chain of digests
// goes on from previous: the zero Digest for a fresh stream, Welcome.LastDigest for a resumed one.
func (e *Encoder) Reset(previous Digest) {
	e.cache.clear()
	e.state = e.state[:0]
	e.previous = previous
}

// Forget makes the next epoch that a page is in carry it whole: the replica's copy of it is of no use.
func (e *Encoder) Forget(page uint32) { e.cache.drop(page) }

// Encode sends an epoch. After an error the stream must be closed and the Encoder Reset.
func (e *Encoder) Encode(w *Writer, ep *Epoch) (Stats, error) {
	if len(ep.Data) != len(ep.Pages)*PageSize {
		return Stats{}, fmt.Errorf("epoch %d: %d pages with %d bytes of data", ep.Number, len(ep.Pages), len(ep.Data))
	}
	st := Stats{Pages: len(ep.Pages) + len(ep.Zero), Background: len(ep.Background)}
	start := time.Now()
	bytes, sending := w.totals()

	e.hash.Reset()
	_, _ = e.hash.Write(e.previous[:]) // a Hasher's Write can't fail

	if err := e.part(w, kindEpochBegin, e.begin(ep)); err != nil {
		return st, err
	}
	if err := e.background(w, ep.Background, &st); err != nil {
		return st, err
	}
	if err := e.dirty(w, ep, &st); err != nil {
		return st, err
	}
	if err := e.machineState(w, ep.State); err != nil {
		return st, err
	}
	if err := e.diskWrites(w, ep.Writes); err != nil {
		return st, err
	}
	if err := e.heldFrames(w, ep.Frames); err != nil {
		return st, err
	}
	st.Digest = Digest(e.hash.Sum128().Bytes())
	e.previous = st.Digest
	if err := w.end(st.Digest[:]); err != nil {
		return st, err
	}

	bytesAfter, sendingAfter := w.totals()
	st.WireBytes, st.Send = bytesAfter-bytes, sendingAfter-sending
	st.Encode = time.Since(start) - st.Send
	return st, nil
}

// part sends one part and adds it to the digest.
func (e *Encoder) part(w *Writer, k frameKind, payload []byte) error {
	_, _ = e.hash.Write([]byte{byte(k)})
	_, _ = e.hash.Write(payload)
	return w.part(k, payload)
}

func (e *Encoder) begin(ep *Epoch) []byte {
	le := binary.LittleEndian
	b := le.AppendUint64(e.payload[:0], uint64(ep.Number))
	b = le.AppendUint64(b, uint64(ep.Term))
	b = le.AppendUint32(b, uint32(ep.Flags))
	b = append(b, e.previous[:]...)
	e.payload = b
	return b
}

// background sends the pages of a full synchronization. They don't enter the cache, which belongs to
// pages that change, but they replace what it holds of them.
func (e *Encoder) background(w *Writer, pages []Page, st *Stats) error {
	e.body = e.body[:0]
	n := 0
	for i, p := range pages {
		if len(p.Data) != PageSize {
			return fmt.Errorf("background page %d has %d bytes", p.Index, len(p.Data))
		}
		if isZero(p.Data) {
			e.body = appendPage(e.body, p.Index, pageZero)
			st.Zero++
		} else {
			e.body = append(appendPage(e.body, p.Index, pageRaw), p.Data...)
			st.Raw++
		}
		if old := e.cache.get(p.Index); old != nil {
			copy(old, p.Data)
		}
		if n++; n == batchPages || i == len(pages)-1 {
			if err := e.batch(w, sectionBackground, n); err != nil {
				return err
			}
			n = 0
		}
	}
	return nil
}

func (e *Encoder) dirty(w *Writer, ep *Epoch, st *Stats) error {
	e.body = e.body[:0]
	n, next := 0, uint64(0)
	for pages, zero, data := ep.Pages, ep.Zero, ep.Data; len(pages)+len(zero) > 0; {
		isZero := len(pages) == 0 || len(zero) > 0 && zero[0] < pages[0]
		from := &pages
		if isZero {
			from = &zero
		}
		index := (*from)[0]
		*from = (*from)[1:]
		if uint64(index) < next {
			return fmt.Errorf("epoch %d: dirty pages are not in ascending order", ep.Number)
		}
		next = uint64(index) + 1
		switch {
		case isZero:
			e.zeroPage(index, st)
			n++
		default:
			if e.dirtyPage(index, data[:PageSize], st) {
				n++
			}
			data = data[PageSize:]
		}
		if n == batchPages {
			if err := e.batch(w, sectionDirty, n); err != nil {
				return err
			}
			n = 0
		}
	}
	if n > 0 {
		return e.batch(w, sectionDirty, n)
	}
	return nil
}

// zeroPage appends the entry of a page that is known to be zero.
func (e *Encoder) zeroPage(index uint32, st *Stats) {
	e.body = appendPage(e.body, index, pageZero)
	st.Zero++
	if old := e.cache.get(index); old != nil {
		clear(old)
	}
}

// dirtyPage appends one page's entry to the batch, in the cheapest form. It reports false where the
// page is as it was when it was sent last, and nothing needs to be sent.
func (e *Encoder) dirtyPage(index uint32, page []byte, st *Stats) bool {
	old := e.cache.get(index)
	if old != nil {
		at := len(e.body)
		b := appendPage(e.body, index, pageDelta)
		b = append(b, make([]byte, 10)...)
		header := len(b)
		b, ok := appendDelta(b, old, page, maxPageDelta)
		if ok {
			delta := b[header:]
			if len(delta) == 0 {
				e.body = b[:at]
				st.Unchanged++
				return false
			}
			binary.LittleEndian.PutUint16(b[header-10:], uint16(len(delta)))
			binary.LittleEndian.PutUint64(b[header-8:], xxh3.Hash(page))
			if err := applyDelta(old, delta); err != nil {
				panic(err) // our own delta, made against this very page
			}
			e.body = b
			st.Delta++
			return true
		}
		e.body = b[:at]
	}
	if isZero(page) {
		e.body = appendPage(e.body, index, pageZero)
		st.Zero++
	} else {
		e.body = append(appendPage(e.body, index, pageRaw), page...)
		st.Raw++
	}
	if old != nil {
		copy(old, page)
	} else {
		e.cache.put(index, page)
	}
	return true
}

func appendPage(b []byte, index uint32, kind byte) []byte {
	return append(binary.LittleEndian.AppendUint32(b, index), kind)
}

// batch sends the n page entries gathered in e.body.
func (e *Encoder) batch(w *Writer, section byte, n int) error {
	b := append(e.payload[:0], section)
	b = binary.LittleEndian.AppendUint16(b, uint16(n))
	e.payload = e.pages.append(b, e.body)
	e.body = e.body[:0]
	return e.part(w, kindPages, e.payload)
}

// machineState sends the state, as a delta where it has the length of the one sent last.
func (e *Encoder) machineState(w *Writer, state []byte) error {
	b := binary.LittleEndian.AppendUint32(e.payload[:0], uint32(len(state)))
	whole := true
	if len(state) == len(e.state) && len(state)%wordBytes == 0 && len(state) > 0 {
		if delta, ok := appendDelta(e.body[:0], e.state, state, len(state)/2); ok {
			e.body, whole = delta, false
		}
	}
	// State changes little and compresses well, and there is one a checkpoint: always try.
	var p packer
	p.buf = e.pages.buf
	if whole {
		b = p.append(append(b, 0), state)
	} else {
		b = p.append(append(b, 1), e.body)
	}
	e.pages.buf = p.buf
	e.payload, e.body = b, e.body[:0]
	e.state = append(e.state[:0], state...)
	return e.part(w, kindState, b)
}

func (e *Encoder) diskWrites(w *Writer, writes []DiskWrite) error {
	body := e.body[:0]
	add := func(wr *DiskWrite, kind byte, off, n int64, data []byte) error {
		if len(body) > 0 && len(body)+len(data) > maxPartBytes {
			if err := e.blob(w, kindWrites, &e.writes, body); err != nil {
				return err
			}
			body = body[:0]
		}
		body = binary.LittleEndian.AppendUint64(append(body, wr.Disk, kind), uint64(off))
		body = append(binary.LittleEndian.AppendUint64(body, uint64(n)), data...)
		return nil
	}
	for i := range writes {
		wr := &writes[i]
		if wr.Zeros > 0 {
			kind := byte(writeZeros)
			if wr.Unmap {
				kind = writeUnmap
			}
			if err := add(wr, kind, wr.Offset, wr.Zeros, nil); err != nil {
				return err
			}
		}
		for off, rest := wr.Offset, wr.Data; len(rest) > 0; {
			n := min(len(rest), maxPartBytes)
			if err := add(wr, writeData, off, int64(n), rest[:n]); err != nil {
				return err
			}
			off, rest = off+int64(n), rest[n:]
		}
	}
	e.body = body
	return e.lastBlob(w, kindWrites, &e.writes)
}

func (e *Encoder) heldFrames(w *Writer, frames []Frame) error {
	body := e.body[:0]
	for _, f := range frames {
		if len(f.Data) > MaxFrameBytes {
			return fmt.Errorf("%w: Ethernet frame of %d bytes", ErrLimit, len(f.Data))
		}
		if len(body) > 0 && len(body)+len(f.Data) > maxPartBytes {
			if err := e.blob(w, kindFrames, &e.held, body); err != nil {
				return err
			}
			body = body[:0]
		}
		body = appendFrame(body, f)
	}
	e.body = body
	return e.lastBlob(w, kindFrames, &e.held)
}

// lastBlob sends what is left in e.body, if anything.
func (e *Encoder) lastBlob(w *Writer, k frameKind, p *packer) error {
	defer func() { e.body = e.body[:0] }()
	if len(e.body) == 0 {
		return nil
	}
	return e.blob(w, k, p, e.body)
}

func (e *Encoder) blob(w *Writer, k frameKind, p *packer, body []byte) error {
	e.payload = p.append(e.payload[:0], body)
	return e.part(w, k, e.payload)
}

// isZero reports that all bytes of p, whose length is a multiple of 64, are zero.
func isZero(p []byte) bool {
	le := binary.LittleEndian
	for ; len(p) >= 64; p = p[64:] {
		q := p[:64:64]
		if le.Uint64(q[0:])|le.Uint64(q[8:])|le.Uint64(q[16:])|le.Uint64(q[24:])|
			le.Uint64(q[32:])|le.Uint64(q[40:])|le.Uint64(q[48:])|le.Uint64(q[56:]) != 0 {
			return false
		}
	}
	return true
}
