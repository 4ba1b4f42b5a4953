package virtio

import (
	"encoding/binary"
	"fmt"

	"github.com/pollux-ha/pollux/vmm/bus"
	"github.com/pollux-ha/pollux/vmm/pci"
	"github.com/pollux-ha/pollux/vmm/platform"
	"github.com/pollux-ha/pollux/vmm/platform/codec"
)

// Layout of the one base address register: all structures of section 4.1.4 and the MSI-X table.
const (
	barIndex = 0
	barSize  = 0x8000

	commonOffset = 0x0000
	isrOffset    = 0x1000
	deviceOffset = 0x2000
	notifyOffset = 0x3000
	tableOffset  = 0x4000
	pbaOffset    = 0x5000

	notifyMultiplier = 4
	maxQueues        = 33 // 16 queue pairs and one for control
	maxConfig        = 0x100
)

// Capabilities (section 4.1.4).
const (
	capVendor = 0x09

	cfgCommon = 1
	cfgNotify = 2
	cfgISR    = 3
	cfgDevice = 4
	cfgPCI    = 5
)

// Device status (section 2.1).
const (
	statusAcknowledge = 1
	statusDriver      = 2
	statusDriverOK    = 4
	statusFeaturesOK  = 8
	statusNeedsReset  = 64
	statusFailed      = 128
	statusFromDriver  = statusAcknowledge | statusDriver | statusDriverOK | statusFeaturesOK | statusFailed
)

// Feature bits of every device (section 6).
const (
	featureIndirect = 1 << 28 // VIRTIO_F_RING_INDIRECT_DESC
	featureEventIdx = 1 << 29 // VIRTIO_F_RING_EVENT_IDX
	featureVersion1 = 1 << 32 // VIRTIO_F_VERSION_1
)

// ISR status bits (section 4.1.4.5).
const (
	isrQueue  = 1
	isrConfig = 2
)

// Device types (section 5) and the PCI classes that fit them.
type kind struct {
	name  string
	id    uint16
	class uint32
}

var (
	kindNet     = kind{"net", 1, 0x020000}
	kindBlk     = kind{"blk", 2, 0x018000}
	kindConsole = kind{"console", 3, 0x078000}
	kindRNG     = kind{"rng", 4, 0xff0000}
	kindBalloon = kind{"balloon", 5, 0xff0000}
)

// model is what a kind of device adds to the transport. Called with the device lock held.
type model interface {
	// start runs when the driver has set DRIVER_OK.
	start()
	// kick says that a queue may hold new chains; only while the device runs and the queue is enabled.
	kick(q int)
	// reset forgets everything of the driver's.
	reset()
	// activate runs before the queues are looked at again; suspend ends all work beside the vCPUs.
	activate() error
	suspend()
	// config is the device configuration, at most maxConfig bytes.
	config() []byte
	save(b []byte) []byte
	// load reads what save wrote, checked against the queues it will have; apply makes it so.
	load(r *codec.Reader, queues []queue) (apply func())
}

// device is the transport half of every device here: PCI function, registers, queues, interrupts.
type device struct {
	p       platform.Platform
	name    string
	model   model
	fn      *pci.Function
	msix    *pci.MSIX
	bar     bus.Space
	notify  [maxQueues]platform.Registration
	pciCfg  int // offset of the PCI configuration access capability
	offered uint64
	active  bool            // Activate came after the last Suspend
	again   [maxQueues]bool // a goroutine is under way that looks at the queue again

	// What the guest sees and a checkpoint holds.
	queues                      []queue
	status, generation, isr     uint8
	features                    uint64 // as the driver wrote them
	featureSelect, driverSelect uint32
	configVector, queueSelect   uint16
}

// attach makes the PCI function of a device with queues of the given sizes and puts it on the bus.
func (d *device) attach(p platform.Platform, h *pci.Host, m model, k kind, index int, features uint64, sizes ...uint16) error {
	d.p, d.model = p, m
	d.name = fmt.Sprintf("virtio-%s%d", k.name, index)
	d.offered = features | featureVersion1 | featureIndirect | featureEventIdx
	d.configVector = noVector
	d.queues = make([]queue, len(sizes))
	for i, n := range sizes {
		d.queues[i] = queue{ram: p.RAM(), max: n, size: n, vector: noVector}
	}
	d.fn = pci.NewFunction(pci.Config{
		Vendor: 0x1af4, Device: 0x1040 + k.id, Revision: 1, // section 4.1.2.1
		SubsystemVendor: 0x1af4, Subsystem: 0x1040 + k.id, // 0x40 or higher, for non-transitional devices
		Class: k.class, Interrupt: true,
	})
	if err := d.build(); err != nil {
		return fmt.Errorf("%s: %w", d.name, err)
	}
	if err := h.Add(d.fn); err != nil {
		d.msix.Close()
		return fmt.Errorf("%s: %w", d.name, err)
	}
	return nil
}

func (d *device) build() error {
	if err := d.fn.AddBAR(barIndex, barSize, (*window)(d), d.moved); err != nil {
		return err
	}
	for _, c := range []struct {
		cfg            uint8
		offset, length uint32
		extra          []uint32
		writable       []byte
	}{
		{cfg: cfgCommon, offset: commonOffset, length: commonSize},
		{cfg: cfgISR, offset: isrOffset, length: 1},
		{cfg: cfgDevice, offset: deviceOffset, length: maxConfig},
		{cfg: cfgNotify, offset: notifyOffset, length: uint32(notifyMultiplier * len(d.queues)), extra: []uint32{notifyMultiplier}},
		{cfg: cfgPCI, extra: []uint32{0}, writable: []byte{0, 0, 0xff, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}},
	} {
		body := []byte{byte(16 + 4*len(c.extra)), c.cfg, barIndex, 0, 0, 0}
		body = binary.LittleEndian.AppendUint32(body, c.offset)
		body = binary.LittleEndian.AppendUint32(body, c.length)
		for _, x := range c.extra {
			body = binary.LittleEndian.AppendUint32(body, x)
		}
		at, err := d.fn.AddCapability(capVendor, body, c.writable)
		if err != nil {
			return err
		}
		if c.cfg == cfgPCI {
			d.pciCfg = at
			d.fn.Hook(at+16, 4, d.readThrough, d.writeThrough)
		}
	}
	msix, err := d.fn.AddMSIX(d.p, len(d.queues)+1, barIndex, tableOffset, pbaOffset)
	if err != nil {
		return err
	}
	d.msix = msix
	table, tableSize := msix.Table()
	pba, pbaSize := msix.PBA()
	for _, w := range []struct {
		at, size uint64
		h        bus.Handler
	}{
		{commonOffset, commonSize, (*commonConfig)(d)},
		{isrOffset, 1, (*isrStatus)(d)},
		{deviceOffset, maxConfig, (*deviceConfig)(d)},
		{notifyOffset, uint64(notifyMultiplier * len(d.queues)), (*notifyArea)(d)},
		{tableOffset, tableSize, table},
		{pbaOffset, pbaSize, pba},
	} {
		if err := d.bar.Map(w.at, w.size, w.h); err != nil {
			return err
		}
	}
	return nil
}

// close gives back what the platform gave.
func (d *device) close() {
	d.active = false
	d.moved(0, false)
	d.msix.Close()
}

// moved registers the queues' notification addresses where the window is now. Where that fails, the
// guest's writes arrive at notifyArea: slower, but just as well.
func (d *device) moved(base uint64, mapped bool) {
	for i, r := range d.notify {
		if r != nil {
			r.Close()
			d.notify[i] = nil
		}
	}
	if !mapped {
		return
	}
	for i := range d.queues {
		if r, err := d.p.Notify(base+notifyOffset+notifyMultiplier*uint64(i), func() { d.kick(i) }); err == nil {
			d.notify[i] = r
		}
	}
}

// running says whether the device may touch its queues.
func (d *device) running() bool {
	return d.active && d.status&(statusDriverOK|statusNeedsReset) == statusDriverOK
}

func (d *device) negotiated(feature uint64) bool {
	return d.status&statusFeaturesOK != 0 && d.features&feature != 0
}

func (d *device) kick(i int) {
	if d.running() && d.queues[i].enabled {
		d.model.kick(i)
	}
}

// later looks at a queue again once others had a chance at the device lock: a guest that keeps adding
// chains must not keep a checkpoint waiting.
func (d *device) later(i int) {
	if d.again[i] {
		return
	}
	d.again[i] = true
	go func() {
		d.p.Lock()
		defer d.p.Unlock()
		d.again[i] = false
		d.kick(i)
	}()
}

// serve runs a queue whose chains are finished at once. handle returns the bytes that it wrote.
func (d *device) serve(i int, c *chain, handle func(*chain) uint32) {
	q := &d.queues[i]
	for n := 0; ; n++ {
		if n == int(q.size) {
			d.later(i)
			break
		}
		ok, err := q.pop(c)
		if err == nil && !ok {
			if ok, err = q.arm(); ok {
				continue
			}
		}
		if err == nil && ok {
			err = q.push(c.head, handle(c))
		}
		if err != nil {
			d.publish(i)
			d.needsReset()
			return
		}
		if !ok {
			break
		}
	}
	d.publish(i)
}

// publish shows a queue's used chains to the driver, with an interrupt if it wants one.
func (d *device) publish(i int) {
	interrupt, err := d.queues[i].publish()
	if err != nil {
		d.needsReset()
		return
	}
	if interrupt {
		d.interrupt(i)
	}
}

func (d *device) interrupt(i int) {
	if d.msix.Enabled() {
		d.msix.Trigger(d.queues[i].vector)
		return
	}
	d.isr |= isrQueue
	d.fn.SetINTx(true)
}

// configChanged tells the driver that the device configuration or the status has changed.
func (d *device) configChanged() {
	d.generation++
	if d.status&statusDriverOK == 0 {
		return
	}
	d.isr |= isrConfig
	if d.msix.Enabled() {
		d.msix.Trigger(d.configVector)
		return
	}
	d.fn.SetINTx(true)
}

// needsReset stops the device until its driver resets it (section 2.1.2).
func (d *device) needsReset() {
	d.status |= statusNeedsReset
	d.configChanged()
}

func (d *device) setStatus(v uint8) {
	if v == 0 {
		d.resetDevice()
		return
	}
	v &= statusFromDriver
	if v&statusFeaturesOK != 0 && (d.features&^d.offered != 0 || d.features&featureVersion1 == 0) {
		v &^= statusFeaturesOK // section 3.1.1, step 5
	}
	if (v|d.status)&statusFeaturesOK == 0 {
		v &^= statusDriverOK
	}
	begins := v&statusDriverOK != 0 && d.status&statusDriverOK == 0
	d.status |= v
	d.applyFeatures()
	if begins {
		d.model.start()
		for i := range d.queues {
			d.kick(i)
		}
	}
}

func (d *device) applyFeatures() {
	for i := range d.queues {
		d.queues[i].indirect = d.negotiated(featureIndirect)
		d.queues[i].eventIdx = d.negotiated(featureEventIdx)
	}
}

func (d *device) resetDevice() {
	d.status, d.isr, d.features = 0, 0, 0
	d.featureSelect, d.driverSelect, d.queueSelect = 0, 0, 0
	d.configVector = noVector
	for i := range d.queues {
		d.queues[i].reset()
	}
	d.fn.SetINTx(false)
	d.model.reset()
}

// Reset implements platform.Resetter.
func (d *device) Reset() {
	d.resetDevice()
	d.generation = 0
	d.fn.Reset()
}

// Activate implements platform.Activator.
func (d *device) Activate() error {
	d.active = true
	d.fn.Activate()
	if err := d.model.activate(); err != nil {
		return fmt.Errorf("%s: %w", d.name, err)
	}
	if d.status&statusDriverOK != 0 && d.isr&isrConfig != 0 {
		d.msix.Trigger(d.configVector)
	}
	if !d.running() {
		return nil
	}
	for i := range d.queues {
		if d.queues[i].enabled {
			d.interrupt(i)
			d.kick(i)
		}
	}
	return nil
}

// Suspend implements platform.Suspender.
func (d *device) Suspend() {
	d.active = false
	d.model.suspend()
}

// Slot is the device's slot on PCI bus 0.
func (d *device) Slot() int { return d.fn.Slot() }

// StateID implements platform.Stateful.
func (d *device) StateID() string { return d.name }

// StateVersion implements platform.Stateful.
func (d *device) StateVersion() uint16 { return 1 }

// SaveState implements platform.Stateful.
func (d *device) SaveState(b []byte) []byte {
	le := binary.LittleEndian
	b = d.fn.Save(b)
	b = append(b, d.status, d.generation, d.isr)
	b = le.AppendUint64(b, d.features)
	b = le.AppendUint32(b, d.featureSelect)
	b = le.AppendUint32(b, d.driverSelect)
	b = le.AppendUint16(b, d.configVector)
	b = le.AppendUint16(b, d.queueSelect)
	for i := range d.queues {
		b = d.queues[i].save(b)
	}
	return d.model.save(b)
}

// RestoreState implements platform.Stateful. A device that was active is suspended by it.
func (d *device) RestoreState(_ uint16, b []byte) error {
	r := codec.NewReader(b)
	function := d.fn.Load(r)
	status, generation, isr := r.U8(), r.U8(), r.U8()
	features, featureSelect, driverSelect := r.U64(), r.U32(), r.U32()
	configVector, queueSelect := r.U16(), r.U16()
	if status&^(statusFromDriver|statusNeedsReset) != 0 || isr&^(isrQueue|isrConfig) != 0 {
		r.Failf("status %#x, interrupt status %#x", status, isr)
	}
	if status&statusFeaturesOK != 0 && features&^d.offered != 0 {
		r.Failf("features %#x of %#x", features, d.offered)
	}
	if status&(statusDriverOK|statusFeaturesOK) == statusDriverOK {
		r.Failf("status %#x", status)
	}
	if configVector != noVector && int(configVector) >= d.msix.Vectors() {
		r.Failf("vector %d of %d", configVector, d.msix.Vectors())
	}
	queues := make([]queue, len(d.queues))
	for i := range queues {
		queues[i].ram, queues[i].max = d.queues[i].ram, d.queues[i].max
		queues[i].load(r, d.msix.Vectors())
	}
	model := d.model.load(r, queues)
	if err := r.Done(); err != nil {
		return err
	}
	if d.active {
		d.Suspend()
	}
	d.status, d.generation, d.isr = status, generation, isr
	d.features, d.featureSelect, d.driverSelect = features, featureSelect, driverSelect
	d.configVector, d.queueSelect = configVector, queueSelect
	copy(d.queues, queues)
	d.applyFeatures()
	model()
	function()
	return nil
}
