package memory

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ErrNoPoison says that this host can't make a page of memory behave as a damaged one.
var ErrNoPoison = errors.New("memory errors can't be injected here: it takes userfaultfd with UFFDIO_POISON (Linux 6.6)")

// From include/uapi/linux/userfaultfd.h.
const (
	uffdUserModeOnly = 1
	uffdAPI          = 0xaa
	uffdPoison       = 1 << 14 // UFFD_FEATURE_POISON
	uffdMissing      = 1       // UFFDIO_REGISTER_MODE_MISSING
	uffdioAPI        = 0xc018aa3f
	uffdioRegister   = 0xc020aa00
	uffdioPoison     = 0xc020aa08
)

// poisonTries bounds how often a guest may be quicker than an injection.
const poisonTries = 1000

// Poison makes a page behave as one with an uncorrectable memory error, for tests of what then happens:
// whoever touches it gets SIGBUS, until Replace, Mend or a discard puts another page in its place. What the
// page held is lost to the guest. It may be called while the guest runs.
func (r *RAM) Poison(page int) error {
	if page < 0 || page >= r.Pages() {
		return fmt.Errorf("poison page %d of %d: %w", page, r.Pages(), ErrRange)
	}
	r.healing.Lock()
	defer r.healing.Unlock()
	if err := r.openPoisoner(); err != nil {
		return err
	}
	mem := r.Page(page)
	at := uint64(uintptr(unsafe.Pointer(unsafe.SliceData(mem))))
	// Only this page is registered: a missing one would wait for a handler that is not there.
	if err := unix.Madvise(mem, unix.MADV_POPULATE_WRITE); errors.Is(err, unix.EHWPOISON) {
		return nil // it is damaged already
	} else if err != nil {
		return fmt.Errorf("poison page %d: %w", page, err)
	}
	if e := r.userfault(uffdioRegister, &[4]uint64{at, PageSize, uffdMissing}); e != 0 {
		return fmt.Errorf("poison page %d: UFFDIO_REGISTER: %w", page, e)
	}
	for range poisonTries {
		if err := unix.Madvise(mem, unix.MADV_DONTNEED); err != nil {
			return fmt.Errorf("poison page %d: %w", page, err)
		}
		switch e := r.userfault(uffdioPoison, &[4]uint64{at, PageSize}); e {
		case 0:
			return nil
		case unix.EEXIST, unix.EAGAIN: // the guest was quicker
		default:
			return fmt.Errorf("poison page %d: UFFDIO_POISON: %w", page, e)
		}
	}
	return fmt.Errorf("poison page %d: the guest touches it too often", page)
}

// CanPoison says why Poison can't work on this host.
func CanPoison() error {
	var r RAM
	if err := r.openPoisoner(); err != nil {
		return err
	}
	return unix.Close(r.uffd)
}

func (r *RAM) openPoisoner() error {
	if r.uffd != 0 {
		return nil
	}
	fd, _, e := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|unix.O_NONBLOCK|uffdUserModeOnly, 0, 0)
	if e != 0 {
		return fmt.Errorf("%w: %w", ErrNoPoison, e)
	}
	r.uffd = int(fd)
	if e := r.userfault(uffdioAPI, &[4]uint64{uffdAPI, uffdPoison}); e != 0 {
		unix.Close(r.uffd)
		r.uffd = 0
		return fmt.Errorf("%w: %w", ErrNoPoison, e)
	}
	return nil
}

func (r *RAM) userfault(request uintptr, arg *[4]uint64) unix.Errno {
	_, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(r.uffd), request, uintptr(unsafe.Pointer(arg)))
	return e
}
