package checkpoint

import (
	"fmt"
	"io"
	"math"

	"github.com/zeebo/xxh3"

	"github.com/pollux-ha/pollux/cluster/pact"
)

// Reader reads one direction of a stream. Next returns messages as they come, also between the parts
// of an epoch, and an epoch as *Staged once it is whole and verified. It is used by one goroutine.
type Reader struct {
	frames frameReader
	base   Base // nil where no epochs may arrive
	limits Limits

	begun    bool       // the chain of epochs has a start
	last     pact.Epoch // newest whole epoch
	previous Digest
	state    []byte // of the newest whole epoch, which the next may be a delta to

	epoch      *Staged // under way
	hash       xxh3.Hasher128
	section    byte
	order      frameKind      // parts come in ascending order of kind
	background map[uint32]int // page index -> place in the epoch under way
	next       uint64         // smallest page index that the section may still bring
	writeBytes int64
	frameBytes int64
	unpacked   []byte

	lost  map[uint32]bool // pages of base that are of no use
	found map[uint32]bool // of those, what the epoch under way brings whole
}

// NewReader returns a Reader of r. base is the memory image that epochs apply to: each Staged must be
// applied to it before Next is called again. It is nil on the primary's side, where epochs are an error.
func NewReader(r io.Reader, base Base, limits Limits) *Reader {
	return &Reader{frames: frameReader{r: r}, base: base, limits: limits}
}

// Expect makes the next epoch follow last, whose digest is d. Without it the first epoch may have any
// number and must start a new chain. Deltas never reach back across streams.
func (r *Reader) Expect(last pact.Epoch, d Digest) {
	r.begun, r.last, r.previous = true, last, d
}

// Next returns the next message or whole epoch. io.EOF says that the peer closed the connection between
// two frames; an epoch that was under way is lost then, as it must be.
func (r *Reader) Next() (Message, error) {
	for {
		k, p, err := r.frames.next()
		if err != nil {
			return nil, err
		}
		if !k.ofEpoch() {
			return parseMessage(k, p)
		}
		staged, err := r.part(k, p)
		if err != nil {
			if r.epoch != nil {
				r.epoch.Release()
				r.epoch = nil
			}
			return nil, err
		}
		if staged != nil {
			return staged, nil
		}
	}
}

// Close drops the epoch that is under way, if there is one, and returns its memory.
func (r *Reader) Close() {
	if r.epoch != nil {
		r.epoch.Release()
		r.epoch = nil
	}
}

// part takes one part of an epoch; it returns the epoch with its last one.
func (r *Reader) part(k frameKind, p []byte) (*Staged, error) {
	if r.base == nil {
		return nil, fmt.Errorf("%w: an epoch where none may arrive", ErrCorrupt)
	}
	if k == kindEpochBegin {
		if err := r.beginEpoch(p); err != nil {
			return nil, err
		}
	}
	if r.epoch == nil {
		return nil, fmt.Errorf("%w: part of an epoch that has not begun", ErrCorrupt)
	}
	if k < r.order || k > kindEpochEnd {
		return nil, fmt.Errorf("%w: epoch part of kind %d after one of kind %d", ErrCorrupt, k, r.order)
	}
	r.order = k
	if k == kindEpochEnd {
		return r.endEpoch(p)
	}
	_, _ = r.hash.Write([]byte{byte(k)})
	_, _ = r.hash.Write(p)
	c := &cursor{b: p}
	switch k {
	case kindPages:
		return nil, r.pages(c)
	case kindState:
		return nil, r.machineState(c)
	case kindWrites:
		return nil, r.writes(c)
	case kindFrames:
		return nil, r.held(c)
	}
	return nil, nil
}

func (r *Reader) beginEpoch(p []byte) error {
	if r.epoch != nil {
		return fmt.Errorf("%w: epoch begins inside epoch %d", ErrCorrupt, r.epoch.Number)
	}
	c := &cursor{b: p}
	e := &Staged{Number: pact.Epoch(c.u64()), Term: pact.Term(c.u64()), Flags: Flags(c.u32()), Previous: c.digest()}
	if err := c.end("beginning of an epoch"); err != nil {
		return err
	}
	if e.Flags&^knownFlags != 0 {
		return fmt.Errorf("%w: epoch %d has unknown flags %#x", ErrVersion, e.Number, e.Flags)
	}
	if r.begun && e.Number != r.last+1 {
		return fmt.Errorf("%w: epoch %d where %d was due", ErrSequence, e.Number, r.last+1)
	}
	if e.Previous != r.previous {
		return fmt.Errorf("%w: epoch %d does not follow the epoch that this replica holds", ErrSequence, e.Number)
	}
	r.epoch = e
	r.order = kindEpochBegin
	r.section, r.next = sectionBackground, 0
	clear(r.background)
	clear(r.found)
	r.writeBytes, r.frameBytes = 0, 0
	r.hash.Reset()
	_, _ = r.hash.Write(r.previous[:])
	return nil
}

func (r *Reader) endEpoch(p []byte) (*Staged, error) {
	c := &cursor{b: p}
	sent := c.digest()
	if err := c.end("end of an epoch"); err != nil {
		return nil, err
	}
	e := r.epoch
	if e.Digest = Digest(r.hash.Sum128().Bytes()); e.Digest != sent {
		return nil, fmt.Errorf("%w: epoch %d has another digest than its sender says", ErrCorrupt, e.Number)
	}
	if e.State == nil {
		return nil, fmt.Errorf("%w: epoch %d has no machine state", ErrCorrupt, e.Number)
	}
	r.begun, r.last, r.previous = true, e.Number, e.Digest
	r.state = append(r.state[:0], e.State...)
	r.epoch = nil
	for page := range r.found {
		delete(r.lost, page)
	}
	e.Lost = r.Lost()
	return e, nil
}

func (r *Reader) pages(c *cursor) error {
	section, count := c.u8(), int(c.u16())
	if section > sectionDirty || section < r.section || count == 0 || count > batchPages {
		return fmt.Errorf("%w: batch of %d pages in section %d", ErrCorrupt, count, section)
	}
	if section != r.section {
		r.section, r.next = section, 0
	}
	body, err := unpack(c, &r.unpacked, maxBatchBytes)
	if err != nil {
		return err
	}
	c = &cursor{b: body}
	for range count {
		index, kind := c.u32(), c.u8()
		if c.short {
			break
		}
		if int64(index) >= int64(r.base.Pages()) {
			return fmt.Errorf("%w: page %d of a guest with %d pages", ErrCorrupt, index, r.base.Pages())
		}
		if uint64(index) < r.next {
			return fmt.Errorf("%w: page %d is out of order", ErrCorrupt, index)
		}
		r.next = uint64(index) + 1
		if err := r.page(c, index, kind); err != nil {
			return err
		}
	}
	return c.end("batch of pages")
}

func (r *Reader) page(c *cursor, index uint32, kind byte) error {
	// Where the delta's old content lies: in this epoch's background section, or in the image.
	old := -1
	if at, ok := r.background[index]; ok && r.section == sectionDirty {
		old = at
	}
	if r.section == sectionBackground {
		if r.background == nil {
			r.background = make(map[uint32]int)
		}
		r.background[index] = len(r.epoch.pages)
	}
	switch kind {
	case pageZero:
		r.epoch.addZero(index)
	case pageRaw:
		copy(r.epoch.add(index), c.bytes(PageSize))
	case pageDelta:
		n, sum := c.u16(), c.u64()
		delta := c.bytes(uint64(n))
		if c.short || old < 0 && r.lost[index] {
			return nil
		}
		page := r.epoch.add(index)
		if old >= 0 {
			copy(page, r.epoch.content(r.epoch.pages[old]))
		} else if !readPage(page, r.base, index) {
			r.epoch.takeBack()
			r.Lose(index)
			return nil
		}
		if err := applyDelta(page, delta); err != nil {
			return fmt.Errorf("page %d: %w", index, err)
		}
		if xxh3.Hash(page) != sum {
			return fmt.Errorf("%w: page %d differs from the primary's after its delta: the replica's image has diverged", ErrCorrupt, index)
		}
	default:
		return fmt.Errorf("%w: page %d has unknown kind %d", ErrCorrupt, index, kind)
	}
	if r.lost[index] {
		if r.found == nil {
			r.found = make(map[uint32]bool)
		}
		r.found[index] = true
	}
	return nil
}

func (r *Reader) machineState(c *cursor) error {
	size, delta := c.u32(), c.u8()
	if uint64(size) > uint64(r.limits.StateBytes) {
		return fmt.Errorf("%w: machine state of %d bytes, at most %d", ErrLimit, size, r.limits.StateBytes)
	}
	body, err := unpack(c, &r.unpacked, r.limits.StateBytes)
	if err != nil {
		return err
	}
	if r.epoch.State != nil {
		return fmt.Errorf("%w: machine state is there twice", ErrCorrupt)
	}
	switch {
	case delta == 0 && len(body) == int(size):
		r.epoch.State = append(make([]byte, 0, size), body...)
	case delta == 1 && len(r.state) == int(size):
		r.epoch.State = append(make([]byte, 0, size), r.state...)
		return applyDelta(r.epoch.State, body)
	default:
		return fmt.Errorf("%w: machine state of %d bytes does not fit its header", ErrCorrupt, size)
	}
	return nil
}

func (r *Reader) writes(c *cursor) error {
	body, err := unpack(c, &r.unpacked, maxPayload)
	if err != nil {
		return err
	}
	r.writeBytes += int64(len(body))
	body = append([]byte(nil), body...) // the writes refer to it and outlive the payload
	for c = (&cursor{b: body}); len(c.b) > 0 && !c.short; {
		if r.writeBytes += writeCost; r.writeBytes > r.limits.WriteBytes {
			return fmt.Errorf("%w: more than %d bytes of disk writes in one epoch", ErrLimit, r.limits.WriteBytes)
		}
		w, err := c.diskWrite()
		if err != nil {
			return err
		}
		r.epoch.Writes = append(r.epoch.Writes, w)
	}
	return c.end("disk writes")
}

func (c *cursor) diskWrite() (DiskWrite, error) {
	disk, kind := c.u8(), c.u8()
	w := DiskWrite{Disk: disk, Offset: int64(c.u64())}
	n := c.u64()
	if c.short {
		return w, nil // the caller's end says so
	}
	if w.Offset < 0 || n == 0 || n > uint64(math.MaxInt64-w.Offset) || kind > writeUnmap {
		return w, fmt.Errorf("%w: disk write of kind %d, %d bytes at %d", ErrCorrupt, kind, n, w.Offset)
	}
	if kind == writeData {
		w.Data = c.bytes(n)
	} else {
		w.Zeros, w.Unmap = int64(n), kind == writeUnmap
	}
	return w, nil
}

func (r *Reader) held(c *cursor) error {
	body, err := unpack(c, &r.unpacked, maxPayload)
	if err != nil {
		return err
	}
	if r.frameBytes += int64(len(body)); r.frameBytes > r.limits.OutputBytes {
		return fmt.Errorf("%w: more than %d bytes of frames in one epoch", ErrLimit, r.limits.OutputBytes)
	}
	for c = (&cursor{b: body}); len(c.b) > 0 && !c.short; {
		f, err := c.frame()
		if err != nil {
			return err
		}
		r.epoch.Frames = append(r.epoch.Frames, f)
	}
	return c.end("held frames")
}
