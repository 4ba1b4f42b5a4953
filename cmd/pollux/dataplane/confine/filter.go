package confine

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// What a filter returns (seccomp(2)).
const (
	allow   = unix.SECCOMP_RET_ALLOW
	kill    = unix.SECCOMP_RET_KILL_PROCESS
	refuse  = unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)
	unknown = unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
)

// Offsets in struct seccomp_data. Arguments are 64 bits, of which the rules look at the lower half: the kernel takes
// no more of the arguments in question.
const (
	offNumber = 0
	offArch   = 4
	offArgs   = 16
)

const (
	archX8664  = 0xc000003e // AUDIT_ARCH_X86_64
	x32Bit     = 0x40000000
	filterSize = 4096 // BPF_MAXINSNS
)

// cond is a condition on an argument: arg & mask == value; mask 0 stands for all bits.
type cond struct {
	arg   int
	mask  uint32
	value uint32
	not   bool
}

// rule is what becomes of a call: then, where of each group one condition holds, otherwise els.
type rule struct {
	number    uint32
	groups    [][]cond
	then, els uint32
}

func stmt(code uint16, k uint32) unix.SockFilter { return unix.SockFilter{Code: code, K: k} }

func jump(k uint32, yes, no uint8) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: k, Jt: yes, Jf: no}
}

const (
	load   = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
	and    = unix.BPF_ALU | unix.BPF_AND | unix.BPF_K
	result = unix.BPF_RET | unix.BPF_K
	atOrUp = unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K
)

// assemble makes a filter of rules. Calls of another architecture's numbering end the process; those that came into the
// kernel after the newest that this package knows are answered as by a kernel without them.
func assemble(rules []rule, newest, otherwise uint32) ([]unix.SockFilter, error) {
	f := []unix.SockFilter{
		stmt(load, offArch), jump(archX8664, 1, 0), stmt(result, kill),
		stmt(load, offNumber),
		{Code: atOrUp, K: x32Bit, Jt: 0, Jf: 1}, stmt(result, kill),
		{Code: atOrUp, K: newest + 1, Jt: 0, Jf: 1}, stmt(result, unknown),
	}
	seen := map[uint32]bool{}
	for _, r := range rules {
		if seen[r.number] {
			return nil, fmt.Errorf("two rules for call %d", r.number)
		}
		seen[r.number] = true
		body, err := r.body()
		if err != nil {
			return nil, fmt.Errorf("call %d: %w", r.number, err)
		}
		f = append(append(f, jump(r.number, 0, uint8(len(body)))), body...)
	}
	f = append(f, stmt(result, otherwise))
	if len(f) > filterSize {
		return nil, fmt.Errorf("%d instructions, the kernel takes %d", len(f), filterSize)
	}
	return f, nil
}

// body ends in a verdict whatever happens in it.
func (r rule) body() ([]unix.SockFilter, error) {
	var b []unix.SockFilter
	for _, group := range r.groups {
		// One condition after the other: it holds, on to what follows the group; the last does not: els.
		var g []unix.SockFilter
		var hit []int // jumps to what follows
		for _, c := range group {
			g = append(g, stmt(load, uint32(offArgs+8*c.arg)))
			if c.mask != 0 {
				g = append(g, stmt(and, c.mask))
			}
			hit = append(hit, len(g))
			j := jump(c.value, 1, 0) // 1: to be filled in
			if c.not {
				j = jump(c.value, 0, 1)
			}
			g = append(g, j)
		}
		g = append(g, stmt(result, r.els))
		for _, at := range hit {
			n := uint8(len(g) - at - 1)
			if g[at].Jt == 1 {
				g[at].Jt = n
			} else {
				g[at].Jf = n
			}
		}
		b = append(b, g...)
	}
	b = append(b, stmt(result, r.then))
	if len(b) > 255 {
		return nil, errors.New("too many conditions for one jump")
	}
	return b, nil
}
