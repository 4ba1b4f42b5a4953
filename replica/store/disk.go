package store

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pollux-ha/pollux/cluster/durable"
	"github.com/pollux-ha/pollux/vmm/blockfile"
)

// ErrBusy says that another process holds a disk.
var ErrBusy = errors.New("disk is in use")

// Disk is an open disk file under this process's exclusive lock. It is a vmm.BlockFile.
type Disk struct {
	*os.File
	size     int64
	ReadOnly bool
	// Created says that the file was not there before, or that it was empty: a loss of power had left its name.
	Created bool
}

// Size is the size of the disk in bytes.
func (d *Disk) Size() int64 { return d.size }

// Fixed says that the guest can't write to the disk, and that nobody else does.
func (d *Disk) Fixed() bool { return d.ReadOnly }

// Sync makes what was written durable. Of the metadata only what is needed to read it back.
func (d *Disk) Sync() error { return blockfile.Sync(d.File) }

// Zero makes a range read as zeros without writing it; see blockfile.Zero.
func (d *Disk) Zero(offset, n int64, unmap bool) error {
	return blockfile.Zero(d.File, offset, n, unmap)
}

// NextData is the offset of the first byte from offset on that may not be zero.
func (d *Disk) NextData(offset int64) int64 { return blockfile.NextData(d.File, offset, d.size) }

// OpenDisk opens the disk file at path, creates it (sparse) where it is missing, and takes the
// exclusive lock. Where another process holds it, OpenDisk waits for that one's exit until ctx ends;
// the error then names it. A file of another size than size bytes is refused.
func OpenDisk(ctx context.Context, path string, size int64, readOnly bool) (*Disk, error) {
	d := &Disk{size: size, ReadOnly: readOnly}
	flags := os.O_RDWR
	if readOnly {
		flags = os.O_RDONLY
	}
	f, err := os.OpenFile(path, flags, 0)
	if errors.Is(err, fs.ErrNotExist) && !readOnly {
		if err := durable.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return nil, fmt.Errorf("make room for disk %s: %w", path, err)
		}
		d.Created = true
		f, err = os.OpenFile(path, flags|os.O_CREATE|os.O_EXCL, 0o600)
	}
	if err != nil {
		return nil, fmt.Errorf("open disk %s: %w", path, err)
	}
	d.File = f
	if err := d.prepare(ctx); err != nil {
		f.Close()
		return nil, err
	}
	return d, nil
}

func (d *Disk) prepare(ctx context.Context) error {
	if err := lock(ctx, d.File, d.ReadOnly); err != nil {
		return err
	}
	st, err := d.Stat()
	if err != nil {
		return fmt.Errorf("look at disk %s: %w", d.Name(), err)
	}
	if st.Mode().IsRegular() && st.Size() == 0 && !d.ReadOnly {
		d.Created = true
	}
	if d.Created {
		if err := d.Truncate(d.size); err != nil {
			return fmt.Errorf("make disk %s %d bytes long: %w", d.Name(), d.size, err)
		}
		if err := d.Sync(); err != nil {
			return err
		}
		return durable.SyncDir(filepath.Dir(d.Name()))
	}
	if st.Mode().IsRegular() && st.Size() != d.size {
		return fmt.Errorf("disk %s has %d bytes, the guest's disk has %d: put the right image there, or change the guest",
			d.Name(), st.Size(), d.size)
	}
	return nil
}

// lock takes the lock, which ends with the last descriptor of the file: with the process at the latest.
func lock(ctx context.Context, f *os.File, shared bool) error {
	how := unix.LOCK_EX
	if shared {
		how = unix.LOCK_SH
	}
	// The kernel has no lock call with a deadline that a Go program could use without a signal; the
	// predecessor is about to exit, so asking a hundred times a second will do.
	t := time.NewTicker(10 * time.Millisecond)
	defer t.Stop()
	for {
		err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
		switch {
		case err == nil:
			return nil
		case err == unix.EINTR:
			continue
		case err != unix.EWOULDBLOCK:
			return fmt.Errorf("lock disk %s: %w", f.Name(), err)
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return fmt.Errorf("%w: %s is held by %s; it must exit first", ErrBusy, f.Name(), holder(f))
		}
	}
}

// holder names the process that has the lock, as far as /proc/locks tells.
func holder(f *os.File) string {
	const unknown = "another process"
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return unknown
	}
	locks, err := os.Open("/proc/locks")
	if err != nil {
		return unknown
	}
	defer locks.Close()
	// "1: FLOCK  ADVISORY  WRITE 1234 fd:01:5678 0 EOF"
	want := fmt.Sprintf("%02x:%02x:%d", unix.Major(st.Dev), unix.Minor(st.Dev), st.Ino)
	for s := bufio.NewScanner(locks); s.Scan(); {
		l := strings.Fields(s.Text())
		if len(l) < 6 || l[1] != "FLOCK" || l[5] != want {
			continue
		}
		pid, err := strconv.Atoi(l[4])
		if err != nil || pid <= 0 {
			return unknown
		}
		if comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); err == nil {
			return fmt.Sprintf("process %d (%s)", pid, strings.TrimSpace(string(comm)))
		}
		return fmt.Sprintf("process %d", pid)
	}
	return unknown
}
