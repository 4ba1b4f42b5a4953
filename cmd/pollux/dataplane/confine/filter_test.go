package confine

import (
	"testing"

	"golang.org/x/sys/unix"
)

// run is the kernel's interpreter, as far as filters of this package use it (Documentation/networking/filter.rst).
func run(t *testing.T, f []unix.SockFilter, arch, number uint32, args ...uint64) uint32 {
	t.Helper()
	var a uint32
	for pc := 0; pc < len(f); pc++ {
		i := f[pc]
		switch i.Code {
		case load:
			switch {
			case i.K == offNumber:
				a = number
			case i.K == offArch:
				a = arch
			case i.K >= offArgs && i.K < offArgs+6*8 && (i.K-offArgs)%8 == 0:
				if a = 0; int(i.K-offArgs)/8 < len(args) {
					a = uint32(args[(i.K-offArgs)/8])
				}
			default:
				t.Fatalf("instruction %d loads from %d", pc, i.K)
			}
		case and:
			a &= i.K
		case unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, atOrUp:
			yes := a == i.K
			if i.Code == atOrUp {
				yes = a >= i.K
			}
			if yes {
				pc += int(i.Jt)
			} else {
				pc += int(i.Jf)
			}
		case result:
			return i.K
		default:
			t.Fatalf("instruction %d has the code %#x", pc, i.Code)
		}
	}
	t.Fatal("the filter has no end")
	return 0
}

const ownPID = 4711

func policy(t *testing.T, els uint32) []unix.SockFilter {
	t.Helper()
	f, err := assemble(rules(ownPID, els), newestKnown, els)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestPolicy(t *testing.T) {
	f := policy(t, refuse)
	t.Logf("%d instructions", len(f))
	const threadFlags = unix.CLONE_VM | unix.CLONE_FS | unix.CLONE_FILES | unix.CLONE_SIGHAND | unix.CLONE_SYSVSEM | unix.CLONE_THREAD
	for _, tc := range []struct {
		what   string
		want   uint32
		number uint32
		args   []uint64
	}{
		{"read", allow, unix.SYS_READ, nil},
		{"KVM_RUN", allow, unix.SYS_IOCTL, []uint64{5, 0xae80}},
		{"KVM_GET_DIRTY_LOG", allow, unix.SYS_IOCTL, []uint64{5, 0x4010ae42}},
		{"KVM_CREATE_VM", refuse, unix.SYS_IOCTL, []uint64{5, 0xae01}},
		{"UFFDIO_COPY", allow, unix.SYS_IOCTL, []uint64{5, 0xc028aa03}},
		{"TUNSETOFFLOAD", allow, unix.SYS_IOCTL, []uint64{5, unix.TUNSETOFFLOAD}},
		{"TUNSETQUEUE", allow, unix.SYS_IOCTL, []uint64{5, unix.TUNSETQUEUE}},
		{"TUNSETIFF", refuse, unix.SYS_IOCTL, []uint64{5, unix.TUNSETIFF}},
		{"TIOCSTI", refuse, unix.SYS_IOCTL, []uint64{5, unix.TIOCSTI}},
		{"BLKDISCARD", refuse, unix.SYS_IOCTL, []uint64{5, 0x1277}},
		{"map data", allow, unix.SYS_MMAP, []uint64{0, 4096, unix.PROT_READ | unix.PROT_WRITE}},
		{"map code", refuse, unix.SYS_MMAP, []uint64{0, 4096, unix.PROT_READ | unix.PROT_EXEC}},
		{"make code of data", refuse, unix.SYS_MPROTECT, []uint64{0, 4096, unix.PROT_READ | unix.PROT_EXEC}},
		{"make data unreadable", allow, unix.SYS_MPROTECT, []uint64{0, 4096, unix.PROT_NONE}},
		{"thread", allow, unix.SYS_CLONE, []uint64{threadFlags}},
		{"process", refuse, unix.SYS_CLONE, []uint64{uint64(unix.SIGCHLD)}},
		{"process that shares memory", refuse, unix.SYS_CLONE, []uint64{unix.CLONE_VM | unix.CLONE_VFORK}},
		{"thread in a user namespace", refuse, unix.SYS_CLONE, []uint64{threadFlags | unix.CLONE_NEWUSER}},
		{"clone3", unknown, unix.SYS_CLONE3, nil},
		{"signal to itself", allow, unix.SYS_TGKILL, []uint64{ownPID, 1, 10}},
		{"signal to another", refuse, unix.SYS_TGKILL, []uint64{ownPID + 1, 1, 10}},
		{"kill another", refuse, unix.SYS_KILL, []uint64{1, 9}},
		{"kill all", refuse, unix.SYS_KILL, []uint64{^uint64(0), 9}},
		{"TCP", allow, unix.SYS_SOCKET, []uint64{unix.AF_INET, unix.SOCK_STREAM | unix.SOCK_CLOEXEC | unix.SOCK_NONBLOCK}},
		{"TCP 6", allow, unix.SYS_SOCKET, []uint64{unix.AF_INET6, unix.SOCK_STREAM}},
		{"UDP", refuse, unix.SYS_SOCKET, []uint64{unix.AF_INET, unix.SOCK_DGRAM}},
		{"raw", refuse, unix.SYS_SOCKET, []uint64{unix.AF_INET, unix.SOCK_RAW}},
		{"local", refuse, unix.SYS_SOCKET, []uint64{unix.AF_UNIX, unix.SOCK_STREAM}},
		{"netlink", refuse, unix.SYS_SOCKET, []uint64{unix.AF_NETLINK, unix.SOCK_RAW}},
		{"packet", refuse, unix.SYS_SOCKET, []uint64{unix.AF_PACKET, unix.SOCK_RAW}},
		{"name a thread", allow, unix.SYS_PRCTL, []uint64{unix.PR_SET_NAME}},
		{"be dumpable again", refuse, unix.SYS_PRCTL, []uint64{unix.PR_SET_DUMPABLE, 1}},
		{"own limits", allow, unix.SYS_PRLIMIT64, []uint64{0}},
		{"another's limits", refuse, unix.SYS_PRLIMIT64, []uint64{1}},
		{"bind", refuse, unix.SYS_BIND, nil},
		{"chmod by path", allow, unix.SYS_FCHMODAT, nil},
		{"chown", refuse, unix.SYS_FCHOWNAT, nil},
		{"link", refuse, unix.SYS_LINKAT, nil},
		{"exec", kill, unix.SYS_EXECVE, nil},
		{"ptrace", kill, unix.SYS_PTRACE, nil},
		{"bpf", kill, unix.SYS_BPF, nil},
		{"newer than known", unknown, newestKnown + 1, nil},
		{"x32", kill, x32Bit | unix.SYS_READ, nil},
	} {
		if got := run(t, f, archX8664, tc.number, tc.args...); got != tc.want {
			t.Errorf("%s: %#x, want %#x", tc.what, got, tc.want)
		}
	}
	if got := run(t, f, 0x40000003, unix.SYS_READ); got != kill { // AUDIT_ARCH_I386
		t.Errorf("a 32-bit call: %#x", got)
	}
}

// Every call that is in a list has the verdict of that list, and every other one is refused; strictly, it ends the
// process.
func TestEveryCall(t *testing.T) {
	want := map[uint32]uint32{}
	for _, n := range common {
		want[n] = allow
	}
	for _, n := range hostile {
		want[n] = kill
	}
	for _, els := range []uint32{refuse, kill} {
		guarded := map[uint32]bool{}
		for _, r := range rules(ownPID, els) {
			if len(r.groups) > 0 || r.number == unix.SYS_CLONE3 {
				guarded[r.number] = true
			}
		}
		f := policy(t, els)
		for n := uint32(0); n <= newestKnown; n++ {
			w, listed := want[n]
			if guarded[n] {
				continue
			}
			if !listed {
				w = els
			}
			if got := run(t, f, archX8664, n); got != w {
				t.Errorf("call %d: %#x, want %#x", n, got, w)
			}
		}
	}
}

func TestNoCallTwice(t *testing.T) {
	if _, err := assemble([]rule{{number: 1, then: allow}, {number: 1, then: kill}}, newestKnown, refuse); err == nil {
		t.Error("two rules for one call are accepted: the second one would never apply")
	}
}
