package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"

	"github.com/pollux-ha/pollux/checkpoint"
	"github.com/pollux-ha/pollux/cluster/pact"
	"github.com/pollux-ha/pollux/vmm/pci"
	"github.com/pollux-ha/pollux/vmm/platform/platformtest"
	"github.com/pollux-ha/pollux/vmm/virtio"
	"github.com/pollux-ha/pollux/vmm/virtio/virtiotest"
)

// primaryDisk is the disk that the guest's machine writes to.
type primaryDisk struct {
	mu   sync.Mutex
	data []byte
}

func (d *primaryDisk) do(fn func()) {
	runtime.Gosched() // so that others get between
	d.mu.Lock()
	defer d.mu.Unlock()
	fn()
}

func (d *primaryDisk) ReadAt(p []byte, off int64) (n int, err error) {
	d.do(func() { n = copy(p, d.data[off:]) })
	if n < len(p) {
		err = io.EOF
	}
	return n, err
}

func (d *primaryDisk) WriteAt(p []byte, off int64) (n int, err error) {
	d.do(func() { n = copy(d.data[off:], p) })
	return n, nil
}

// Zero can't do what begins in every third sector.
func (d *primaryDisk) Zero(off, n int64, _ bool) error {
	if off/512%3 == 1 {
		return errors.ErrUnsupported
	}
	d.do(func() { clear(d.data[off : off+n]) })
	return nil
}

func (d *primaryDisk) Sync() error { return nil }
func (d *primaryDisk) Size() int64 { return int64(len(d.data)) }

// mirror is a guest with a disk of three queues, whose changes become epochs.
type mirror struct {
	t      *testing.T
	r      *rand.Rand
	m      *platformtest.Machine
	disk   *primaryDisk
	blk    *virtio.Blk
	d      *virtiotest.Driver
	buffer []uint64 // guest memory, one for each request of a round
	used   [3]uint16
}

func newMirror(t *testing.T, r *rand.Rand) *mirror {
	m := &mirror{t: t, r: r, m: platformtest.New(t, 1<<20), disk: &primaryDisk{data: make([]byte, crashDisk)}}
	m.m.Do(func() {
		host, err := pci.NewHost(m.m)
		if err != nil {
			t.Fatal(err)
		}
		if m.blk, err = virtio.NewBlk(m.m, host, virtio.BlkConfig{File: m.disk, Queues: 3}); err != nil {
			t.Fatal(err)
		}
	})
	m.m.Activate(t, m.blk)
	m.d = virtiotest.Find(t, m.m, m.blk.Slot(), 0x1000)
	m.d.Start(t, 1<<12|1<<13|1<<14) // several queues, discard, write-zeroes
	for range 6 {
		m.buffer = append(m.buffer, m.d.Alloc(64+4096))
	}
	t.Cleanup(func() {
		m.m.Do(m.blk.Suspend)
		m.blk.Drain()
		m.m.Do(func() { m.blk.Close() })
	})
	return m
}

// request puts one request on one of the queues, over a few sectors so that many meet.
func (m *mirror) request(at uint64, fill byte) {
	const out, discard, zero = 1, 11, 13
	q := m.r.IntN(3)
	n := 1 + m.r.IntN(5) // two epochs of them fit into the journal at once
	sector := uint64(m.r.IntN(24))
	ops := []uint32{out, out, out, discard, zero}
	op := ops[m.r.IntN(len(ops))]
	b := make([]byte, 64+512*n)
	binary.LittleEndian.PutUint32(b, op)
	length := uint32(512 * n)
	copy(b[64:], bytes.Repeat([]byte{fill}, 512*n))
	if op == out {
		binary.LittleEndian.PutUint64(b[8:], sector)
	} else {
		binary.LittleEndian.PutUint64(b[64:], sector)
		binary.LittleEndian.PutUint32(b[72:], uint32(n))
		binary.LittleEndian.PutUint32(b[76:], 0)
		length = 16
	}
	m.m.Do(func() { m.m.RAM().Write(at, b) })
	m.d.Queues[q].Add(virtiotest.Desc{Addr: at, Len: 16}, virtiotest.Desc{Addr: at + 64, Len: length},
		virtiotest.Desc{Addr: at + 32, Len: 1, Flags: virtiotest.Write})
	m.used[q]++
	if m.r.IntN(2) == 0 {
		m.d.Queues[q].Kick()
	}
}

// epoch lets the guest do something and takes what was reported since the last one: not always all of it.
func (m *mirror) epoch(e pact.Epoch, last bool) (writes []checkpoint.DiskWrite) {
	n := 0
	if !last {
		n = m.r.IntN(4)
	}
	for i := range n {
		m.request(m.buffer[i], byte(e))
	}
	for _, q := range m.d.Queues {
		q.Kick()
	}
	take := func() {
		m.m.Do(func() {
			for _, w := range m.m.Writes {
				writes = append(writes, checkpoint.DiskWrite{Offset: w.Offset, Data: w.Data, Zeros: w.Zeros, Unmap: w.Unmap})
			}
			m.m.Writes = nil
		})
	}
	if m.r.IntN(2) == 0 {
		take() // in the midst of it
	}
	for i, q := range m.d.Queues {
		q.Wait(m.t, m.used[i])
	}
	if len(writes) == 0 || last {
		take()
	}
	return writes
}

// TestMirror runs a guest's writes, discards and zeroed ranges, on several queues and over each other,
// through the virtio disk, epochs, the journal and the twin's disk: the twin ends as the disk is, and after
// a loss of power at any moment it is as of an epoch.
func TestMirror(t *testing.T) {
	for seed := uint64(1); seed <= 4; seed++ {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 9))
			m := newMirror(t, r)
			const epochs = 40
			twin := powerLoss(t, r, epochs, func(e pact.Epoch) []checkpoint.DiskWrite { return m.epoch(e, e == epochs) })
			if !bytes.Equal(twin, m.disk.data) {
				t.Error("the twin is not what the disk is")
			}
		})
	}
}
