package domain

import (
	"encoding/xml"
	"fmt"
	"strconv"
	"strings"
)

// Resource types of CIM_ResourceAllocationSettingData (DSP0004, DSP0243 section 8).
const (
	ovfCPU      = "3"
	ovfMemory   = "4"
	ovfEthernet = "10"
	ovfDisk     = "17"
)

// ovfSilent are resource types that have no meaning for Pollux: controllers of buses, and input.
var ovfSilent = map[string]bool{"5": true, "6": true, "7": true, "8": true, "9": true, "13": true, "20": true}

// ParseOVF reads an OVF description (DMTF DSP0243). It takes name, CPUs, memory, disks and network cards
// of the one virtual system that is in it.
func ParseOVF(b []byte) (*Domain, error) {
	var root element
	if err := xml.Unmarshal(b, &root); err != nil {
		return nil, fmt.Errorf("%w: it is no XML: %w", ErrDescription, err)
	}
	if root.XMLName.Local != "Envelope" {
		return nil, fmt.Errorf("%w: its root is <%s>, an OVF description has <Envelope>", ErrDescription, root.XMLName.Local)
	}
	system := root.child("VirtualSystem")
	if system == nil || root.child("VirtualSystemCollection") != nil {
		return nil, fmt.Errorf("%w: it must describe one virtual system, not several", ErrDescription)
	}
	files := map[string]string{} // of the references, by id
	for _, f := range all(root.child("References"), "File") {
		files[f.attr("id")] = f.attr("href")
	}
	disks := map[string]Disk{} // by the disk's id
	for _, k := range all(root.child("DiskSection"), "Disk") {
		size, err := ovfCapacity(k)
		if err != nil {
			return nil, err
		}
		disks[k.attr("diskId")] = Disk{Source: files[k.attr("fileRef")], SizeBytes: size}
	}
	d := &Domain{Name: system.attr("id"), CPUs: 1}
	if n := system.child("Name").text(); n != "" {
		d.Name = n
	}
	hardware := system.child("VirtualHardwareSection")
	for _, name := range []string{"Item", "StorageItem", "EthernetPortItem"} {
		for _, i := range all(hardware, name) {
			if err := d.ovfItem(i, disks); err != nil {
				return nil, err
			}
		}
	}
	for _, c := range all(hardware, "Config") {
		if c.attr("key") == "firmware" && oneOf(c.attr("value"), "efi") {
			d.Firmware = true
		}
	}
	if !d.Firmware {
		d.leave("BIOS boot", "Pollux boots through UEFI or a kernel: the guest is made with UEFI, and its disk needs an EFI boot loader; or give --kernel")
	}
	return d, d.check()
}

// all are the elements of that name inside of e.
func all(e *element, name string) []*element {
	if e == nil {
		return nil
	}
	var out []*element
	for i := range e.Inner {
		if e.Inner[i].XMLName.Local == name {
			out = append(out, &e.Inner[i])
		}
	}
	return out
}

func (d *Domain) ovfItem(i *element, disks map[string]Disk) error {
	name := i.child("ElementName").text()
	count := func() (uint64, error) {
		n, err := strconv.ParseUint(i.child("VirtualQuantity").text(), 10, 63)
		if err != nil {
			return 0, fmt.Errorf("%w: %q has the quantity %q", ErrDescription, name, i.child("VirtualQuantity").text())
		}
		return n, nil
	}
	switch kind := i.child("ResourceType").text(); {
	case kind == ovfCPU:
		n, err := count()
		if err != nil {
			return err
		}
		d.CPUs = int(min(n, maxCPUs+1))
	case kind == ovfMemory:
		n, err := count()
		if err != nil {
			return err
		}
		unit, err := ovfUnit(i.child("AllocationUnits").text())
		if err != nil {
			return err
		}
		d.MemoryBytes, err = quantity(n, unit)
		return err
	case kind == ovfDisk:
		id := i.child("HostResource").text()
		id = id[strings.LastIndex(id, "/")+1:]
		disk := disks[id]
		if disk.Source == "" {
			return fmt.Errorf("%w: %q is the disk %q, of which there is no file", ErrDescription, name, id)
		}
		d.Disks = append(d.Disks, disk)
	case kind == ovfEthernet:
		d.Nets = append(d.Nets, Net{MAC: strings.ToLower(i.child("Address").text()), Network: i.child("Connection").text()})
		if t := i.child("ResourceSubType").text(); !oneOf(t, "virtio", "") {
			d.leave(fmt.Sprintf("network card %d: %s", len(d.Nets)-1, t), "the guest sees a virtio network card and needs its driver")
		}
	case ovfSilent[kind]:
	default:
		d.leave(fmt.Sprintf("%q (resource type %s)", name, kind), "Pollux has nothing like it")
	}
	return nil
}

// ovfCapacity is a disk's size: bytes, unless a unit is given.
func ovfCapacity(k *element) (uint64, error) {
	unit := uint64(1)
	if u := k.attr("capacityAllocationUnits"); u != "" {
		var err error
		if unit, err = ovfUnit(u); err != nil {
			return 0, err
		}
	}
	n, err := strconv.ParseUint(k.attr("capacity"), 10, 63)
	if err != nil {
		return 0, fmt.Errorf("%w: the disk %q has the capacity %q", ErrDescription, k.attr("diskId"), k.attr("capacity"))
	}
	return quantity(n, unit)
}

// ovfUnit reads a programmatic unit (DSP0004, annex C): "byte * 2^20", or what old tools write.
func ovfUnit(s string) (uint64, error) {
	compact := strings.ToLower(strings.ReplaceAll(s, " ", ""))
	if power, ok := strings.CutPrefix(compact, "byte*2^"); ok {
		if n, err := strconv.ParseUint(power, 10, 8); err == nil && n < 62 {
			return 1 << n, nil
		}
	}
	switch compact {
	case "byte", "bytes":
		return 1, nil
	case "kilobytes":
		return 1 << 10, nil
	case "megabytes", "":
		return 1 << 20, nil
	case "gigabytes":
		return 1 << 30, nil
	}
	return 0, fmt.Errorf("%w: sizes in %q", ErrDescription, s)
}
