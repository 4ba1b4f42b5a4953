package confine

import (
	"errors"
	"fmt"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The limits. A machine takes a descriptor or two a vCPU and a queue, Go's threads follow the vCPUs and blocking calls.
const (
	maxFiles   = 4096
	maxThreads = 4096 // of the process's own user
)

// limit bounds resources. alone says that the process is a user of its own: a bound on threads counts
// those of all processes of a user.
func limit(alone bool) error {
	set := map[int]uint64{
		unix.RLIMIT_CORE: 0, unix.RLIMIT_NOFILE: maxFiles, unix.RLIMIT_MSGQUEUE: 0, unix.RLIMIT_RTPRIO: 0, unix.RLIMIT_NICE: 0,
	}
	if alone {
		set[unix.RLIMIT_NPROC] = maxThreads
	}
	var errs []error
	for what, most := range set {
		var now unix.Rlimit
		err := unix.Getrlimit(what, &now)
		if err == nil {
			most = min(most, now.Max)
			err = unix.Prlimit(0, what, &unix.Rlimit{Cur: most, Max: most}, nil)
		}
		errs = append(errs, namedErr(fmt.Sprintf("limit %d", what), err))
	}
	return errors.Join(errs...)
}

// everywhere makes a call on every thread of the process, the later ones inherit its effect.
func everywhere(what string, trap, a, b, c uintptr) error {
	_, _, e := syscall.AllThreadsSyscall(trap, a, b, c)
	switch e {
	case 0:
		return nil
	case syscall.ENOTSUP:
		return fmt.Errorf("%s: this program was built with cgo, whose threads Go can't reach", what)
	}
	return fmt.Errorf("%s: %w", what, e)
}

const capabilities = 64 // more than there are

// dropBounding empties the set of capabilities that the process could ever have.
func dropBounding() error {
	for c := uintptr(0); c < capabilities; c++ {
		has, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, c, 0, 0, 0)
		if errors.Is(err, unix.EINVAL) {
			return nil // that was the last one
		}
		if err != nil {
			return fmt.Errorf("look at capability %d: %w", c, err)
		}
		if has == 0 {
			continue
		}
		if err := everywhere("empty the bounding set", unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, c, 0); err != nil {
			return err
		}
	}
	return nil
}

// dropCapabilities gives up what the process has. The ambient set falls with the permitted one.
func dropCapabilities() error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	err := everywhere("give up capabilities", unix.SYS_CAPSET, uintptr(unsafe.Pointer(&hdr)), uintptr(unsafe.Pointer(&none)), 0)
	return errors.Join(err,
		everywhere("give up new privileges", unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0),
		// Nobody of the same user may look into the process, nor does it leave a core.
		namedErr("forbid to be looked into", unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)))
}

// become makes the process its own user.
func become(o Options) error {
	if o.User == 0 {
		return errors.New(o.WithoutUser)
	}
	id := int(o.User)
	if err := syscall.Setgroups(o.Groups); err != nil {
		return fmt.Errorf("leave the groups: %w", err)
	}
	if err := syscall.Setresgid(id, id, id); err != nil {
		return fmt.Errorf("become group %d: %w", id, err)
	}
	if err := syscall.Setresuid(id, id, id); err != nil {
		return fmt.Errorf("%w: become user %d: %w", errHalf, id, err)
	}
	return nil
}

// install puts a filter on every thread.
func install(filter []unix.SockFilter, log bool) error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("give up new privileges: %w", err)
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	flags := uintptr(unix.SECCOMP_FILTER_FLAG_TSYNC)
	if log {
		flags |= unix.SECCOMP_FILTER_FLAG_LOG
	}
	r, _, e := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&prog)))
	switch {
	case e == unix.EINVAL && log: // a kernel before 4.14
		return install(filter, false)
	case e == unix.ENOSYS, e == unix.EINVAL:
		return errors.New("this kernel has no seccomp filters (CONFIG_SECCOMP_FILTER)")
	case e != 0:
		return fmt.Errorf("install the filter: %w", e)
	case r != 0:
		return fmt.Errorf("install the filter: thread %d has another one", r)
	}
	return nil
}
