package virtio

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/pollux-ha/pollux/vmm/memory"
	"github.com/pollux-ha/pollux/vmm/pci"
	"github.com/pollux-ha/pollux/vmm/platform"
	"github.com/pollux-ha/pollux/vmm/platform/codec"
)

// Queues of a balloon (section 5.5.2). Those of features that a driver does not take stay unused.
const (
	balloonInflate = 0
	balloonDeflate = 1
	balloonStats   = 2
	balloonHint    = 3
	balloonReport  = 4

	balloonQueueSize = 128       // Linux reports pages in chains of 32
	balloonFree      = 256 << 20 // bytes of free pages in one chain; Linux has up to 128 MiB
	balloonChain     = 4096      // bytes of page numbers, or of statistics, taken from one chain
)

// Features (section 5.5.3). PAGE_POISON is not offered: a guest that wants freed pages to hold a pattern
// of its own then reports none.
const (
	balloonStatsVQ      = 1 << 1
	balloonDeflateOnOOM = 1 << 2
	balloonFreePageHint = 1 << 3
	balloonReporting    = 1 << 5
)

// Fields of the configuration (section 5.5.4), all u32.
const (
	balloonTarget = 0 // num_pages: what the host asks for
	balloonActual = 4 // what the driver has given
	balloonHintID = 8 // free_page_hint_cmd_id
	balloonConfig = 12

	// Command IDs of free page hints (section 5.5.6.6); those of a host's own begin with hintFirst.
	hintStop  = 0
	hintDone  = 1
	hintFirst = 2
)

// statsEvery is how often the guest is asked for its statistics at most: each time costs an epoch.
const statsEvery = 30 * time.Second

// BalloonStats are what the guest says of its memory, in bytes; 0: it has not said.
type BalloonStats struct{ Free, Total, Available, Caches uint64 }

// Balloon is a virtio balloon (section 5.5): memory that the guest gives back, because it is asked to
// (inflation) or because it has no use for it (reporting). Such a page is discarded: zero from then on,
// here and in the next checkpoint, and no memory to any host. A guest that takes one back finds zeros,
// which is no more than it may expect.
type Balloon struct {
	device
	chain chain
	pages []byte // of page numbers
	asked time.Time

	target, actual uint32 // pages of 4,096 bytes
	stats          BalloonStats
	held           bool   // the driver's statistics buffer waits here
	head           uint16 // of it
	hintID         uint32 // as the configuration shows it
	hinting        bool   // the driver hints under hintID

	hint     func(page, pages int) // nil: nobody wants hints
	lastHint uint32                // the newest ID of this device
	// discarded counts bytes since the device was made, for status.
	discarded uint64
}

// NewBalloon makes a balloon and puts it on the bus. It begins suspended, and deflated. The device lock is
// held.
func NewBalloon(p platform.Platform, h *pci.Host) (*Balloon, error) {
	b := &Balloon{pages: make([]byte, balloonChain), hintID: hintDone, chain: chain{limit: balloonFree}}
	const n = balloonQueueSize
	const features = balloonStatsVQ | balloonDeflateOnOOM | balloonFreePageHint | balloonReporting
	if err := b.attach(p, h, b, kindBalloon, 0, features, n, n, n, n, n); err != nil {
		return nil, err
	}
	return b, nil
}

// Close gives back what the device holds. The device lock is held.
func (b *Balloon) Close() error {
	b.close()
	return nil
}

// SetTarget asks the guest to give bytes of memory back, all in all. It does so as far and as soon as it
// can. The device lock is held.
func (b *Balloon) SetTarget(bytes uint64) error {
	pages := bytes / memory.PageSize
	if pages > uint64(b.p.RAM().Pages()) {
		return fmt.Errorf("a balloon of %d bytes in a guest with %d", bytes, b.p.RAM().Size())
	}
	if uint32(pages) != b.target {
		b.target = uint32(pages)
		b.configChanged()
	}
	return nil
}

// BalloonStatus says how a balloon is.
type BalloonStatus struct {
	Target, Actual uint64 // bytes that the guest is asked to give back, and that it has given
	Driver         bool   // the guest has a driver for it
	Discarded      uint64 // bytes that were given back to this host so far, some of them more than once
	Stats          BalloonStats
}

// Status tells, and has the guest asked for new statistics now and then. The device lock is held.
func (b *Balloon) Status() BalloonStatus {
	if now := time.Now(); b.held && b.running() && now.Sub(b.asked) >= statsEvery {
		b.asked = now
		b.giveBackStats()
	}
	return BalloonStatus{
		Target: uint64(b.target) * memory.PageSize, Actual: uint64(b.actual) * memory.PageSize,
		Driver: b.status&statusDriverOK != 0, Discarded: b.discarded, Stats: b.stats,
	}
}

// giveBackStats returns the driver's statistics buffer, which it fills anew (section 5.5.6.3).
func (b *Balloon) giveBackStats() {
	b.held = false
	if err := b.queues[balloonStats].push(b.head, 0); err != nil {
		b.needsReset()
		return
	}
	b.publish(balloonStats)
}

// Reset implements platform.Resetter. What an operator asked for stays.
func (b *Balloon) Reset() {
	b.device.Reset()
	b.actual, b.stats = 0, BalloonStats{}
}

func (b *Balloon) start() {}

func (b *Balloon) activate() error {
	if b.hint == nil && b.hintID != hintDone {
		// Whoever asked was on another host. The guest gets its free pages back.
		b.hintID = hintDone
		b.configChanged()
	}
	return nil
}

func (b *Balloon) suspend() {}

func (b *Balloon) reset() {
	b.held, b.hinting = false, false
	b.hintID, b.hint = hintDone, nil
}

func (b *Balloon) config() []byte {
	c := make([]byte, balloonConfig)
	binary.LittleEndian.PutUint32(c[balloonTarget:], b.target)
	binary.LittleEndian.PutUint32(c[balloonActual:], b.actual)
	binary.LittleEndian.PutUint32(c[balloonHintID:], b.hintID)
	return c
}

// writeConfig takes how far the driver has come.
func (b *Balloon) writeConfig(off uint64, data []byte) {
	if off == balloonActual && len(data) == 4 {
		b.actual = min(binary.LittleEndian.Uint32(data), uint32(b.p.RAM().Pages()))
	}
}

func (b *Balloon) kick(i int) {
	switch i {
	case balloonInflate:
		b.serve(i, &b.chain, b.inflate)
	case balloonDeflate:
		// The pages are zero, and are memory as soon as they are touched.
		b.serve(i, &b.chain, func(*chain) uint32 { return 0 })
	case balloonStats:
		b.takeStats()
	case balloonHint:
		b.serve(i, &b.chain, b.takeHint)
	case balloonReport:
		b.serve(i, &b.chain, b.report)
	}
}

// inflate discards the pages whose numbers the driver gives.
func (b *Balloon) inflate(c *chain) uint32 {
	p := b.pages[:c.read(b.p.RAM(), 0, b.pages)]
	var first, n uint64 // a run of pages, which Linux gives in either direction
	for ; len(p) >= 4; p = p[4:] {
		page := uint64(binary.LittleEndian.Uint32(p))
		switch {
		case n > 0 && page == first+n:
			n++
		case n > 0 && page+1 == first:
			first, n = page, n+1
		default:
			b.discard(first, n)
			first, n = page, 1
		}
	}
	b.discard(first, n)
	return 0
}

// discard gives pages, by their number in the guest's address space, back to the host. What is no RAM is
// left alone.
func (b *Balloon) discard(first, n uint64) {
	if n > 0 && b.p.RAM().Discard(first*memory.PageSize, n*memory.PageSize) == nil {
		b.discarded += n * memory.PageSize
	}
}

// report discards the free pages that the driver names by the buffers of a chain, and may have them back
// when the chain is used (section 5.5.6.7).
func (b *Balloon) report(c *chain) uint32 {
	for _, s := range c.in {
		if first, n := wholePages(s); n > 0 {
			b.discard(first, n)
		}
	}
	return 0
}

// wholePages is the part of a buffer that consists of whole pages, by their number.
func wholePages(s segment) (first, n uint64) {
	first = (s.addr + memory.PageSize - 1) / memory.PageSize
	end := (s.addr + uint64(s.len)) / memory.PageSize
	return first, max(end, first) - first
}

// takeStats keeps the newest buffer with statistics, whose content counts.
func (b *Balloon) takeStats() {
	q := &b.queues[balloonStats]
	for {
		ok, err := q.pop(&b.chain)
		if err == nil && !ok {
			if ok, err = q.arm(); ok {
				continue
			}
		}
		if err != nil {
			b.needsReset()
			return
		}
		if !ok {
			return
		}
		if b.held { // there should be one only
			b.giveBackStats()
		}
		b.held, b.head = true, b.chain.head
		b.readStats(b.pages[:b.chain.read(b.p.RAM(), 0, b.pages)])
	}
}

// readStats reads pairs of tag u16 and value u64 (section 5.5.6.4).
func (b *Balloon) readStats(p []byte) {
	const pair = 10
	for ; len(p) >= pair; p = p[pair:] {
		v := binary.LittleEndian.Uint64(p[2:])
		switch binary.LittleEndian.Uint16(p) {
		case 4:
			b.stats.Free = v
		case 5:
			b.stats.Total = v
		case 6:
			b.stats.Available = v
		case 7:
			b.stats.Caches = v
		}
	}
}

func (b *Balloon) save(p []byte) []byte {
	le := binary.LittleEndian
	p = le.AppendUint32(p, b.target)
	p = le.AppendUint32(p, b.actual)
	for _, v := range [...]uint64{b.stats.Free, b.stats.Total, b.stats.Available, b.stats.Caches} {
		p = le.AppendUint64(p, v)
	}
	p = codec.AppendBool(p, b.held)
	p = le.AppendUint16(p, b.head)
	p = le.AppendUint32(p, b.hintID)
	return codec.AppendBool(p, b.hinting)
}

func (b *Balloon) load(r *codec.Reader, queues []queue) (apply func()) {
	target, actual := r.U32(), r.U32()
	stats := BalloonStats{Free: r.U64(), Total: r.U64(), Available: r.U64(), Caches: r.U64()}
	held, head, hintID, hinting := r.Bool(), r.U16(), r.U32(), r.Bool()
	if pages := uint32(b.p.RAM().Pages()); target > pages || actual > pages {
		r.Failf("a balloon of %d pages, %d wanted, in a guest of %d", actual, target, pages)
	}
	if q := &queues[balloonStats]; held && (!q.enabled || head >= q.size) {
		r.Failf("statistics in chain %d", head)
	}
	return func() {
		b.target, b.actual, b.stats = target, actual, stats
		b.held, b.head, b.hintID, b.hinting = held, head, hintID, hinting
		b.hint = nil // whoever wanted hints was on the other host
		b.lastHint = max(b.lastHint, hintID)
	}
}
