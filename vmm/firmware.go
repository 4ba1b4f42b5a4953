package vmm

import (
	"go.uber.org/zap"

	"github.com/pollux-ha/pollux/vmm/firmware"
	"github.com/pollux-ha/pollux/vmm/pci"
	"github.com/pollux-ha/pollux/vmm/platform"
)

// addFirmware makes what firmware needs of the machine. The device lock is held.
func (m *Machine) addFirmware(host *pci.Host) error {
	d := &m.devices
	disk := len(m.cfg.Disks)
	w := &diskWatch{log: m.log, tell: m.cfg.OnDiskError}
	flash, err := firmware.NewFlash(m, firmware.FlashConfig{
		File: m.cfg.Firmware.File, Disk: disk,
		// Whoever hears of it may wait; the vCPU does not, for there is nothing that could be held.
		Failed: func(op string, offset, bytes int64, err error) {
			go w.failed(DiskError{Disk: disk, Op: op, Offset: offset, Bytes: bytes, Err: err})
		},
	})
	if err != nil {
		return err
	}
	d.flash, d.all = flash, append(d.all, flash)
	slot := uint32(len(m.ram.Regions()))
	if err := m.vm.SetReadOnlyMemory(slot, platform.FlashBase, flash.Memory()); err != nil {
		return err
	}
	about := firmware.Machine{RAM: m.ram, CPUs: m.cfg.CPUs, ECAM: host.ECAM, HighWindow: host.HighWindow}
	config, err := firmware.NewConfig(m, m.cfg.CPUs, about.Files())
	if err != nil {
		return err
	}
	d.all = append(d.all, config)
	if m.log.Core().Enabled(zap.DebugLevel) {
		return firmware.MapDebugPort(m, m.log.Named("firmware"))
	}
	return nil
}
