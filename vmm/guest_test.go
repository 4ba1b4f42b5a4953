package vmm

import (
	"encoding/binary"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pollux-ha/pollux/vmm/boot"
	"github.com/pollux-ha/pollux/vmm/kvm"
	"github.com/pollux-ha/pollux/vmm/memory"
)

// Where the tiny test guests keep their things, guest-physical. They run in long mode with memory
// mapped one to one, at CPL 3 (which every KVM runs natively) unless a test says otherwise.
const (
	guestPML4   = 0x1000
	guestPDPT   = 0x2000
	guestGDT    = 0x4000
	guestIDT    = 0x5000
	guestTSS    = 0x6000  // three pages: with an I/O permission map that permits everything
	guestStack  = 0xa000  // top of the CPL 0 stack
	guestUser   = 0xc000  // top of the CPL 3 stack
	guestCode   = 0x10000 // entry
	guestISR    = 0x11000
	guestData   = 0x20000
	guestTables = 0x100000 // four page directories
	guestHeap   = 0x400000

	selKernelCS = 0x08
	selKernelSS = 0x10
	selUserCS   = 0x18 | 3
	selUserSS   = 0x20 | 3
	selTSS      = 0x28
)

func requireKVM(t testing.TB) {
	t.Helper()
	if err := kvm.Check(); err != nil {
		t.Skipf("needs /dev/kvm: %v", err)
	}
}

// newMachine makes a machine that is closed with the test.
func newMachine(t testing.TB, cfg Config) *Machine {
	t.Helper()
	requireKVM(t)
	if cfg.MemoryBytes == 0 {
		cfg.MemoryBytes = 64 << 20
	}
	if cfg.CPUs == 0 {
		cfg.CPUs = 1
	}
	m, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return m
}

// load puts a guest into the machine: code at guestCode, isr as the handler of vector 0x40, and
// page tables, descriptors and a TSS around them.
func load(t testing.TB, m *Machine, code, isr []byte) {
	t.Helper()
	write := func(gpa uint64, p []byte) {
		if err := m.ram.Write(gpa, p); err != nil {
			t.Fatal(err)
		}
	}
	u64 := func(gpa uint64, v uint64) {
		write(gpa, binary.LittleEndian.AppendUint64(nil, v))
	}
	const present, writable, user, huge = 1, 2, 4, 0x80
	u64(guestPML4, guestPDPT|present|writable|user)
	for g := range uint64(4) { // four times 1 GiB, in 2 MiB pages
		u64(guestPDPT+8*g, (guestTables+g*0x1000)|present|writable|user)
		for i := range uint64(512) {
			u64(guestTables+g*0x1000+8*i, g<<30|i<<21|present|writable|user|huge)
		}
	}
	for i, d := range []uint64{0, 0x00af9b000000ffff, 0x00cf93000000ffff, 0x00affb000000ffff, 0x00cff3000000ffff,
		0x00008b0000002068 | guestTSS<<16, 0} {
		u64(guestGDT+8*uint64(i), d)
	}
	u64(guestTSS+4, guestStack) // RSP0
	write(guestTSS+0x66, []byte{0x68, 0})
	write(guestTSS+0x68+0x2000, []byte{0xff})
	gate := func(vector int, handler uint64) {
		u64(guestIDT+16*uint64(vector), handler&0xffff|selKernelCS<<16|0xee00<<32|(handler>>16&0xffff)<<48)
		u64(guestIDT+16*uint64(vector)+8, handler>>32)
	}
	gate(0x40, guestISR)
	write(guestCode, code)
	write(guestISR, isr)
	if err := m.vcpus[0].enter(userEntry()); err != nil {
		t.Fatal(err)
	}
	m.Lock()
	m.ready = true
	m.Unlock()
}

func userEntry() boot.Entry {
	const cr0 = 1<<31 | 1<<16 | 1<<5 | 1<<4 | 1<<1 | 1 // PG, WP, NE, ET, MP, PE
	const cr4 = 1<<5 | 1<<9 | 1<<10                    // PAE, OSFXSR, OSXMMEXCPT
	return boot.Entry{
		RIP: guestCode, RSP: guestUser,
		// IOPL 3 beside the TSS's bitmap: where a software KVM does not keep the former, an emulated processor
		// (QEMU 7.2) does not take the latter from a TSS that it has not loaded itself.
		RFLAGS: 0x3202,
		CR0:    cr0, CR3: guestPML4, CR4: cr4, EFER: 1<<8 | 1<<10 | 1<<11,
		CS:   boot.Segment{Selector: selUserCS, Limit: 0xffffffff, Type: 0xb, Present: 1, DPL: 3, S: 1, L: 1, G: 1},
		Data: boot.Segment{Selector: selUserSS, Limit: 0xffffffff, Type: 3, Present: 1, DPL: 3, S: 1, DB: 1, G: 1},
		TR:   boot.Segment{Selector: selTSS, Base: guestTSS, Limit: 0x2068, Type: 0xb, Present: 1},
		LDT:  boot.Segment{Unusable: 1, Type: 2},
		GDT:  boot.Table{Base: guestGDT, Limit: 0x37},
		IDT:  boot.Table{Base: guestIDT, Limit: 0xfff},
	}
}

// besidesTables are the pages without those of the guest's page tables. To nested paging a walk through these is
// a write, of the accessed bit; so some processors have them dirty again and again.
func besidesTables[T int | uint32](pages []T) (others []T) {
	for _, p := range pages {
		switch at := uint64(p) * memory.PageSize; {
		case at == guestPML4, at == guestPDPT, at >= guestTables && at < guestTables+4*memory.PageSize:
		default:
			others = append(others, p)
		}
	}
	return others
}

func (m *Machine) peek(gpa uint64) uint64 {
	v, err := m.ram.View(gpa, 8)
	if err != nil {
		panic(err)
	}
	return binary.LittleEndian.Uint64(v)
}

// eventually waits for a condition of the guest's memory; the deadline only bounds a failure.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !cond(); {
		if time.Now().After(end) {
			t.Fatalf("never happened: %s", what)
		}
		unix.Nanosleep(&unix.Timespec{Nsec: 200_000}, nil)
	}
}

func start(t testing.TB, m *Machine) {
	t.Helper()
	if err := m.Start(); err != nil {
		t.Fatal(err)
	}
}

// countCode counts in memory for ever: mov rbx, guestData; 1: inc rax; mov [rbx], rax; jmp 1b
var countCode = []byte{
	0x48, 0xc7, 0xc3, 0x00, 0x00, 0x02, 0x00,
	0x48, 0xff, 0xc0,
	0x48, 0x89, 0x03,
	0xeb, 0xf8,
}
