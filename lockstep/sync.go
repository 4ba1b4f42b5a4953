package lockstep

import (
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"sync"
	"time"

	"github.com/zeebo/xxh3"

	"github.com/pollux-ha/pollux/checkpoint"
	"github.com/pollux-ha/pollux/vmm/blockfile"
	"github.com/pollux-ha/pollux/vmm/memory"
)

const (
	fillChunk    = 32      // pages copied between two looks at the lock: some tens of microseconds
	fillSlabs    = 3       // one being filled, one being sent, one to spare
	copySpan     = 1 << 20 // bytes of one CopyDisk
	copyAtOnce   = 4 << 20 // bytes asked for and not reported yet
	copyPatience = 3 * time.Second
	maxChunk     = 64 << 20 // bytes of a chunk that a replica may digest
)

// fill is a full synchronization: memory and disks are copied while the guest runs.
//
// What the guest writes is recorded before anything is copied, and a page copied between two
// captures travels in the later one's Background: older than that epoch's own dirty pages, which are
// applied after it, and never older than what an earlier epoch has brought. Disk blocks are copied by
// the disk's own worker, in order with the guest's writes.
//
// Its mutex is taken after the Engine's, never before.
type fill struct {
	e    *Engine
	s    *stream
	ram  *memory.RAM
	wake chan struct{}

	forget bool // guarded by the Engine's mutex: the next pause starts the record of written pages

	mu      sync.Mutex
	begun   bool
	pages   pageSet // not copied yet, and not sent as dirty since
	cursor  int
	list    []checkpoint.Page // copied, for the next epoch
	slab    []byte            // in which list's pages lie
	spare   [][]byte
	made    int // slabs
	disks   []fillDisk
	total   uint64
	left    uint64 // bytes of disks that have not been found equal or copied
	over    bool
	free    []pageRun     // hinted by the guest
	voided  bool          // hints are worth nothing any more
	hole    pageRun       // found in the RAM file: no memory
	used    pageRun       // and memory
	touched time.Duration // last progress of a disk copy
}

// fillDisk is the state of one disk's comparison and copying.
type fillDisk struct {
	size       int64
	chunkBytes int64
	next       uint64 // chunk whose digest comes next
	last       bool   // all digests are there
	compare    []chunkDigest
	todo       []span
	jobs       []span // asked for; from moves on as the worker reports
}

// chunkDigest is what the replica says of a chunk, or of zeros whole chunks that hold nothing else.
type chunkDigest struct {
	chunk uint64
	sum   checkpoint.Digest
	zeros uint64
}

// sparse is a Disk that knows its holes: NextData is the offset of the first byte from offset on that may
// not be zero.
type sparse interface{ NextData(offset int64) int64 }

// fixed is a Disk that may be one that is never written to. It can't be copied: operators put the same image on
// both hosts.
type fixed interface{ Fixed() bool }

// span is a range of a disk, in bytes.
type span struct{ from, to int64 }

func newFill(e *Engine, s *stream) *fill {
	f := &fill{e: e, s: s, ram: e.cfg.Machine.RAM(), wake: make(chan struct{}, 1), forget: true}
	f.total = f.ram.Size()
	for _, d := range e.cfg.Disks {
		f.disks = append(f.disks, fillDisk{size: d.Size()})
		f.total += uint64(d.Size())
		f.left += uint64(d.Size())
	}
	return f
}

// begin is called in the pause in which the record of written pages starts.
func (f *fill) begin() {
	f.forget = false
	f.mu.Lock()
	defer f.mu.Unlock()
	f.begun = true
	f.pages.fill(f.ram.Pages())
	f.poke()
}

func (f *fill) poke() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// full reports that what was copied should travel now.
func (f *fill) full() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case len(f.list) >= f.e.cfg.FillPages:
		return true
	case !f.begun:
		return false
	case len(f.list) > 0:
		return f.pages.next(f.cursor) < 0
	}
	return f.pages.left == 0 && f.disksDone()
}

// take gives the copied pages to the epoch that is being captured.
func (f *fill) take() ([]checkpoint.Page, []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	list, slab := f.list, f.slab
	f.list, f.slab = nil, nil
	f.poke()
	return list, slab
}

// untake takes them back: they have not travelled, and are too old by now. They may have been written since they
// were copied, so hints of free pages are worth nothing from now on.
func (f *fill) untake(list []checkpoint.Page, slab []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.free, f.voided = nil, true
	for _, p := range list {
		w := &f.pages.words[p.Index/64]
		if *w&(1<<(p.Index%64)) == 0 {
			*w |= 1 << (p.Index % 64)
			f.pages.left++
		}
	}
	if slab != nil {
		f.spare = append(f.spare, slab)
	}
}

// giveBack returns the memory of pages that have been sent.
func (f *fill) giveBack(slab []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.spare = append(f.spare, slab)
	f.poke()
}

// sealed takes the pages that an epoch carries as dirty off the list, and reports whether the replica
// will have been sent everything with it.
func (f *fill) sealed(dirty, zero []uint32) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.begun {
		return false
	}
	if f.pages.left > 0 {
		for _, p := range dirty {
			f.pages.remove(int(p))
		}
		for _, p := range zero {
			f.pages.remove(int(p))
		}
	}
	if f.pages.left > 0 || len(f.list) > 0 || !f.disksDone() {
		return false
	}
	f.over = true
	f.poke()
	return true
}

func (f *fill) disksDone() bool {
	for i := range f.disks {
		d := &f.disks[i]
		if !d.last || len(d.compare) > 0 || len(d.todo) > 0 || len(d.jobs) > 0 {
			return false
		}
	}
	return true
}

func (f *fill) progress() (total, done uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	left := f.left
	if f.begun {
		left += uint64(f.pages.left) * checkpoint.PageSize
	} else {
		left += f.ram.Size()
	}
	return f.total, f.total - min(left, f.total)
}

// work is the filler's goroutine.
func (f *fill) work() {
	// A page that the hardware can't read must not take the process down with it.
	debug.SetPanicOnFault(true)
	defer f.endHints()
	f.e.mu.Lock()
	f.e.kick() // for the pause in which it begins
	f.e.mu.Unlock()
	var buf []byte
	for {
		select {
		case <-f.wake:
		case <-f.s.closed:
			return
		}
		for {
			pages, err := f.copyPages()
			compared := false
			if err == nil {
				compared, err = f.compareOne(&buf)
			}
			if err != nil {
				f.e.mu.Lock()
				f.s.fail(err)
				f.e.mu.Unlock()
				return
			}
			asked := f.askCopy()
			f.mu.Lock()
			over := f.over
			f.mu.Unlock()
			if over {
				return
			}
			if f.full() {
				f.e.mu.Lock()
				f.e.kick()
				f.e.mu.Unlock()
			}
			if !pages && !compared && !asked {
				break
			}
			select {
			case <-f.s.closed:
				return
			default:
			}
		}
	}
}

// zeroPage stands for every page of zeros.
var zeroPage = make([]byte, checkpoint.PageSize)

// copyPages copies a few pages of those that are left; false: there is no room, or nothing is left.
func (f *fill) copyPages() (did bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.pages.left == 0 || len(f.list) >= f.e.cfg.FillPages {
		return false, nil
	}
	if f.slab == nil {
		switch n := len(f.spare); {
		case n > 0:
			f.slab = f.spare[n-1][:0]
			f.spare = f.spare[:n-1]
		case f.made < fillSlabs:
			f.made++
			f.slab = make([]byte, 0, f.e.cfg.FillPages*checkpoint.PageSize)
		default:
			return false, nil
		}
	}
	page := 0
	defer func() {
		if r := recover(); r != nil {
			if _, bad := r.(interface{ Addr() uintptr }); !bad {
				panic(r)
			}
			err = fmt.Errorf("page %d of guest memory can't be read", page)
			if m, ok := f.e.cfg.Machine.(mender); ok {
				m.FoundDamaged(page)
			}
		}
	}()
	for range fillChunk {
		if page = f.pages.next(f.cursor); page < 0 {
			// Pages behind the cursor were put back by a capture that failed. They begin a list of their
			// own: a list is in ascending order.
			if page = f.pages.next(0); page < 0 || len(f.list) > 0 {
				break
			}
		}
		if len(f.list) == f.e.cfg.FillPages {
			break
		}
		did = true
		f.cursor = page + 1
		data := f.content(page)
		if data != nil {
			at := len(f.slab)
			f.slab = append(f.slab, data...)
			data = f.slab[at:len(f.slab):len(f.slab)]
		}
		f.list = append(f.list, background(page, data))
		f.pages.remove(page)
	}
	return did, nil
}

func isZero(p []byte) bool {
	return string(p) == string(zeroPage) // compiles to a comparison without copies
}

// digests takes what the replica says of its disk copy.
func (f *fill) digests(m *checkpoint.DiskDigests) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if int(m.Disk) >= len(f.disks) {
		return fmt.Errorf("digests of disk %d, the guest has %d", m.Disk, len(f.disks))
	}
	d := &f.disks[m.Disk]
	if d.chunkBytes == 0 {
		d.chunkBytes = int64(m.ChunkBytes)
	}
	switch {
	case m.ChunkBytes > maxChunk || m.ChunkBytes%512 != 0 || int64(m.ChunkBytes) != d.chunkBytes:
		return fmt.Errorf("digests of disk %d with chunks of %d bytes", m.Disk, m.ChunkBytes)
	case d.last || m.First != d.next:
		return fmt.Errorf("digests of disk %d from chunk %d on, %d is due", m.Disk, m.First, d.next)
	}
	chunks := uint64((d.size + d.chunkBytes - 1) / d.chunkBytes)
	if m.Zeros > uint64(d.size/d.chunkBytes)-min(d.next, uint64(d.size/d.chunkBytes)) {
		return fmt.Errorf("zeros beyond the end of disk %d", m.Disk)
	}
	if m.Zeros > 0 {
		d.compare = append(d.compare, chunkDigest{chunk: d.next, zeros: m.Zeros})
		d.next += m.Zeros
	}
	for _, sum := range m.Digests {
		if d.next >= chunks {
			return fmt.Errorf("digests of disk %d beyond its end", m.Disk)
		}
		d.compare = append(d.compare, chunkDigest{chunk: d.next, sum: sum})
		d.next++
	}
	if m.Last {
		if d.next != chunks {
			return fmt.Errorf("digests of disk %d end at chunk %d of %d", m.Disk, d.next, chunks)
		}
		d.last = true
	}
	f.poke()
	return nil
}

// compareOne compares one chunk with the replica's.
func (f *fill) compareOne(buf *[]byte) (bool, error) {
	disk, c, d := -1, chunkDigest{}, (*fillDisk)(nil)
	f.mu.Lock()
	for i := range f.disks {
		if d = &f.disks[i]; len(d.compare) > 0 && len(d.todo) < 1024 {
			disk, c = i, d.compare[0]
			break
		}
	}
	f.mu.Unlock()
	if disk < 0 {
		return false, nil
	}
	file := f.e.cfg.Disks[disk]
	r := span{from: int64(c.chunk) * d.chunkBytes}
	if hole, ok := file.(sparse); ok && c.zeros > 0 {
		// What is a hole here as well needs no reading.
		same := min(uint64(max(hole.NextData(r.from)-r.from, 0)/d.chunkBytes), c.zeros)
		if same > 0 {
			f.mu.Lock()
			defer f.mu.Unlock()
			d.compared(same)
			f.left -= min(f.left, same*uint64(d.chunkBytes))
			return true, nil
		}
	}
	r.to = min(r.from+d.chunkBytes, d.size)
	n := int(r.to - r.from)
	if cap(*buf) < n {
		*buf = make([]byte, n)
	}
	b := (*buf)[:n]
	if got, err := file.ReadAt(b, r.from); got < n {
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return false, fmt.Errorf("compare disk %d at %d: %w", disk, r.from, err)
	}
	equal := c.zeros > 0 && blockfile.IsZero(b) || c.zeros == 0 && xxh3.Hash128(b).Bytes() == c.sum
	if d, ok := file.(fixed); ok && d.Fixed() && !equal {
		return false, fmt.Errorf("disk %d can only be read, and holds something else on the replica's host, from byte %d on: put the same image on both hosts", disk, r.from)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	d.compared(1)
	switch last := len(d.todo) - 1; {
	case equal:
		f.left -= min(f.left, uint64(n))
	case last >= 0 && d.todo[last].to == r.from && r.to-d.todo[last].from <= copySpan:
		d.todo[last].to = r.to
	default:
		d.todo = append(d.todo, r)
	}
	return true, nil
}

// compared takes n chunks off the front of the list.
func (d *fillDisk) compared(n uint64) {
	if c := &d.compare[0]; c.zeros > n {
		c.chunk += n
		c.zeros -= n
		return
	}
	d.compare = d.compare[1:]
}

// askCopy has a disk's worker copy one range.
func (f *fill) askCopy() bool {
	type request struct {
		disk int
		span
	}
	var ask []request
	f.mu.Lock()
	now := f.e.cfg.Now()
	for i := range f.disks {
		d := &f.disks[i]
		if len(d.jobs) > 0 && now-f.touched > copyPatience {
			for _, j := range d.jobs { // forgotten, by an I/O error or a drained worker
				ask = append(ask, request{i, j})
			}
			f.touched = now
		}
		var open int64
		for _, j := range d.jobs {
			open += j.to - j.from
		}
		if len(d.todo) > 0 && open < copyAtOnce {
			j := d.todo[0]
			if j.to-j.from > copySpan {
				d.todo[0].from += copySpan
				j.to = j.from + copySpan
			} else {
				d.todo = d.todo[1:]
			}
			if len(d.jobs) == 0 {
				f.touched = now
			}
			d.jobs = append(d.jobs, j)
			ask = append(ask, request{i, j})
		}
	}
	f.mu.Unlock()
	for _, r := range ask {
		f.e.cfg.Machine.CopyDisk(r.disk, r.from, r.to-r.from)
	}
	return len(ask) > 0
}

// mirrored notes that a range of a disk travels in the running epoch, by a copy or by the guest's own
// write: either way the replica will have it as it is here.
func (f *fill) mirrored(disk int, offset, n int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if disk >= len(f.disks) {
		return
	}
	d := &f.disks[disk]
	end := offset + n
	kept := d.jobs[:0]
	for _, j := range d.jobs {
		if offset <= j.from && end > j.from {
			to := min(end, j.to)
			f.left -= min(f.left, uint64(to-j.from))
			j.from = to
			f.touched = f.e.cfg.Now()
		}
		if j.from < j.to {
			kept = append(kept, j)
		}
	}
	if len(kept) < len(d.jobs) {
		f.poke()
	}
	d.jobs = kept
}
