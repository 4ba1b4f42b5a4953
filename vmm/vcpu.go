package vmm

import (
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/pollux-ha/pollux/vmm/kvm"
	"github.com/pollux-ha/pollux/vmm/platform"
)

// vcpu is a virtual CPU and its thread. What is not atomic belongs to the thread while the machine
// runs, and to whoever loads state while it does not.
type vcpu struct {
	m       *Machine
	kvm     *kvm.VCPU
	id      int
	tid     int
	inGuest atomic.Bool // in KVM_RUN or about to be

	halfDone bool // KVM_RUN has to be entered once more to complete the last access
	synced   bool // the shared registers are those of the vCPU
	fault    atomic.Pointer[vcpuFault]

	alarmed     int // page at which it has failed last
	falseAlarms int // how often in a row though that page could be read

	savedRound uint64
	state      vcpuState
	powerOn    vcpuState
	saveErr    error
}

// kick gets the vCPU out of the guest, or keeps it from entering. Any thread may call it.
func (v *vcpu) kick() {
	v.kvm.SetImmediateExit(true)
	if v.inGuest.Load() {
		// It fails only where the thread is gone, and then it is out.
		_ = unix.Tgkill(v.m.pid, v.tid, kickSignal)
	}
}

// thread runs the vCPU until the machine is closed. It never unlocks its OS thread, whose signal
// mask is of no use to other goroutines: the thread ends with it.
func (v *vcpu) thread(ready chan<- error) {
	runtime.LockOSThread()
	err := v.setUp()
	ready <- err
	if err != nil {
		return
	}
	m := v.m
	for {
		switch {
		case m.attention.Load():
			if !m.attend(v) {
				return
			}
			continue
		case v.fault.Load() != nil:
			v.awaitHeal()
			continue
		}
		v.inGuest.Store(true)
		if m.attention.Load() {
			v.inGuest.Store(false)
			continue
		}
		err := v.kvm.Run()
		v.inGuest.Store(false)
		v.exited(err)
	}
}

func (v *vcpu) setUp() error {
	v.tid = unix.Gettid()
	if v.m.cfg.PinCPUs {
		v.pin()
	}
	mask, err := blockVCPUSignals()
	if err != nil {
		return err
	}
	return v.kvm.SetSignalMask(mask)
}

// pin ties the thread to the processor of its number among those that the process may use. One is
// left to everything else; where there are too few nothing is tied.
func (v *vcpu) pin() {
	var all, one unix.CPUSet
	if unix.SchedGetaffinity(0, &all) != nil || all.Count() <= len(v.m.vcpus) {
		return
	}
	for cpu, n := 0, 0; n <= v.id+1; cpu++ {
		if all.IsSet(cpu) {
			if n == v.id+1 {
				one.Set(cpu)
			}
			n++
		}
	}
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		v.m.log.Warn("a vCPU's thread is not tied to a processor", zap.Int("vcpu", v.id), zap.Error(err))
	}
}

// complete finishes an access that was half done when the vCPU left the guest: KVM takes its
// result, and moves on past the instruction, when KVM_RUN is entered again.
func (v *vcpu) complete() {
	for v.halfDone {
		v.resync()
	}
}

// resync enters KVM_RUN and leaves it without running the guest.
func (v *vcpu) resync() {
	v.kvm.SetImmediateExit(true)
	v.exited(v.kvm.Run())
}

// exited deals with a return from KVM_RUN.
func (v *vcpu) exited(err error) {
	v.halfDone, v.synced = false, true
	switch {
	case err == nil:
		v.dispatch()
	case errors.Is(err, unix.EINTR):
		v.drainSignals()
	case errors.Is(err, unix.EAGAIN): // it has got its start-up message
	case (errors.Is(err, unix.EFAULT) || errors.Is(err, unix.EHWPOISON)) && v.kvm.Exit() == kvm.ExitMemoryFault:
		v.faultAt(v.kvm.Detail()[1], false)
	default:
		v.m.hostFault(fmt.Errorf("KVM_RUN of vCPU %d fails: %w", v.id, err))
	}
}

func (v *vcpu) dispatch() {
	m := v.m
	switch exit := v.kvm.Exit(); exit {
	case kvm.ExitIO:
		io := v.kvm.IO()
		m.Lock()
		for d := io.Data; len(d) > 0; d = d[io.Size:] {
			var known bool
			if io.Write {
				known = m.ports.Write(uint64(io.Port), d[:io.Size])
			} else {
				known = m.ports.Read(uint64(io.Port), d[:io.Size])
			}
			if !known {
				m.strangers.note("port", uint64(io.Port), io.Write, io.Size)
			}
		}
		m.Unlock()
		v.halfDone = true
	case kvm.ExitMMIO:
		a := v.kvm.MMIO()
		if m.inRAM(a.Addr) {
			// KVM takes a page of RAM that it can't read for a device's.
			v.faultAt(a.Addr, true)
			return
		}
		m.Lock()
		var known bool
		if a.Write {
			known = m.mmio.Write(a.Addr, a.Data)
		} else {
			known = m.mmio.Read(a.Addr, a.Data)
		}
		if !known {
			m.strangers.note("memory", a.Addr, a.Write, len(a.Data))
		}
		m.Unlock()
		v.halfDone = true
	case kvm.ExitShutdown:
		v.crash("triple fault")
	case kvm.ExitSystemEvent:
		switch v.kvm.Detail()[0] & 0xffff_ffff {
		case kvm.SystemShutdown:
			v.power(platform.PowerOff)
		case kvm.SystemReset:
			v.power(platform.Reset)
		default:
			v.crash("the guest reports a crash of its own")
		}
	case kvm.ExitHLT, kvm.ExitIntr, kvm.ExitIRQWindow:
	case kvm.ExitFailEntry:
		v.crash("the processor refuses the guest's state", zap.Uint64("reason", v.kvm.Detail()[0]))
	case kvm.ExitInternalError:
		if v.fetchFault() {
			return
		}
		d := v.kvm.Detail()
		v.crash("KVM can't go on with an instruction of the guest", zap.Uint64("suberror", d[0]&0xffff_ffff))
	default:
		v.crash("KVM returns for a reason that is not known here", zap.Uint32("exit", uint32(exit)))
	}
}

func (v *vcpu) power(e platform.PowerEvent) {
	v.m.Lock()
	v.m.PowerEvent(e)
	v.m.Unlock()
}

func (v *vcpu) crash(why string, fields ...zap.Field) {
	var r kvm.Regs
	if v.kvm.Regs(&r) == nil {
		fields = append(fields, zap.String("rip", fmt.Sprintf("%#x", r.RIP)))
	}
	v.m.log.Error("the guest has crashed: "+why, append(fields, zap.Int("vcpu", v.id))...)
	v.power(platform.Crashed)
}
