package vmm

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/pollux-ha/pollux/vmm/kvm"
	"github.com/pollux-ha/pollux/vmm/memory"
	"github.com/pollux-ha/pollux/vmm/platform"
)

// vcpuFault is a memory fault that a vCPU waits with.
type vcpuFault struct {
	page int
	// access is set where KVM has handed us the access as if RAM were a device: it is carried out
	// on the healed page, and until then the vCPU's state can't be saved.
	access bool
}

// damage is what a Machine knows of pages that can't be read.
type damage struct {
	sync.Mutex
	pages  map[int]*damagedPage
	gaveUp bool // nothing is mended any more, until the next Start
}

// damagedPage is one that waits for Heal.
type damagedPage struct {
	since time.Time
	met   bool // somebody waits for it
	done  chan struct{}
}

// errGaveUp says that nobody will mend a damaged page.
var errGaveUp = errors.New("it is not going to be mended")

// inRAM says whether a guest-physical address is backed by RAM.
func (m *Machine) inRAM(gpa uint64) bool { return m.ram.Contains(gpa, 1) }

// drainSignals takes the signals of this thread that ended KVM_RUN.
func (v *vcpu) drainSignals() {
	var info siginfo
	for takeSignal(&vcpuSignals, &info) {
		if unix.Signal(info.signo) != unix.SIGBUS {
			continue
		}
		off, ok := offsetIn(v.m.ram.Bytes(), info.addr)
		if !ok {
			v.m.hostFault(fmt.Errorf("memory error outside of the guest's RAM, of kind %d", info.code))
			continue
		}
		gpa := v.m.gpaOf(off)
		if info.code == busAO {
			v.m.reportFault(MemoryFault{Page: off / memory.PageSize, GPA: gpa, VCPU: -1, Optional: true})
			continue
		}
		v.faultAt(gpa, false)
	}
}

// gpaOf translates an offset in the RAM file.
func (m *Machine) gpaOf(off int) uint64 {
	for _, r := range m.ram.Regions() {
		if o := uint64(off); o >= r.Offset && o-r.Offset < r.Size {
			return r.GPA + o - r.Offset
		}
	}
	return 0
}

func (m *Machine) pageOf(gpa uint64) int {
	for _, r := range m.ram.Regions() {
		if gpa >= r.GPA && gpa-r.GPA < r.Size {
			return int((gpa - r.GPA + r.Offset) / memory.PageSize)
		}
	}
	return -1
}

// faultAt makes the vCPU wait for Heal, unless the page has been healed in between.
func (v *vcpu) faultAt(gpa uint64, access bool) {
	if v.falseAlarm(gpa) {
		if access && !v.accessElsewhere() {
			v.falseAlarms = maxFalseAlarms
			v.faultAt(gpa, access)
		}
		return
	}
	if v.m.cfg.OnMemoryFault == nil {
		v.crash("a page of guest memory can't be read", zap.Uint64("gpa", gpa))
		return
	}
	f := &vcpuFault{page: v.m.pageOf(gpa), access: access}
	v.fault.Store(f)
	v.m.reportFault(MemoryFault{Page: f.page, GPA: gpa, VCPU: v.id})
}

// maxInstruction is the length of the longest instruction.
const maxInstruction = 15

// fetchFault says whether KVM could not go on with an instruction because it lies in a damaged page, and makes
// the vCPU wait for that page then.
func (v *vcpu) fetchFault() bool {
	var r kvm.Regs
	var s kvm.Sregs
	if v.kvm.Regs(&r) != nil || v.kvm.Sregs(&s) != nil {
		return false
	}
	at := s.CS.Base + r.RIP
	for _, linear := range []uint64{at, at + maxInstruction - 1} {
		gpa, ok, err := v.kvm.Translate(linear)
		if err != nil || !ok || !v.m.inRAM(gpa) {
			continue
		}
		page := v.m.pageOf(gpa)
		if v.m.ram.WasDamaged(page) && v.falseAlarm(gpa) {
			return true
		}
		if !v.m.readable(gpa) {
			v.faultAt(gpa, false)
			return true
		}
	}
	return false
}

// maxFalseAlarms is how many times in a row a vCPU tries again at a page that can be read after all.
const maxFalseAlarms = 16

// falseAlarm says that the page at which a vCPU has failed can be read: it was healed in between, for another
// vCPU perhaps, and the access is tried again.
func (v *vcpu) falseAlarm(gpa uint64) bool {
	page := v.m.pageOf(gpa)
	if page != v.alarmed {
		v.alarmed, v.falseAlarms = page, 0
	}
	if v.falseAlarms >= maxFalseAlarms || !v.m.readable(gpa) {
		v.falseAlarms = 0
		return false
	}
	v.falseAlarms++
	return true
}

// readable looks at a byte of guest memory. Not on the caller's thread: a vCPU's blocks SIGBUS, and would be killed
// by it.
func (m *Machine) readable(gpa uint64) bool {
	tried := make(chan error)
	go func() {
		var b [1]byte
		tried <- m.ram.Access(gpa, b[:], false)
	}()
	return !errors.Is(<-tried, memory.ErrDamaged)
}

// reportFault tells of a damaged page, once, and once more when it was optional and then somebody needs it.
func (m *Machine) reportFault(f MemoryFault) *damagedPage {
	fresh := m.ram.NoteDamage(f.Page)
	d := &m.damage
	d.Lock()
	defer d.Unlock()
	p := d.pages[f.Page]
	if fresh && p != nil { // it was replaced meanwhile, by whoever fills the memory of a replica
		close(p.done)
		delete(d.pages, f.Page)
		p = nil
	}
	if p != nil && (p.met || f.Optional) {
		return p
	}
	if p == nil {
		if d.pages == nil {
			d.pages = make(map[int]*damagedPage)
		}
		p = &damagedPage{since: time.Now(), done: make(chan struct{})}
		d.pages[f.Page] = p
	}
	p.met = !f.Optional
	f.Since = p.since
	m.log.Error("a page of guest memory can't be read", zap.Int("page", f.Page), zap.Uint64("gpa", f.GPA),
		zap.Int("vcpu", f.VCPU), zap.Bool("action_optional", f.Optional))
	if m.cfg.OnMemoryFault != nil {
		go m.cfg.OnMemoryFault(f)
	}
	return p
}

// mendForDevice is how a device gets a page that it has found damaged: its thread waits, with the device lock
// held.
func (m *Machine) mendForDevice(page int) error {
	if m.cfg.OnMemoryFault == nil {
		m.log.Error("a page of guest memory that a device needs can't be read", zap.Int("page", page))
		m.PowerEvent(platform.Crashed)
		return errGaveUp
	}
	p := m.reportFault(MemoryFault{Page: page, GPA: m.gpaOf(page * memory.PageSize), VCPU: -1})
	m.damage.Lock()
	gaveUp := m.damage.gaveUp
	m.damage.Unlock()
	if gaveUp {
		return errGaveUp
	}
	<-p.done
	m.damage.Lock()
	defer m.damage.Unlock()
	if m.damage.gaveUp {
		return errGaveUp
	}
	return nil
}

// FoundDamaged says that a page can't be read, and that the guest has not asked for it.
func (m *Machine) FoundDamaged(page int) {
	m.reportFault(MemoryFault{Page: page, GPA: m.gpaOf(page * memory.PageSize), VCPU: -1, Optional: true})
}

// Injection says what a page that is to be damaged must be.
type Injection struct {
	Clean bool // not written since the last capture
	Dirty bool // it counts as written since then
	// Quiet leaves it to the guest to find out. Otherwise the page is reported before anybody touches it, as the
	// kernel does with what its scrubbing finds.
	Quiet bool
}

// ErrPageDirty says that a page has been written since the last capture.
var ErrPageDirty = errors.New("the page has been written since the last checkpoint")

// InjectDamage makes a page behave as if its memory were damaged.
func (m *Machine) InjectDamage(page int, how Injection) error {
	if err := m.injectDamage(page, how); err != nil {
		return err
	}
	if !how.Quiet {
		m.FoundDamaged(page)
	}
	return nil
}

func (m *Machine) injectDamage(page int, how Injection) error {
	m.Lock() // no checkpoint comes between
	defer m.Unlock()
	if how.Clean {
		if dirty, err := m.PageDirty(page); err != nil {
			return err
		} else if dirty {
			return fmt.Errorf("page %d: %w", page, ErrPageDirty)
		}
	}
	if how.Dirty {
		if err := m.ram.MarkDirty(page); err != nil {
			return err
		}
	}
	return m.ram.Poison(page)
}

// GiveUpDamage says that no damaged page is going to be mended. Devices that wait for one fail; vCPUs wait until
// Stop. Whoever calls it has seen to it that nothing leaves the guest any more.
func (m *Machine) GiveUpDamage() {
	d := &m.damage
	d.Lock()
	defer d.Unlock()
	if d.gaveUp {
		return
	}
	d.gaveUp = true
	for _, p := range d.pages {
		close(p.done)
	}
	d.pages = nil
}

// forgetDamage begins a new run, on other contents.
func (m *Machine) forgetDamage() {
	m.damage.Lock()
	defer m.damage.Unlock()
	m.damage.gaveUp = false
}

// undamaged takes a page that can be read again off the list.
func (m *Machine) undamaged(page int) {
	d := &m.damage
	d.Lock()
	defer d.Unlock()
	if p := d.pages[page]; p != nil {
		close(p.done)
		delete(d.pages, page)
	}
}

// awaitHeal parks the thread until its page has been healed or it is called to the gate.
func (v *vcpu) awaitHeal() {
	g := &v.m.gate
	g.Lock()
	for v.fault.Load() != nil && !v.m.attention.Load() {
		g.wait(false)
	}
	g.Unlock()
}

// Heal puts a fresh page with data in the place of a damaged one, and whoever waits for it goes on. It may be
// called at any time. The page does not count as written: data is what the twin already has. A page that has
// been discarded since it was found damaged stays as it is.
func (m *Machine) Heal(page int, data []byte) error {
	if err := m.ram.Mend(page, data); err != nil {
		return fmt.Errorf("heal a page of guest memory: %w", err)
	}
	m.undamaged(page)
	var again []MemoryFault
	g := &m.gate
	g.Lock()
	for _, v := range m.vcpus {
		f := v.fault.Load()
		if f == nil || f.page != page {
			continue
		}
		if f.access && !v.accessRAM() {
			again = append(again, MemoryFault{Page: page, GPA: m.gpaOf(page * memory.PageSize), VCPU: v.id})
			continue
		}
		v.fault.Store(nil)
	}
	g.broadcast()
	g.Unlock()
	for _, f := range again {
		m.reportFault(f)
	}
	return nil
}

// accessRAM carries out an access to RAM that KVM took for one to a device; false: the page is damaged again.
// The vCPU's thread waits meanwhile.
func (v *vcpu) accessRAM() bool {
	a := v.kvm.MMIO()
	err := v.m.ram.Access(a.Addr, a.Data, a.Write)
	if errors.Is(err, memory.ErrDamaged) {
		return false
	}
	if err != nil { // it ends beyond the RAM: a device's part, and nobody is there
		for i := range a.Data {
			a.Data[i] = 0xff
		}
	}
	v.halfDone = true
	return true
}

// accessElsewhere is accessRAM for the vCPU's own thread, which blocks SIGBUS.
func (v *vcpu) accessElsewhere() bool {
	done := make(chan bool)
	go func() { done <- v.accessRAM() }()
	return <-done
}

// PageDirty says whether a page has been written since the last capture. It may be asked while the guest runs.
func (m *Machine) PageDirty(page int) (bool, error) {
	if page < 0 || page >= m.ram.Pages() {
		return false, fmt.Errorf("page %d of %d: %w", page, m.ram.Pages(), memory.ErrRange)
	}
	d := &m.dirty
	d.Lock()
	defer d.Unlock()
	if !d.on {
		return false, errLogOff
	}
	for slot, r := range m.ram.Regions() {
		first := int(r.Offset / memory.PageSize)
		if page < first || page >= first+int(r.Size/memory.PageSize) {
			continue
		}
		if err := m.vm.DirtyLog(uint32(slot), slotWords(d.estimate, r)); err != nil {
			return false, err
		}
	}
	// What a harvest has taken is no less written for a capture that failed after it.
	return (d.estimate[page/64]|d.own[page/64])&(1<<(page%64)) != 0 || m.ram.IsDirty(page), nil
}
