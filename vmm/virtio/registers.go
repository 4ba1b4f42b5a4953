package virtio

import "encoding/binary"

// window is the base address register.
type window device

func (w *window) Read(off uint64, data []byte)  { w.bar.Read(off, data) }
func (w *window) Write(off uint64, data []byte) { w.bar.Write(off, data) }

// Fields of the common configuration structure (section 4.1.4.3).
const (
	fieldDeviceFeatureSelect = 0x00
	fieldDeviceFeature       = 0x04
	fieldDriverFeatureSelect = 0x08
	fieldDriverFeature       = 0x0c
	fieldConfigVector        = 0x10
	fieldNumQueues           = 0x12
	fieldStatus              = 0x14
	fieldGeneration          = 0x15
	fieldQueueSelect         = 0x16
	fieldQueueSize           = 0x18
	fieldQueueVector         = 0x1a
	fieldQueueEnable         = 0x1c
	fieldQueueNotifyOff      = 0x1e
	fieldQueueDesc           = 0x20
	fieldQueueDriver         = 0x28
	fieldQueueDevice         = 0x30
	commonSize               = 0x38
)

type commonConfig device

// Read answers accesses of any width: all fields are laid out and the wanted piece is copied.
func (c *commonConfig) Read(off uint64, data []byte) {
	var b [commonSize]byte
	le := binary.LittleEndian
	le.PutUint32(b[fieldDeviceFeatureSelect:], c.featureSelect)
	le.PutUint32(b[fieldDeviceFeature:], word(c.offered, c.featureSelect))
	le.PutUint32(b[fieldDriverFeatureSelect:], c.driverSelect)
	le.PutUint32(b[fieldDriverFeature:], word(c.features, c.driverSelect))
	le.PutUint16(b[fieldConfigVector:], c.configVector)
	le.PutUint16(b[fieldNumQueues:], uint16(len(c.queues)))
	b[fieldStatus], b[fieldGeneration] = c.status, c.generation
	le.PutUint16(b[fieldQueueSelect:], c.queueSelect)
	if q := c.queue(); q != nil { // else its size reads as 0: no such queue
		le.PutUint16(b[fieldQueueSize:], q.size)
		le.PutUint16(b[fieldQueueVector:], q.vector)
		if q.enabled {
			le.PutUint16(b[fieldQueueEnable:], 1)
		}
		le.PutUint16(b[fieldQueueNotifyOff:], c.queueSelect)
		le.PutUint64(b[fieldQueueDesc:], q.desc)
		le.PutUint64(b[fieldQueueDriver:], q.avail)
		le.PutUint64(b[fieldQueueDevice:], q.used)
	}
	copy(data, b[off:])
}

func (c *commonConfig) queue() *queue {
	if int(c.queueSelect) < len(c.queues) {
		return &c.queues[c.queueSelect]
	}
	return nil
}

// word is 32 bits of a 64-bit feature set; there are no more than 64 features.
func word(v uint64, index uint32) uint32 {
	if index > 1 {
		return 0
	}
	return uint32(v >> (32 * index))
}

// Write takes accesses of a field's own width, and the halves of 64-bit fields (section 4.1.3.1).
// Others have no effect.
func (c *commonConfig) Write(off uint64, data []byte) {
	var v uint64
	for i, x := range data {
		v |= uint64(x) << (8 * i)
	}
	switch len(data) {
	case 1:
		if off == fieldStatus {
			(*device)(c).setStatus(uint8(v))
		}
	case 2:
		c.write16(off, uint16(v))
	case 4:
		c.write32(off, uint32(v))
	case 8:
		if off >= fieldQueueDesc && off%8 == 0 {
			c.write32(off, uint32(v))
			c.write32(off+4, uint32(v>>32))
		}
	}
}

func (c *commonConfig) write16(off uint64, v uint16) {
	switch off {
	case fieldConfigVector:
		c.configVector = c.vector(v)
		return
	case fieldQueueSelect:
		c.queueSelect = v
		return
	}
	q := c.queue()
	if q == nil {
		return
	}
	switch off {
	case fieldQueueSize:
		if !q.enabled && v <= q.max && v&(v-1) == 0 {
			q.size = v
		}
	case fieldQueueVector:
		q.vector = c.vector(v)
	case fieldQueueEnable:
		if v != 1 || q.enabled {
			return
		}
		if q.usable() != nil {
			(*device)(c).needsReset()
			return
		}
		q.enabled = true
	}
}

// vector is the vector that a field holds after v was written to it (section 4.1.5.1.2.1).
func (c *commonConfig) vector(v uint16) uint16 {
	if int(v) >= c.msix.Vectors() {
		return noVector
	}
	return v
}

func (c *commonConfig) write32(off uint64, v uint32) {
	switch off {
	case fieldDeviceFeatureSelect:
		c.featureSelect = v
		return
	case fieldDriverFeatureSelect:
		c.driverSelect = v
		return
	case fieldDriverFeature:
		if c.status&statusFeaturesOK == 0 && c.driverSelect <= 1 {
			shift := 32 * c.driverSelect
			c.features = c.features&^(0xffff_ffff<<shift) | uint64(v)<<shift
		}
		return
	}
	q := c.queue()
	if q == nil || q.enabled {
		return
	}
	half := func(p *uint64) {
		shift := 8 * (off & 4)
		*p = *p&^(0xffff_ffff<<shift) | uint64(v)<<shift
	}
	switch off &^ 4 {
	case fieldQueueDesc:
		half(&q.desc)
	case fieldQueueDriver:
		half(&q.avail)
	case fieldQueueDevice:
		half(&q.used)
	}
}

// isrStatus is the ISR status register (section 4.1.4.5): reading clears it and lowers INTx.
type isrStatus device

func (s *isrStatus) Read(_ uint64, data []byte) {
	data[0] = s.isr
	s.isr = 0
	s.fn.SetINTx(false)
}

func (s *isrStatus) Write(uint64, []byte) {}

// deviceConfig is the device-specific configuration (section 4.1.4.6).
type deviceConfig device

// configWriter is a model with a field that the driver may write.
type configWriter interface {
	writeConfig(off uint64, data []byte)
}

func (c *deviceConfig) Read(off uint64, data []byte) {
	clear(data)
	if p := c.model.config(); off < uint64(len(p)) {
		copy(data, p[off:])
	}
}

func (c *deviceConfig) Write(off uint64, data []byte) {
	if w, ok := c.model.(configWriter); ok {
		w.writeConfig(off, data)
	}
}

// notifyArea takes notifications that did not come through Platform.Notify (section 4.1.4.4).
type notifyArea device

func (n *notifyArea) Read(uint64, []byte) {}

func (n *notifyArea) Write(off uint64, _ []byte) { (*device)(n).kick(int(off / notifyMultiplier)) }

// readThrough and writeThrough are the PCI configuration access capability's window into the base
// address register (section 4.1.4.9).
func (d *device) readThrough(off int, data []byte) {
	if at, n, ok := d.through(); ok && off == 0 {
		var p [4]byte
		d.bar.Read(at, p[:n])
		copy(data, p[:n])
	}
}

func (d *device) writeThrough(off int, data []byte) {
	if at, n, ok := d.through(); ok && off == 0 && len(data) >= n {
		d.bar.Write(at, data[:n])
	}
}

func (d *device) through() (at uint64, n int, ok bool) {
	at = d.fn.Config(d.pciCfg+8, 4)
	length := d.fn.Config(d.pciCfg+12, 4)
	ok = d.fn.Config(d.pciCfg+4, 1) == barIndex && (length == 1 || length == 2 || length == 4) &&
		at%length == 0 && at+length <= barSize
	return at, int(length), ok
}
