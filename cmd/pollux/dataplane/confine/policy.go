package confine

import (
	"golang.org/x/sys/unix"
)

// What the kernel answers of a confined process.
//
// A call that is on none of the lists fails with EPERM and is noted in the kernel's log (audit type 1326). It does not
// end the process: such a call is far more likely one that this list, the Go runtime's next version or a rare path has
// overlooked than an attack, an error is something that every path of the program handles, and to kill a guest over it
// would be to fail at the one thing that this program is for. Options.Kill says otherwise, for tests, which find out
// that way what has been overlooked.
//
// The calls in hostile end the process at once. Nothing in it could ever mean them: who makes one has taken it over,
// and the guest is better off on the other host.

// newestKnown is the last call that was looked at for the lists (x86-64, Linux 6.12: mseal). A libc or runtime that
// tries a newer one must hear that the kernel has none, and falls back.
const newestKnown = 462

// common are needed for ordinary life, by this program and by the Go runtime under it. Files can be opened: by path
// only what own-files leaves, and of that what own-user may open.
var common = []uint32{
	// The hot ones first: older kernels walk through the filter for each call.
	unix.SYS_FUTEX, unix.SYS_READ, unix.SYS_WRITE, unix.SYS_EPOLL_PWAIT, unix.SYS_EPOLL_WAIT, unix.SYS_NANOSLEEP, unix.SYS_CLOCK_GETTIME,
	unix.SYS_READV, unix.SYS_WRITEV, unix.SYS_PREAD64, unix.SYS_PWRITE64, unix.SYS_PREADV, unix.SYS_PWRITEV, unix.SYS_PREADV2, unix.SYS_PWRITEV2,
	unix.SYS_SCHED_YIELD, unix.SYS_RT_SIGTIMEDWAIT, unix.SYS_RT_SIGRETURN, unix.SYS_RT_SIGPROCMASK, unix.SYS_MADVISE,
	// Memory. What may be executed was so from the start: see guarded.
	unix.SYS_BRK, unix.SYS_MUNMAP, unix.SYS_MREMAP, unix.SYS_MINCORE, unix.SYS_MSYNC, unix.SYS_MEMFD_CREATE, unix.SYS_USERFAULTFD, unix.SYS_MEMBARRIER,
	// Threads, signals, time.
	unix.SYS_GETPID, unix.SYS_GETTID, unix.SYS_GETPPID, unix.SYS_GETUID, unix.SYS_GETEUID, unix.SYS_GETGID, unix.SYS_GETEGID,
	unix.SYS_EXIT, unix.SYS_EXIT_GROUP, unix.SYS_SET_ROBUST_LIST, unix.SYS_RSEQ, unix.SYS_SET_TID_ADDRESS, unix.SYS_RESTART_SYSCALL,
	unix.SYS_RT_SIGACTION, unix.SYS_RT_SIGPENDING, unix.SYS_RT_SIGSUSPEND, unix.SYS_SIGALTSTACK,
	unix.SYS_SCHED_GETAFFINITY, unix.SYS_SCHED_SETAFFINITY, unix.SYS_GETCPU, unix.SYS_CLOCK_NANOSLEEP, unix.SYS_CLOCK_GETRES, unix.SYS_GETTIMEOFDAY, unix.SYS_TIME,
	unix.SYS_TIMER_CREATE, unix.SYS_TIMER_SETTIME, unix.SYS_TIMER_DELETE, unix.SYS_TIMERFD_CREATE, unix.SYS_TIMERFD_SETTIME, unix.SYS_TIMERFD_GETTIME, unix.SYS_SETITIMER,
	unix.SYS_GETRANDOM, unix.SYS_UNAME, unix.SYS_SYSINFO, unix.SYS_GETRUSAGE, unix.SYS_GETRLIMIT, unix.SYS_CAPGET,
	// Descriptors and files.
	unix.SYS_CLOSE, unix.SYS_CLOSE_RANGE, unix.SYS_DUP, unix.SYS_DUP3, unix.SYS_FCNTL, unix.SYS_PIPE2, unix.SYS_EVENTFD2, unix.SYS_POLL, unix.SYS_PPOLL,
	unix.SYS_EPOLL_CREATE1, unix.SYS_EPOLL_CTL,
	unix.SYS_OPENAT, unix.SYS_OPENAT2, unix.SYS_FSTAT, unix.SYS_NEWFSTATAT, unix.SYS_STAT, unix.SYS_LSTAT, unix.SYS_STATX, unix.SYS_FSTATFS, unix.SYS_STATFS, unix.SYS_READLINKAT, unix.SYS_GETDENTS64,
	unix.SYS_FACCESSAT, unix.SYS_FACCESSAT2, unix.SYS_GETCWD, unix.SYS_UMASK,
	unix.SYS_UNLINKAT, unix.SYS_RENAMEAT, unix.SYS_RENAMEAT2, unix.SYS_FCHMOD, unix.SYS_FCHMODAT,
	unix.SYS_LSEEK, unix.SYS_FSYNC, unix.SYS_FDATASYNC, unix.SYS_SYNC_FILE_RANGE, unix.SYS_FTRUNCATE, unix.SYS_FALLOCATE, unix.SYS_FADVISE64, unix.SYS_FLOCK,
	unix.SYS_SENDFILE, unix.SYS_COPY_FILE_RANGE,
	// Sockets: those that listen are open already.
	unix.SYS_CONNECT, unix.SYS_ACCEPT4, unix.SYS_SENDTO, unix.SYS_RECVFROM, unix.SYS_SENDMSG, unix.SYS_RECVMSG, unix.SYS_SHUTDOWN,
	unix.SYS_GETSOCKNAME, unix.SYS_GETPEERNAME, unix.SYS_SETSOCKOPT, unix.SYS_GETSOCKOPT,
}

// hostile are calls that nothing in a data-plane process means, ever.
var hostile = []uint32{
	unix.SYS_EXECVE, unix.SYS_EXECVEAT, unix.SYS_FORK, unix.SYS_VFORK,
	unix.SYS_PTRACE, unix.SYS_PROCESS_VM_READV, unix.SYS_PROCESS_VM_WRITEV, unix.SYS_PIDFD_GETFD, unix.SYS_KCMP,
	unix.SYS_MOUNT, unix.SYS_UMOUNT2, unix.SYS_PIVOT_ROOT, unix.SYS_CHROOT, unix.SYS_MOVE_MOUNT, unix.SYS_OPEN_TREE, unix.SYS_MOUNT_SETATTR,
	unix.SYS_FSOPEN, unix.SYS_FSCONFIG, unix.SYS_FSMOUNT, unix.SYS_FSPICK, unix.SYS_OPEN_BY_HANDLE_AT, unix.SYS_NAME_TO_HANDLE_AT,
	unix.SYS_SETNS, unix.SYS_UNSHARE, unix.SYS_PERSONALITY, unix.SYS_IOPL, unix.SYS_IOPERM, unix.SYS_MODIFY_LDT,
	unix.SYS_BPF, unix.SYS_PERF_EVENT_OPEN, unix.SYS_IO_URING_SETUP, unix.SYS_IO_URING_ENTER, unix.SYS_IO_URING_REGISTER,
	unix.SYS_KEXEC_LOAD, unix.SYS_KEXEC_FILE_LOAD, unix.SYS_INIT_MODULE, unix.SYS_FINIT_MODULE, unix.SYS_DELETE_MODULE,
	unix.SYS_REBOOT, unix.SYS_SWAPON, unix.SYS_SWAPOFF, unix.SYS_ACCT, unix.SYS_QUOTACTL, unix.SYS_SYSLOG, unix.SYS_VHANGUP,
	unix.SYS_ADD_KEY, unix.SYS_REQUEST_KEY, unix.SYS_KEYCTL, unix.SYS_FANOTIFY_INIT,
	unix.SYS_SETUID, unix.SYS_SETGID, unix.SYS_SETREUID, unix.SYS_SETREGID, unix.SYS_SETRESUID, unix.SYS_SETRESGID, unix.SYS_SETFSUID, unix.SYS_SETFSGID, unix.SYS_SETGROUPS,
	unix.SYS_CAPSET, unix.SYS_SETHOSTNAME, unix.SYS_SETDOMAINNAME, unix.SYS_SETTIMEOFDAY, unix.SYS_CLOCK_SETTIME, unix.SYS_ADJTIMEX, unix.SYS_CLOCK_ADJTIME,
	unix.SYS_MKNOD, unix.SYS_MKNODAT,
}

const (
	kvmCreateVM = 0xae01 // KVM_CREATE_VM: the process has its machine
	// Types of ioctl commands (Documentation/userspace-api/ioctl/ioctl-number.rst).
	typeMask = 0xff00
	typeKVM  = 0xae00
	typeUFFD = 0xaa00

	newNamespaces = unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET
)

// rules is the policy for the process with this number. els is for calls on no list, and for those with arguments that
// are not on it.
func rules(pid uint32, els uint32) []rule {
	is := func(arg int, values ...uint32) (group []cond) {
		for _, v := range values {
			group = append(group, cond{arg: arg, value: v})
		}
		return group
	}
	guarded := func(number uint32, groups ...[]cond) rule {
		return rule{number: number, groups: groups, then: allow, els: els}
	}
	noExec := []cond{{arg: 2, mask: unix.PROT_EXEC, value: 0}}
	all := []rule{
		guarded(unix.SYS_IOCTL, append(
			[]cond{{arg: 1, mask: typeMask, value: typeKVM}, {arg: 1, mask: typeMask, value: typeUFFD}},
			is(1, unix.TUNSETOFFLOAD, unix.TUNSETQUEUE)...), []cond{{arg: 1, value: kvmCreateVM, not: true}}),
		guarded(unix.SYS_MMAP, noExec),
		guarded(unix.SYS_MPROTECT, noExec),
		// A thread, and not a process. clone3 hides its arguments: who tries it takes clone where there is none.
		guarded(unix.SYS_CLONE, []cond{{arg: 0, mask: unix.CLONE_THREAD | newNamespaces, value: unix.CLONE_THREAD}}),
		{number: unix.SYS_CLONE3, then: unknown},
		// Signals to itself: preemption, kicks, and an end by one's own hand.
		guarded(unix.SYS_TGKILL, is(0, pid)),
		guarded(unix.SYS_KILL, is(0, pid)),
		// TCP to the twin, and nothing raw, local or of the kernel's.
		guarded(unix.SYS_SOCKET, is(0, unix.AF_INET, unix.AF_INET6), []cond{{arg: 1, mask: 0xf, value: unix.SOCK_STREAM}}),
		guarded(unix.SYS_PRCTL, is(0, unix.PR_SET_VMA, unix.PR_SET_NAME, unix.PR_MCE_KILL, unix.PR_MCE_KILL_GET)),
		guarded(unix.SYS_PRLIMIT64, is(0, 0, pid)),
	}
	for _, n := range common {
		all = append(all, rule{number: n, then: allow})
	}
	for _, n := range hostile {
		all = append(all, rule{number: n, then: kill})
	}
	return all
}

// restrictCalls installs the policy for good.
func restrictCalls(strict bool) error {
	els := refuse
	if strict {
		els = kill
	}
	f, err := assemble(rules(uint32(unix.Getpid()), els), newestKnown, els)
	if err != nil {
		return err
	}
	return install(f, true)
}
