package domain

import (
	"encoding/xml"
	"fmt"
	"strconv"
	"strings"
)

// element is an XML element as it is: what is known is taken out of it, the rest is told.
type element struct {
	XMLName xml.Name
	Attrs   []xml.Attr `xml:",any,attr"`
	Text    string     `xml:",chardata"`
	Inner   []element  `xml:",any"`
}

func (e *element) attr(name string) string {
	if e == nil {
		return ""
	}
	for _, a := range e.Attrs {
		if a.Name.Local == name {
			return a.Value
		}
	}
	return ""
}

// child is the first element of that name inside, or nil.
func (e *element) child(name string) *element {
	if e == nil {
		return nil
	}
	for i := range e.Inner {
		if e.Inner[i].XMLName.Local == name {
			return &e.Inner[i]
		}
	}
	return nil
}

func (e *element) text() string {
	if e == nil {
		return ""
	}
	return strings.TrimSpace(e.Text)
}

// title names an element for a person: <video> (model type='qxl').
func (e *element) title() string {
	s := "<" + e.XMLName.Local
	for _, name := range []string{"type", "device", "model", "mode"} {
		if v := e.attr(name); v != "" {
			s += fmt.Sprintf(" %s=%q", name, v)
		}
	}
	return s + ">"
}

// ParseLibvirt reads a domain XML (https://libvirt.org/formatdomain.html). What it takes: name, memory,
// vcpu, cpu mode, os (direct kernel boot, or UEFI), on_crash, disks in files or on block devices, and
// interfaces. Everything else is in Left.
func ParseLibvirt(b []byte) (*Domain, error) {
	var root element
	if err := xml.Unmarshal(b, &root); err != nil {
		return nil, fmt.Errorf("%w: it is no XML: %w", ErrDescription, err)
	}
	if root.XMLName.Local != "domain" {
		return nil, fmt.Errorf("%w: its root is <%s>, a libvirt domain XML has <domain>", ErrDescription, root.XMLName.Local)
	}
	d := &Domain{CPUs: 1}
	if t := root.attr("type"); !oneOf(t, "kvm", "qemu", "") {
		d.leave("type="+strconv.Quote(t), "the machine comes from another hypervisor: what it expects of its devices may not be there")
	}
	for i := range root.Inner {
		if err := d.libvirtElement(&root.Inner[i]); err != nil {
			return nil, err
		}
	}
	if !d.Firmware && d.Kernel == "" {
		d.leave("<os>: BIOS boot", "Pollux boots through UEFI or a kernel: the guest is made with UEFI, and its disk needs an EFI boot loader; or give --kernel")
	}
	return d, d.check()
}

func (d *Domain) libvirtElement(e *element) (err error) {
	switch e.XMLName.Local {
	case "name":
		d.Name = e.text()
	case "uuid", "title", "description", "metadata", "genid", "features", "resource", "pm", "on_poweroff", "on_reboot", "clock", "iothreads", "maxMemory":
		d.libvirtAside(e)
	case "memory":
		d.MemoryBytes, err = libvirtSize(e)
	case "currentMemory":
		size, err := libvirtSize(e)
		if err != nil {
			return err
		}
		if d.MemoryBytes != 0 && size != d.MemoryBytes {
			d.leave("<currentMemory>", "the guest gets all of <memory>; take some back with `pollux guest balloon`")
		}
	case "vcpu":
		n, err := strconv.Atoi(e.text())
		if err != nil {
			return fmt.Errorf("%w: <vcpu>%s</vcpu> is no number", ErrDescription, e.text())
		}
		d.CPUs = n
		if c := e.attr("current"); c != "" && c != e.text() {
			d.leave("<vcpu current="+strconv.Quote(c)+">", "CPUs are not added to a running guest: it gets all %d", n)
		}
	case "cpu":
		d.libvirtCPU(e)
	case "os":
		d.libvirtOS(e)
	case "on_crash":
		d.OnPanic = map[string]string{"restart": "restart", "destroy": "stop", "preserve": "keep",
			"coredump-destroy": "keep", "coredump-restart": "restart"}[e.text()]
		if strings.HasPrefix(e.text(), "coredump") {
			d.leave("<on_crash>"+e.text(), "no dump is written by itself; with --on-panic keep, `pollux guest dump` writes one")
		}
	case "devices":
		for i := range e.Inner {
			if err := d.libvirtDevice(&e.Inner[i]); err != nil {
				return err
			}
		}
	default:
		d.leave(e.title(), "Pollux has nothing like it")
	}
	return err
}

// libvirtAside says of the elements that have no meaning for Pollux which ones change what the guest sees.
func (d *Domain) libvirtAside(e *element) {
	switch e.XMLName.Local {
	case "uuid":
		d.leave("<uuid>", "a guest is known by its name")
	case "genid":
		d.leave("<genid>", "the guest gets a VM generation ID of its own")
	case "on_reboot":
		if !oneOf(e.text(), "restart", "") {
			d.leave("<on_reboot>"+e.text(), "a guest that resets boots again")
		}
	case "on_poweroff":
		if !oneOf(e.text(), "destroy", "") {
			d.leave("<on_poweroff>"+e.text(), "a guest that powers off is stopped")
		}
	case "clock":
		if o := e.attr("offset"); !oneOf(o, "utc", "") {
			d.leave("<clock offset="+strconv.Quote(o)+">", "the guest's hardware clock shows UTC")
		}
	case "features":
		for i := range e.Inner {
			if n := e.Inner[i].XMLName.Local; !oneOf(n, "acpi", "apic", "pae", "vmport") {
				d.leave("<features>: <"+n+">", "Pollux has nothing like it")
			}
		}
	case "iothreads", "maxMemory", "resource", "pm":
		d.leave(e.title(), "Pollux decides that itself")
	}
}

// libvirtSize reads a scaled integer: KiB unless a unit is given.
func libvirtSize(e *element) (uint64, error) {
	units := map[string]uint64{"": 1 << 10, "b": 1, "bytes": 1, "k": 1 << 10, "kib": 1 << 10, "kb": 1000, "m": 1 << 20, "mib": 1 << 20,
		"mb": 1000_000, "g": 1 << 30, "gib": 1 << 30, "gb": 1000_000_000, "t": 1 << 40, "tib": 1 << 40, "tb": 1000_000_000_000}
	unit, ok := units[strings.ToLower(e.attr("unit"))]
	n, err := strconv.ParseUint(e.text(), 10, 64)
	if err != nil || !ok {
		return 0, fmt.Errorf("%w: <%s unit=%q>%s: not a size", ErrDescription, e.XMLName.Local, e.attr("unit"), e.text())
	}
	return quantity(n, unit)
}

func (d *Domain) libvirtCPU(e *element) {
	switch mode := e.attr("mode"); mode {
	case "host-passthrough", "maximum":
		d.CPU = "host"
		if d.CPUs > 0 {
			d.leave("<cpu mode="+strconv.Quote(mode)+">", "taken as --cpu host: the twin must have all features of the host on which the guest starts; --cpu pair takes what both have")
		}
	case "host-model", "":
		d.CPU = "pair"
	default:
		d.CPU = "pair"
		d.leave(fmt.Sprintf("<cpu mode=%q> %s", mode, e.child("model").text()), "the guest gets what its hosts have in common (--cpu pair)")
	}
	for _, n := range []string{"topology", "numa", "feature"} {
		if c := e.child(n); c != nil {
			d.leave("<cpu>: "+c.title(), "the guest sees one socket with a core for each CPU")
		}
	}
}

func (d *Domain) libvirtOS(e *element) {
	if e.attr("firmware") == "efi" || e.child("loader").attr("type") == "pflash" || strings.Contains(e.child("loader").text(), "OVMF") {
		d.Firmware = true
	}
	if e.child("loader").attr("secure") == "yes" {
		d.leave("<loader secure=\"yes\">", "secure boot is not offered: the guest boots without it")
	}
	if n := e.child("nvram"); n != nil && n.text() != "" {
		d.leave("<nvram>"+n.text(), "the guest begins with empty UEFI variables: its disk is found through EFI/BOOT/BOOTX64.EFI")
	}
	if k := e.child("kernel").text(); k != "" {
		d.Kernel, d.Initrd, d.Cmdline = k, e.child("initrd").text(), e.child("cmdline").text()
		d.Firmware = false
	}
	for _, n := range []string{"smbios", "acpi", "dtb", "initarg", "bios"} {
		if c := e.child(n); c != nil {
			d.leave("<os>: "+c.title(), "Pollux has nothing like it")
		}
	}
}

func (d *Domain) libvirtDevice(e *element) error {
	switch e.XMLName.Local {
	case "disk":
		return d.libvirtDisk(e)
	case "interface":
		return d.libvirtInterface(e)
	case "emulator", "serial", "console", "memballoon", "rng", "panic", "watchdog", "controller", "input":
		// The guest has one serial console, a balloon, an entropy source, pvpanic and a watchdog without asking.
		if e.XMLName.Local == "input" && oneOf(e.attr("type"), "tablet", "mouse", "keyboard") || e.XMLName.Local == "controller" || e.XMLName.Local == "emulator" {
			return nil
		}
		if m := e.attr("model"); e.XMLName.Local == "watchdog" && m != "" && m != "i6300esb" {
			d.leave(e.title(), "the guest's watchdog is an i6300esb")
		}
		return nil
	case "channel":
		if strings.HasPrefix(e.child("target").attr("name"), "org.qemu.guest_agent") {
			return nil
		}
	}
	d.leave(e.title(), "Pollux has nothing like it")
	return nil
}

func (d *Domain) libvirtDisk(e *element) error {
	if t := e.attr("device"); !oneOf(t, "disk", "", "lun") {
		d.leave(e.title(), "only disks are taken over")
		return nil
	}
	source := e.child("source")
	path := source.attr("file")
	if path == "" {
		path = source.attr("dev")
	}
	if path == "" {
		d.leave(e.title(), "only disks in files or on block devices of this host are taken over")
		return nil
	}
	disk := Disk{Source: path, Format: e.child("driver").attr("type"), ReadOnly: e.child("readonly") != nil, Serial: e.child("serial").text()}
	if len(disk.Serial) > 20 {
		d.leave("<serial>"+disk.Serial, "a serial number has at most 20 characters; the guest sees pollux-%d", len(d.Disks))
		disk.Serial = ""
	}
	if b := e.child("target").attr("bus"); !oneOf(b, "virtio", "") {
		d.leave(fmt.Sprintf("disk %d: bus=%q", len(d.Disks), b), "the guest sees a virtio disk (/dev/vd%c) and needs its driver; name file systems by UUID", 'a'+rune(len(d.Disks)%26))
	}
	if e.child("encryption") != nil || e.child("backingStore").child("source") != nil {
		d.leave(fmt.Sprintf("disk %d: encryption or a backing store", len(d.Disks)), "the image must stand alone: the import refuses it otherwise")
	}
	d.Disks = append(d.Disks, disk)
	return nil
}

func (d *Domain) libvirtInterface(e *element) error {
	s := e.child("source")
	n := Net{MAC: strings.ToLower(e.child("mac").attr("address"))}
	switch t := e.attr("type"); t {
	case "bridge":
		n.Network = s.attr("bridge")
	case "network":
		n.Network = s.attr("network")
	default:
		d.leave(e.title(), "only interfaces on a bridge or a network are taken over")
		return nil
	}
	if n.Network == "" {
		return fmt.Errorf("%w: network card %d hangs on nothing", ErrDescription, len(d.Nets))
	}
	if q := e.child("driver").attr("queues"); q != "" {
		v, err := strconv.Atoi(q)
		if err != nil || v < 0 {
			return fmt.Errorf("%w: network card %d has %q queues", ErrDescription, len(d.Nets), q)
		}
		n.Queues = v
	}
	if m := e.child("model").attr("type"); !oneOf(m, "virtio", "") {
		d.leave(fmt.Sprintf("network card %d: model %q", len(d.Nets), m), "the guest sees a virtio network card and needs its driver")
	}
	for _, name := range []string{"vlan", "bandwidth", "filterref", "portForward"} {
		if c := e.child(name); c != nil {
			d.leave(fmt.Sprintf("network card %d: <%s>", len(d.Nets), name), "set it on the host's bridge")
		}
	}
	d.Nets = append(d.Nets, n)
	return nil
}
