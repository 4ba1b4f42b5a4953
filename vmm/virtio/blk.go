package virtio

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync/atomic"

	"github.com/pollux-ha/pollux/vmm/pci"
	"github.com/pollux-ha/pollux/vmm/platform"
)

// Feature bits, requests and limits of a disk (section 5.2).
//
// VIRTIO_BLK_F_CONFIG_WCE is not offered: the cache is always a write-back cache, whose content FLUSH makes
// durable. A guest that could turn it off would only make each of its writes pay for a flush.
const (
	blkFeatureSizeMax     = 1 << 1
	blkFeatureSegMax      = 1 << 2
	blkFeatureRO          = 1 << 5
	blkFeatureBlkSize     = 1 << 6
	blkFeatureFlush       = 1 << 9
	blkFeatureTopology    = 1 << 10
	blkFeatureMQ          = 1 << 12
	blkFeatureDiscard     = 1 << 13
	blkFeatureWriteZeroes = 1 << 14

	blkIn          = 0 // VIRTIO_BLK_T_IN and so on
	blkOut         = 1
	blkFlush       = 4
	blkGetID       = 8
	blkDiscard     = 11
	blkWriteZeroes = 13

	blkUnmap = 1 // flag of a range to zero: its space may go

	blkOK          = 0 // VIRTIO_BLK_S_OK and so on
	blkIOErr       = 1
	blkUnsupported = 2

	blkHeaderSize = 16
	blkRangeSize  = 16 // struct virtio_blk_discard_write_zeroes
	blkIDSize     = 20
	sectorSize    = 512

	blkQueueSize  = 256
	blkSegMax     = 126
	blkSizeMax    = 64 << 10               // of a segment
	blkRequestMax = blkSegMax * blkSizeMax // bytes; a longer request fails
	blkWaitingMax = 16 << 20               // bytes of requests taken off the ring; one more may exceed it
	blkTakeMax    = 1 << 20                // bytes taken off the ring at once: the device lock is held meanwhile

	// Physical blocks are 4 KiB, as most file systems' and drives' are: smaller writes work, and cost a
	// read. The value is the exponent over sectors.
	blkBlockExp     = 3
	blkBlockSectors = 1 << blkBlockExp

	// Ranges of one request. Giving space back is quick on whatever can do it; zeros that keep their
	// space may have to be written, and a drain waits for the whole request.
	blkDiscardSegs    = 64
	blkDiscardSectors = 256 << 20 / sectorSize
	blkZeroSegs       = 1
	blkZeroSectors    = 64 << 20 / sectorSize
)

// MaxBlkQueues bounds a disk's queues.
const MaxBlkQueues = 16

// File is a disk's storage: a raw image. Its methods are called from several goroutines at a time,
// without the device lock; never two of them for ranges that overlap, unless both read.
type File interface {
	io.ReaderAt
	io.WriterAt
	Sync() error
	Size() int64 // in bytes; does not change
}

// Zeroer is a File that can make a range zero without writing it, with unmap giving its space back. An
// errors.ErrUnsupported leaves the range as it was.
type Zeroer interface {
	Zero(offset, n int64, unmap bool) error
}

// Sparse is a File that knows its holes: NextData is the offset of the first byte from offset on that may
// not be zero.
type Sparse interface{ NextData(offset int64) int64 }

// BlkConfig describes a disk.
type BlkConfig struct {
	Index    int  // the disk's number, as in Output.DiskWritten
	File     File // may be a Zeroer and Sparse, too
	ReadOnly bool
	Serial   string // at most 20 bytes; what the guest's GET_ID returns
	Queues   int    // 0 is one
	// Failed, if set, is told of each access to the file that failed, without the device lock, before the
	// guest is. True keeps the request in flight: the guest hears nothing, and whoever goes on from the
	// disk's state issues it again.
	Failed func(BlkError) (hold bool)
}

// BlkError is an access to a disk's file that failed.
type BlkError struct {
	Disk   int
	Op     string // "read", "write", "zero" or "flush"
	Offset int64  // bytes
	Bytes  int64
	Err    error
}

func (e BlkError) Error() string {
	if e.Op == "flush" {
		return fmt.Sprintf("flush disk %d: %v", e.Disk, e.Err)
	}
	return fmt.Sprintf("%s %d bytes at %d of disk %d: %v", e.Op, e.Bytes, e.Offset, e.Disk, e.Err)
}

func (e BlkError) Unwrap() error { return e.Err }

// Blk is a virtio disk. Its workers take requests off all its queues in the order in which they were
// submitted and execute them side by side, except where two of them touch the same bytes and one of them
// changes those: the later one begins when the earlier one has been completed. FLUSH covers what was
// completed before it was submitted, as section 5.2.6.2 asks; it waits for nothing and holds nothing up.
//
// The data of a write is copied out of guest memory when the request is taken off the ring. A change
// is reported through Output.DiskWritten or DiskZeroed once it has landed in the file, while its range is
// still taken, and before the guest can see its completion: for any byte, reports come in the order of
// the changes.
//
// A discard makes its ranges zero, exactly and at once, so that both copies of a mirrored disk stay
// equal; where the storage can't give space back it does nothing, on either.
//
// The requests that have been taken off the rings and not completed are part of the disk's state: queue
// and head of the descriptor chain, in the order of submission. Activate issues them again, all of them,
// whether they had reached the file or not: repeating them in order has the same effect, because none
// that overlaps them and came later has been completed.
type Blk struct {
	device
	index    int
	file     File
	zeroer   Zeroer // nil: zeros are written
	sparse   Sparse // nil: holes are read
	readOnly bool
	sectors  uint64
	serial   [blkIDSize]byte
	failed   func(BlkError) bool

	chain    chain
	inflight []flight             // in the order of submission
	taken    [][blkQueueSize]bool // the same as a set, for each queue
	waiting  int                  // bytes that requests in flight hold
	full     bool                 // rings were left alone because of waiting
	free     []*request
	loading  uint16 // version of the state that is being restored

	// generation ends requests that are under way: no worker begins one of an older generation, and
	// the result of one that had begun changes nothing that the guest sees.
	generation atomic.Uint64 // changed with the device lock held
	unsynced   atomic.Bool   // the file may have changed since it was made durable
	lost       error         // of the sync that failed; belongs to the flusher
	workers    workers
}

// flight is a request in flight.
type flight struct {
	queue uint8
	head  uint16
}

// NewBlk makes a disk and puts it on the bus. It begins suspended. The device lock is held.
func NewBlk(p platform.Platform, h *pci.Host, c BlkConfig) (*Blk, error) {
	if len(c.Serial) > blkIDSize {
		return nil, fmt.Errorf("disk %d: serial %q is longer than %d bytes", c.Index, c.Serial, blkIDSize)
	}
	if size := c.File.Size(); size < sectorSize {
		return nil, fmt.Errorf("disk %d: an image of %d bytes does not hold one sector", c.Index, size)
	}
	queues := max(c.Queues, 1)
	if c.Queues < 0 || queues > MaxBlkQueues {
		return nil, fmt.Errorf("disk %d: %d queues; at most %d are possible", c.Index, c.Queues, MaxBlkQueues)
	}
	b := &Blk{
		index: c.Index, file: c.File, readOnly: c.ReadOnly, failed: c.Failed, sectors: uint64(c.File.Size()) / sectorSize,
		taken: make([][blkQueueSize]bool, queues),
	}
	b.zeroer, _ = c.File.(Zeroer)
	b.sparse, _ = c.File.(Sparse)
	copy(b.serial[:], c.Serial)
	b.workers.init(b, queues)
	features := uint64(blkFeatureSizeMax | blkFeatureSegMax | blkFeatureBlkSize | blkFeatureFlush | blkFeatureTopology)
	if c.ReadOnly {
		features |= blkFeatureRO
	} else {
		features |= blkFeatureDiscard | blkFeatureWriteZeroes
	}
	if queues > 1 {
		features |= blkFeatureMQ
	}
	sizes := make([]uint16, queues)
	for i := range sizes {
		sizes[i] = blkQueueSize
	}
	if err := b.attach(p, h, b, kindBlk, c.Index, features, sizes...); err != nil {
		return nil, err
	}
	return b, nil
}

// Close gives back what the disk holds, but not its file. Drain comes before it. The device lock is held.
func (b *Blk) Close() error {
	b.close()
	return nil
}

// Drain ends all I/O: it waits for the requests that the workers are at and drops the others, which stay
// part of the disk's state. Copies that are not done fail with ErrDrained. No more I/O happens until
// the disk is activated again. The device lock is NOT held; Suspend comes before it.
func (b *Blk) Drain() { b.workers.drain() }

// CopyRange reads n bytes at offset and reports them through Output.DiskWritten or DiskZeroed, in pieces,
// in order with the guest's own changes: what is reported last for a byte is what the file holds. done,
// which may be nil, hears when all is reported or what failed, with the device lock held. Safe from any
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
	b.workers.copy(c)
}

// ErrDrained says that a copy was not done because the disk was drained.
var ErrDrained = errors.New("the disk was drained")

// abandon ends all requests under way without completing them.
func (b *Blk) abandon() {
	b.generation.Add(1)
	b.waiting, b.full = 0, false
	b.workers.forget()
}

func (b *Blk) forget() {
	b.inflight = b.inflight[:0]
	clear(b.taken)
}

func (b *Blk) start() {}

func (b *Blk) reset() {
	b.abandon()
	b.forget()
}

func (b *Blk) suspend() { b.abandon() }

// activate issues the requests in flight again.
func (b *Blk) activate() error {
	b.abandon()
	b.unsynced.Store(true) // others may have written to the file
	b.workers.resume()
	if !b.running() {
		return nil
	}
	flights := append([]flight(nil), b.inflight...)
	b.forget()
	for _, f := range flights {
		err := b.queues[f.queue].parse(&b.chain, f.head)
		if err == nil {
			err = b.submit(int(f.queue))
		}
		if err != nil { // the guest has changed the chain since
			b.needsReset()
			break
		}
	}
	b.workers.wake()
	return nil
}

// config is the disk's configuration (section 5.2.4), as far as the features offered reach.
func (b *Blk) config() []byte {
	var c [60]byte
	le := binary.LittleEndian
	le.PutUint64(c[0:], b.sectors)
	le.PutUint32(c[8:], blkSizeMax)
	le.PutUint32(c[12:], blkSegMax)
	le.PutUint32(c[20:], sectorSize)
	c[24] = blkBlockExp
	le.PutUint16(c[26:], blkBlockSectors) // the least that a guest should write at once
	if n := len(b.taken); n > 1 {
		le.PutUint16(c[34:], uint16(n))
	}
	if !b.readOnly {
		le.PutUint32(c[36:], blkDiscardSectors)
		le.PutUint32(c[40:], blkDiscardSegs)
		le.PutUint32(c[44:], blkBlockSectors)
		le.PutUint32(c[48:], blkZeroSectors)
		le.PutUint32(c[52:], blkZeroSegs)
		c[56] = 1 // write_zeroes_may_unmap
	}
	return c[:]
}
