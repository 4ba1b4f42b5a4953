package kvm

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Regs is struct kvm_regs.
type Regs struct {
	RAX, RBX, RCX, RDX, RSI, RDI, RSP, RBP uint64
	R8, R9, R10, R11, R12, R13, R14, R15   uint64
	RIP, RFLAGS                            uint64
}

// Segment is struct kvm_segment.
type Segment struct {
	Base                           uint64
	Limit                          uint32
	Selector                       uint16
	Type                           uint8
	Present, DPL, DB, S, L, G, AVL uint8
	Unusable                       uint8
	_                              uint8
}

// Table is struct kvm_dtable.
type Table struct {
	Base  uint64
	Limit uint16
	_     [3]uint16
}

// Sregs is struct kvm_sregs.
type Sregs struct {
	CS, DS, ES, FS, GS, SS  Segment
	TR, LDT                 Segment
	GDT, IDT                Table
	CR0, CR2, CR3, CR4, CR8 uint64
	EFER                    uint64
	APICBase                uint64
	InterruptBitmap         [4]uint64
}

// Sregs2 is struct kvm_sregs2: the page directory pointers of PAE paging instead of the interrupt
// bitmap, which is in Events too.
type Sregs2 struct {
	CS, DS, ES, FS, GS, SS  Segment
	TR, LDT                 Segment
	GDT, IDT                Table
	CR0, CR2, CR3, CR4, CR8 uint64
	EFER                    uint64
	APICBase                uint64
	Flags                   uint64
	PDPTRs                  [4]uint64
}

// State that is carried as the kernel lays it out.
type (
	Events    [64]byte   // struct kvm_vcpu_events
	DebugRegs [128]byte  // struct kvm_debugregs
	XCRs      [392]byte  // struct kvm_xcrs
	LAPIC     [1024]byte // struct kvm_lapic_state
)

// XSAVESize is the size of struct kvm_xsave; CapXSAVE2 may ask for more.
const XSAVESize = 4096

// Values of MPState (api.rst, 4.38).
const (
	MPRunnable      = 0
	MPUninitialized = 1
	MPInitReceived  = 2
	MPHalted        = 3
	MPSIPIReceived  = 4
)

func get[T any](c *VCPU, name string, req uintptr, to *T) error {
	if _, err := ioctlPtr(c.fd, req, to); err != nil {
		return fmt.Errorf("KVM_%s of vCPU %d: %w", name, c.id, err)
	}
	return nil
}

func (c *VCPU) Regs(to *Regs) error             { return get(c, "GET_REGS", ioGetRegs, to) }              // api.rst, 4.11
func (c *VCPU) SetRegs(r *Regs) error           { return get(c, "SET_REGS", ioSetRegs, r) }               // 4.12
func (c *VCPU) Sregs(to *Sregs) error           { return get(c, "GET_SREGS", ioGetSregs, to) }            // 4.13
func (c *VCPU) SetSregs(r *Sregs) error         { return get(c, "SET_SREGS", ioSetSregs, r) }             // 4.14
func (c *VCPU) Sregs2(to *Sregs2) error         { return get(c, "GET_SREGS2", ioGetSregs2, to) }          // 4.131
func (c *VCPU) SetSregs2(r *Sregs2) error       { return get(c, "SET_SREGS2", ioSetSregs2, r) }           // 4.132
func (c *VCPU) Events(to *Events) error         { return get(c, "GET_VCPU_EVENTS", ioGetVCPUEvents, to) } // 4.31
func (c *VCPU) SetEvents(e *Events) error       { return get(c, "SET_VCPU_EVENTS", ioSetVCPUEvents, e) }  // 4.32
func (c *VCPU) DebugRegs(to *DebugRegs) error   { return get(c, "GET_DEBUGREGS", ioGetDebugRegs, to) }    // 4.33
func (c *VCPU) SetDebugRegs(d *DebugRegs) error { return get(c, "SET_DEBUGREGS", ioSetDebugRegs, d) }     // 4.34
func (c *VCPU) XCRs(to *XCRs) error             { return get(c, "GET_XCRS", ioGetXCRs, to) }              // 4.44
func (c *VCPU) SetXCRs(x *XCRs) error           { return get(c, "SET_XCRS", ioSetXCRs, x) }               // 4.45
func (c *VCPU) LAPIC(to *LAPIC) error           { return get(c, "GET_LAPIC", ioGetLAPIC, to) }            // 4.57
func (c *VCPU) SetLAPIC(l *LAPIC) error         { return get(c, "SET_LAPIC", ioSetLAPIC, l) }             // 4.58

// MPState says whether the vCPU runs, halts or waits for its start-up message (4.38). Asking for
// it lets the vCPU take a pending INIT or SIPI, which changes its registers.
func (c *VCPU) MPState() (uint32, error) {
	var s uint32
	return s, get(c, "GET_MP_STATE", ioGetMPState, &s)
}

func (c *VCPU) SetMPState(s uint32) error { return get(c, "SET_MP_STATE", ioSetMPState, &s) } // 4.39

// XSAVE reads FPU, SSE, AVX and later extended state (4.42, 4.134). to has at least XSAVESize
// bytes, and as many as the machine's CapXSAVE2 says.
func (c *VCPU) XSAVE(to []byte) error {
	if len(to) < XSAVESize {
		return fmt.Errorf("KVM_GET_XSAVE into %d bytes: %w", len(to), unix.EINVAL)
	}
	if len(to) > XSAVESize {
		return get(c, "GET_XSAVE2", ioGetXSAVE2, &to[0])
	}
	return get(c, "GET_XSAVE", ioGetXSAVE, &to[0])
}

// SetXSAVE is its counterpart (4.43).
func (c *VCPU) SetXSAVE(from []byte) error {
	if len(from) < XSAVESize {
		return fmt.Errorf("KVM_SET_XSAVE from %d bytes: %w", len(from), unix.EINVAL)
	}
	return get(c, "SET_XSAVE", ioSetXSAVE, &from[0])
}

// TSCKHz is the rate of the guest's TSC in kHz (4.56).
func (c *VCPU) TSCKHz() (int, error) {
	n, err := ioctl(c.fd, ioGetTSCKHz, 0)
	if err != nil {
		return 0, fmt.Errorf("KVM_GET_TSC_KHZ of vCPU %d: %w", c.id, err)
	}
	return n, nil
}

// SetTSCKHz sets it; without CapTSCControl only to about what it is (4.55).
func (c *VCPU) SetTSCKHz(khz int) error {
	if _, err := ioctl(c.fd, ioSetTSCKHz, uintptr(khz)); err != nil {
		return fmt.Errorf("KVM_SET_TSC_KHZ of vCPU %d to %d: %w", c.id, khz, err)
	}
	return nil
}

// translation is struct kvm_translation.
type translation struct {
	linear, physical          uint64
	valid, writable, userMode uint8
	_                         [5]byte
}

// Translate finds the guest-physical address of a linear one, in the vCPU's present address space; false: it has
// none (api.rst, 4.14).
func (c *VCPU) Translate(linear uint64) (gpa uint64, ok bool, err error) {
	t := translation{linear: linear}
	if _, err := ioctlPtr(c.fd, ioTranslate, &t); err != nil {
		return 0, false, fmt.Errorf("KVM_TRANSLATE of vCPU %d: %w", c.id, err)
	}
	return t.physical, t.valid != 0, nil
}
