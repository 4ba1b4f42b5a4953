package vmm

import (
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"go.uber.org/zap"

	"github.com/pollux-ha/pollux/vmm/firmware"
	"github.com/pollux-ha/pollux/vmm/legacy"
	"github.com/pollux-ha/pollux/vmm/pci"
	"github.com/pollux-ha/pollux/vmm/platform"
	"github.com/pollux-ha/pollux/vmm/virtio"
)

// devices are all device models of a machine.
type devices struct {
	nets    []*virtio.Net
	disks   []*virtio.Blk
	console *virtio.Console
	serial  *legacy.Serial
	acpi    *legacy.ACPI

	flash      *firmware.Flash // nil: no firmware
	balloon    *virtio.Balloon
	watchdog   *pci.Watchdog
	generation *legacy.Generation

	all []any // in the order in which they were made
}

// addDevices makes the devices. The order decides their PCI slots: it is the same on both hosts.
// The device lock is held.
func (m *Machine) addDevices() error {
	d := &m.devices
	host, err := pci.NewHost(m)
	if err != nil {
		return fmt.Errorf("make the PCI host: %w", err)
	}
	d.all = append(d.all, host)
	if m.cfg.Firmware != nil {
		if err := m.addFirmware(host); err != nil {
			return fmt.Errorf("make the firmware's devices: %w", err)
		}
	}
	for i, c := range m.cfg.Nets {
		n, err := virtio.NewNet(m, host, virtio.NetConfig{Index: i, Tap: c.Tap, MAC: c.MAC, MTU: c.MTU, USO: c.USO})
		if err != nil {
			return fmt.Errorf("make NIC %d: %w", i, err)
		}
		d.nets, d.all = append(d.nets, n), append(d.all, n)
	}
	for i, c := range m.cfg.Disks {
		b, err := m.newDisk(host, i, c)
		if err != nil {
			return err
		}
		d.disks, d.all = append(d.disks, b), append(d.all, b)
	}
	if d.console, err = virtio.NewConsole(m, host); err != nil {
		return fmt.Errorf("make the console: %w", err)
	}
	rng, err := virtio.NewRNG(m, host)
	if err != nil {
		return fmt.Errorf("make the entropy source: %w", err)
	}
	if d.serial, err = legacy.NewSerial(m); err != nil {
		return fmt.Errorf("make the serial port: %w", err)
	}
	rtc, err := legacy.NewRTC(m)
	if err != nil {
		return fmt.Errorf("make the CMOS clock: %w", err)
	}
	keyboard, err := legacy.NewKeyboard(m)
	if err != nil {
		return fmt.Errorf("make the keyboard controller: %w", err)
	}
	if m.cfg.Firmware != nil {
		keyboard.Hide()
	}
	if d.acpi, err = legacy.NewACPI(m); err != nil {
		return fmt.Errorf("make the power management block: %w", err)
	}
	d.all = append(d.all, d.console, rng, d.serial, rtc, keyboard, d.acpi)
	return m.addWatchers(host)
}

// addWatchers makes what a host asks of its guest, and what tells of the guest's health and identity. The
// device lock is held.
func (m *Machine) addWatchers(host *pci.Host) (err error) {
	d := &m.devices
	if d.balloon, err = virtio.NewBalloon(m, host); err != nil {
		return fmt.Errorf("make the balloon: %w", err)
	}
	if d.watchdog, err = pci.NewWatchdog(m, host); err != nil {
		return fmt.Errorf("make the watchdog: %w", err)
	}
	panicked, err := legacy.NewPVPanic(m, func() { m.log.Warn("the guest's kernel has panicked and handles that itself") })
	if err != nil {
		return fmt.Errorf("make the panic port: %w", err)
	}
	if d.generation, err = legacy.NewGeneration(m, d.acpi, m.cfg.Generation); err != nil {
		return fmt.Errorf("make the generation ID: %w", err)
	}
	d.all = append(d.all, d.balloon, d.watchdog, panicked, d.generation)
	return nil
}

// activate starts the devices. The device lock is held.
func (m *Machine) activate() error {
	for _, d := range m.devices.all {
		if a, ok := d.(platform.Activator); ok {
			if err := a.Activate(); err != nil {
				return err
			}
		}
	}
	return nil
}

// suspend keeps the devices from touching anything. The device lock is held.
func (m *Machine) suspend() {
	for _, d := range m.devices.all {
		if s, ok := d.(platform.Suspender); ok {
			s.Suspend()
		}
	}
}

// park lets the NICs of suspended devices keep what arrives for a guest that will go on. The device lock
// is held.
func (m *Machine) park() {
	for _, n := range m.devices.nets {
		n.Park()
	}
}

// drain waits until no disk worker touches its file any more. The devices are suspended, the device
// lock is not held.
func (m *Machine) drain() {
	for _, d := range m.devices.disks {
		d.Drain()
	}
}

// closeDevices frees what the devices hold. The device lock is held.
func (m *Machine) closeDevices() error {
	var err error
	for _, d := range m.devices.all {
		if c, ok := d.(io.Closer); ok {
			err = errors.Join(err, c.Close())
		}
	}
	return err
}

// MACs are the addresses that the guest's NICs have now: a guest may change them. It may be called at
// any time from any goroutine.
func (m *Machine) MACs() []net.HardwareAddr {
	var all []net.HardwareAddr
	for _, n := range m.devices.nets {
		all = append(all, n.MAC())
	}
	return all
}

// Emit puts a frame, with its header (platform.FrameHeaderBytes), on the wire of a NIC. It may be called
// at any time from any goroutine; a frame that makes no sense or that the wire does not take is an error,
// and lost, as on any network.
func (m *Machine) Emit(nic int, frame []byte) error {
	if nic < 0 || nic >= len(m.devices.nets) {
		return fmt.Errorf("send a frame on NIC %d: the guest has %d", nic, len(m.devices.nets))
	}
	return m.devices.nets[nic].Emit(frame)
}

// Inject gives the guest a frame, with its header, as if its NIC had received it. A frame for which it has
// no room, or that makes no sense, is dropped.
func (m *Machine) Inject(nic int, frame []byte) {
	if nic < 0 || nic >= len(m.devices.nets) {
		return
	}
	m.Lock()
	defer m.Unlock()
	m.devices.nets[nic].Inject(frame)
}

// OnReceive sets who hears of received frames, with their headers and the device lock held; nil for nobody. In a stay
// frames are received as well: the guest gets them when it goes on.
func (m *Machine) OnReceive(fn func(nic int, frame []byte)) {
	m.Lock()
	defer m.Unlock()
	for i, n := range m.devices.nets {
		if fn == nil {
			n.OnReceive(nil)
			continue
		}
		n.OnReceive(func(frame []byte) { fn(i, frame) })
	}
}

// CopyDisk has a disk's worker read n bytes at offset and report them through Output.DiskWritten, in
// order with the guest's own writes.
func (m *Machine) CopyDisk(disk int, offset, n int64) {
	m.Lock()
	defer m.Unlock()
	m.copyDisk(disk, offset, n)
}

// copyDisk is CopyDisk with the device lock held.
func (m *Machine) copyDisk(disk int, offset, n int64) {
	done := func(err error) {
		switch {
		case errors.Is(err, virtio.ErrDrained) && m.copies != nil:
			m.copies = append(m.copies, func() { m.copyDisk(disk, offset, n) })
		case err != nil:
			m.log.Error("a range of a disk can't be copied", zap.Int("disk", disk), zap.Int64("offset", offset),
				zap.Int64("bytes", n), zap.Error(err))
		}
	}
	switch disks := m.devices.disks; {
	case disk >= 0 && disk < len(disks):
		disks[disk].CopyRange(offset, n, done)
	case disk == len(disks) && m.devices.flash != nil:
		done(m.devices.flash.CopyRange(offset, n))
	}
}

// SetGeneration changes the VM generation ID that the guest sees; one that runs hears of it.
func (m *Machine) SetGeneration(id legacy.GenerationID) {
	m.Lock()
	defer m.Unlock()
	m.devices.generation.Set(id)
}

// PowerButton presses the guest's power button.
func (m *Machine) PowerButton() {
	m.Lock()
	defer m.Unlock()
	m.devices.acpi.PowerButton()
}

// consoleRetry is how long typed bytes wait for a guest that takes none.
const consoleRetry = 20 * time.Millisecond

// feedConsole gives what is typed to the virtio console of a guest that has written there, to the
// serial port of one that has not.
func (m *Machine) feedConsole() {
	buf := make([]byte, 256)
	for {
		n, err := m.cfg.ConsoleIn.Read(buf)
		for p := buf[:n]; len(p) > 0; {
			m.Lock()
			var taken int
			if m.devices.console.Spoken() {
				taken = m.devices.console.Input(p)
			} else {
				taken = m.devices.serial.Input(p)
			}
			m.Unlock()
			if p = p[taken:]; taken > 0 {
				continue
			}
			select {
			case <-m.closed:
				return
			case <-time.After(consoleRetry):
			}
		}
		if err != nil {
			if !errors.Is(err, io.EOF) {
				m.log.Warn("the console's input has ended", zap.Error(err))
			}
			return
		}
	}
}
