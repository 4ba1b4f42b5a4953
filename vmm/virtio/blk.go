package virtio

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync/atomic"

	"github.com/pollux-ha/pollux/vmm/pci"
	"github.com/pollux-ha/pollux/vmm/platform"
	"github.com/pollux-ha/pollux/vmm/platform/codec"
)

// Feature bits, requests and limits of a disk (section 5.2).
const (
	blkFeatureSizeMax = 1 << 1
	blkFeatureSegMax  = 1 << 2
	blkFeatureRO      = 1 << 5
	blkFeatureBlkSize = 1 << 6
	blkFeatureFlush   = 1 << 9

	blkIn    = 0 // VIRTIO_BLK_T_IN and so on
	blkOut   = 1
	blkFlush = 4
	blkGetID = 8

	blkOK          = 0 // VIRTIO_BLK_S_OK and so on
	blkIOErr       = 1
	blkUnsupported = 2

	blkHeaderSize = 16
	blkIDSize     = 20
	sectorSize    = 512

	blkQueueSize  = 256
	blkSegMax     = 126
	blkSizeMax    = 64 << 10               // of a segment
	blkRequestMax = blkSegMax * blkSizeMax // bytes; a longer request fails
	blkWaitingMax = 16 << 20               // bytes of requests taken off the ring; one more may exceed it
	blkTakeMax    = 1 << 20                // bytes taken off the ring at once: the device lock is held meanwhile
)

// File is a disk's storage: a raw image. Its methods are called from one goroutine at a time, without
// the device lock.
type File interface {
	io.ReaderAt
	io.WriterAt
	Sync() error
	Size() int64 // in bytes; does not change
}

// BlkConfig describes a disk.
type BlkConfig struct {
	Index    int // the disk's number, as in Output.DiskWritten
	File     File
	ReadOnly bool
	Serial   string // at most 20 bytes; what the guest's GET_ID returns
}

// Blk is a virtio disk. One worker executes its requests strictly in order. The data of a write is
// copied out of guest memory when the request is taken off the ring; a write is reported through
// Output.DiskWritten once it has landed in the file and before the guest can see its completion.
//
// The requests that have been taken off the ring and not completed are part of the disk's state, as
// the heads of their descriptor chains, in order. Activate issues them again, all of them, whether
// they had reached the file or not: repeating them in order has the same effect.
type Blk struct {
	device
	index    int
	file     File
	readOnly bool
	sectors  uint64
	serial   [blkIDSize]byte

	chain    chain
	inflight []uint16           // heads, in order
	taken    [blkQueueSize]bool // the same as a set
	waiting  int                // bytes that requests in flight hold
	full     bool               // the ring was left alone because of waiting
	free     []*request

	// generation ends requests that are under way: the worker does not begin one of an older
	// generation, and the result of one that it had begun changes nothing that the guest sees.
	generation atomic.Uint64 // changed with the device lock held
	worker     worker
}

// NewBlk makes a disk and puts it on the bus. It begins suspended. The device lock is held.
func NewBlk(p platform.Platform, h *pci.Host, c BlkConfig) (*Blk, error) {
	if len(c.Serial) > blkIDSize {
		return nil, fmt.Errorf("disk %d: serial %q is longer than %d bytes", c.Index, c.Serial, blkIDSize)
	}
	if size := c.File.Size(); size < sectorSize {
		return nil, fmt.Errorf("disk %d: an image of %d bytes does not hold one sector", c.Index, size)
	}
	b := &Blk{index: c.Index, file: c.File, readOnly: c.ReadOnly, sectors: uint64(c.File.Size()) / sectorSize}
	copy(b.serial[:], c.Serial)
	b.worker.init(b)
	features := uint64(blkFeatureSizeMax | blkFeatureSegMax | blkFeatureBlkSize | blkFeatureFlush)
	if c.ReadOnly {
		features |= blkFeatureRO
	}
	if err := b.attach(p, h, b, kindBlk, c.Index, features, blkQueueSize); err != nil {
		return nil, err
	}
	return b, nil
}

// Close gives back what the disk holds, but not its file. Drain comes before it. The device lock is held.
func (b *Blk) Close() error {
	b.close()
	return nil
}

// Drain ends all I/O: it waits for the request that the worker is at and drops the others, which stay
// part of the disk's state. Copies that are not done fail with ErrDrained. No more I/O happens until
// the disk is activated again. The device lock is NOT held; Suspend comes before it.
func (b *Blk) Drain() { b.worker.drain() }

// CopyRange reads n bytes at offset and reports them through Output.DiskWritten, in pieces, in order
// with the guest's own writes: what is reported last for a block is what the file holds. done, which
// may be nil, hears when all is reported or what failed, with the device lock held. Safe from any
// goroutine, with or without the device lock.
func (b *Blk) CopyRange(offset, n int64, done func(error)) {
	if done == nil {
		done = func(error) {}
	}
	c := &copyJob{offset: offset, left: n, done: done}
	if size := b.file.Size(); offset < 0 || n < 0 || offset > size || n > size-offset {
		c.left = 0
		c.err = fmt.Errorf("copy %d bytes at %d of disk %d, which has %d", n, offset, b.index, size)
	}
	b.worker.copy(c)
}

// ErrDrained says that a copy was not done because the disk was drained.
var ErrDrained = errors.New("the disk was drained")

func (b *Blk) start() {}

func (b *Blk) kick(int) {
	b.take()
	b.worker.wake()
}

// take moves requests from the ring to the worker.
func (b *Blk) take() {
	q := &b.queues[0]
	b.full = false
	before := b.waiting
	for n := 0; ; n++ {
		if b.waiting >= blkWaitingMax {
			b.full = true // completions go on from here
			return
		}
		if n == int(q.size) || b.waiting-before >= blkTakeMax {
			b.later(0)
			return
		}
		ok, err := q.pop(&b.chain)
		if err == nil && !ok {
			if ok, err = q.arm(); ok {
				continue
			}
		}
		if err == nil && ok {
			if err = b.submit(); err != nil {
				q.unpop()
			}
		}
		if err != nil {
			b.needsReset()
			return
		}
		if !ok {
			return
		}
	}
}

// submit hands the request in b.chain to the worker. Requests that are wrong in themselves go the
// same way: completions keep the order too.
func (b *Blk) submit() error {
	c := &b.chain
	if b.taken[c.head] {
		return fmt.Errorf("descriptor %d is in flight already: %w", c.head, errRing)
	}
	var header [blkHeaderSize]byte
	if c.read(b.p.RAM(), 0, header[:]) < blkHeaderSize || c.writable == 0 {
		return fmt.Errorf("request without header or status: %w", errRing)
	}
	r := b.request()
	r.generation, r.head = b.generation.Load(), c.head
	r.in, r.room = append(r.in[:0], c.in...), c.writable-1
	r.op, r.status = opNone, blkOK
	r.data, r.moved = nil, 0
	sector := binary.LittleEndian.Uint64(header[8:])
	switch binary.LittleEndian.Uint32(header[:]) {
	case blkIn:
		if r.status = b.check(sector, r.room); r.status == blkOK {
			r.op, r.offset = opRead, int64(sector*sectorSize)
			r.data = r.buffer(int(r.room))
		}
	case blkOut:
		n := c.readable - blkHeaderSize
		if r.status = b.check(sector, n); b.readOnly {
			r.status = blkIOErr // section 5.2.6.2
		}
		if r.status == blkOK {
			r.op, r.offset = opWrite, int64(sector*sectorSize)
			r.data = make([]byte, n) // Output.DiskWritten keeps it
			c.read(b.p.RAM(), blkHeaderSize, r.data)
		}
	case blkFlush:
		r.op = opFlush
	case blkGetID:
		r.data = b.serial[:min(r.room, blkIDSize)]
		r.moved = len(r.data)
	default:
		r.status = blkUnsupported
	}
	b.taken[c.head] = true
	b.inflight = append(b.inflight, c.head)
	b.waiting += r.weight()
	b.worker.submit(r)
	return nil
}

// check says what comes of a transfer of n bytes at a sector.
func (b *Blk) check(sector, n uint64) uint8 {
	if n%sectorSize != 0 || n > blkRequestMax || sector > b.sectors || n/sectorSize > b.sectors-sector {
		return blkIOErr
	}
	return blkOK
}

// complete takes requests that the worker has executed, in order. The device lock is not held.
func (b *Blk) complete(done []*request) {
	b.p.Lock()
	defer b.p.Unlock()
	current := b.generation.Load()
	var err error
	finished := false
	for _, r := range done {
		if r.op == opWrite && r.moved > 0 {
			// Whatever became of the request, the file has changed.
			b.p.Output().DiskWritten(b.index, r.offset, r.data[:r.moved])
		}
		if r.generation == current && b.running() && err == nil {
			err = b.finish(r)
			finished = true
		}
		b.recycle(r)
	}
	if !finished {
		return
	}
	b.publish(0)
	if err != nil {
		b.needsReset()
		return
	}
	if b.full {
		b.device.kick(0)
	}
}

// finish puts a request's results where the guest finds them.
func (b *Blk) finish(r *request) error {
	n := 0
	if r.op != opWrite && r.status == blkOK {
		n = scatter(b.p.RAM(), r.in, 0, r.data[:r.moved])
	}
	scatter(b.p.RAM(), r.in, r.room, []byte{r.status})
	// The length may count only bytes that were written from the beginning on (section 2.7.8.2), so
	// it includes the status byte only where there is no gap before it.
	written := uint32(n)
	if uint64(n) == r.room {
		written++
	}
	b.taken[r.head] = false
	b.inflight = b.inflight[:copy(b.inflight, b.inflight[1:])]
	b.waiting -= r.weight()
	return b.queues[0].push(r.head, written)
}

// abandon ends all requests under way without completing them.
func (b *Blk) abandon() {
	b.generation.Add(1)
	b.waiting, b.full = 0, false
}

func (b *Blk) reset() {
	b.abandon()
	b.inflight = b.inflight[:0]
	b.taken = [blkQueueSize]bool{}
}

func (b *Blk) suspend() { b.abandon() }

// activate issues the requests in flight again.
func (b *Blk) activate() error {
	b.abandon()
	b.worker.resume()
	if !b.running() || !b.queues[0].enabled {
		return nil
	}
	heads := append([]uint16(nil), b.inflight...)
	b.inflight = b.inflight[:0]
	b.taken = [blkQueueSize]bool{}
	for _, head := range heads {
		err := b.queues[0].parse(&b.chain, head)
		if err == nil {
			err = b.submit()
		}
		if err != nil { // the guest has changed the chain since
			b.needsReset()
			break
		}
	}
	b.worker.wake()
	return nil
}

// config is the disk's configuration (section 5.2.4), as far as the features offered reach.
func (b *Blk) config() []byte {
	var c [24]byte
	le := binary.LittleEndian
	le.PutUint64(c[0:], b.sectors)
	le.PutUint32(c[8:], blkSizeMax)
	le.PutUint32(c[12:], blkSegMax)
	le.PutUint32(c[20:], sectorSize)
	return c[:]
}

func (b *Blk) save(p []byte) []byte {
	p = binary.LittleEndian.AppendUint64(p, b.sectors)
	p = binary.LittleEndian.AppendUint16(p, uint16(len(b.inflight)))
	for _, head := range b.inflight {
		p = binary.LittleEndian.AppendUint16(p, head)
	}
	return p
}

func (b *Blk) load(r *codec.Reader, queues []queue) (apply func()) {
	if n := r.U64(); n != b.sectors && r.Err() == nil {
		r.Failf("disk of %d sectors, this one has %d", n, b.sectors)
	}
	n := r.U16()
	if n > queues[0].size || n > 0 && !queues[0].enabled {
		r.Failf("%d requests in flight in a queue of %d", n, queues[0].size)
		n = 0
	}
	var taken [blkQueueSize]bool
	heads := make([]uint16, n)
	for i := range heads {
		heads[i] = r.U16()
		if heads[i] >= queues[0].size || taken[heads[i]] {
			r.Failf("request %d in flight", heads[i])
			break
		}
		taken[heads[i]] = true
	}
	return func() {
		b.abandon()
		b.inflight, b.taken = append(b.inflight[:0], heads...), taken
	}
}
