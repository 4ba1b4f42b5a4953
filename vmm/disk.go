package vmm

import (
	"errors"
	"fmt"
	"sync"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/pollux-ha/pollux/vmm/pci"
	"github.com/pollux-ha/pollux/vmm/virtio"
)

// DiskError is an access to a disk's BlockFile that failed.
type DiskError = virtio.BlkError

// defaultQueues bounds the request queues of a disk that nobody gave a number.
const defaultQueues = 4

// newDisk makes disk number i. The device lock is held.
func (m *Machine) newDisk(host *pci.Host, i int, c DiskConfig) (*virtio.Blk, error) {
	if c.Serial == "" {
		c.Serial = fmt.Sprintf("pollux-%d", i)
	}
	if c.Queues == 0 {
		c.Queues = min(m.cfg.CPUs, defaultQueues)
	}
	w := &diskWatch{log: m.log, tell: m.cfg.OnDiskError}
	b, err := virtio.NewBlk(m, host, virtio.BlkConfig{
		Index: i, File: c.File, ReadOnly: c.ReadOnly, Serial: c.Serial, Queues: c.Queues, Failed: w.failed,
	})
	if err != nil {
		return nil, fmt.Errorf("make disk %d: %w", i, err)
	}
	return b, nil
}

// diskWatch logs each kind of error of a disk once, and passes all of them on.
type diskWatch struct {
	log  *zap.Logger
	tell func(DiskError) bool

	mu   sync.Mutex
	seen map[string]bool
}

func (w *diskWatch) failed(e DiskError) (hold bool) {
	if w.tell != nil {
		hold = w.tell(e)
	}
	var errno unix.Errno
	errors.As(e.Err, &errno)
	kind := fmt.Sprint(e.Op, errno)
	w.mu.Lock()
	known := w.seen[kind]
	if !known {
		if w.seen == nil {
			w.seen = map[string]bool{}
		}
		w.seen[kind] = true
	}
	w.mu.Unlock()
	if !known {
		w.log.Error("a disk's file fails; further errors of this kind are not logged", zap.Int("disk", e.Disk), zap.String("operation", e.Op),
			zap.Int64("offset", e.Offset), zap.Int64("bytes", e.Bytes), zap.Bool("guest_told", !hold), zap.Error(e.Err),
			zap.String("advice", diskAdvice(e.Op, errno)))
	}
	return hold
}

// diskAdvice says what an operator should do about an error.
func diskAdvice(op string, errno unix.Errno) string {
	switch {
	case op == "flush":
		return "writes that the guest takes for durable may be lost on this host: move the guest to the other host or restore it, and replace the storage"
	case errno == unix.ENOSPC || errno == unix.EDQUOT:
		return "make room on the file system that holds the image; the guest's disk is larger than what is there"
	case errno == unix.EROFS:
		return "the file system that holds the image is read-only: look at the kernel's log for why"
	}
	return "look at the kernel's log for the storage under the image, and replace it"
}
