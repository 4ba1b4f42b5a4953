package diskimage

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Format is the name of an image format, as people say it.
type Format string

const (
	Raw   Format = "raw"
	QCOW2 Format = "qcow2"
	VMDK  Format = "vmdk"
	VHD   Format = "vhd"
	VHDX  Format = "vhdx"
	OVA   Format = "ova" // an archive of an OVF description and its disks; for reading only
)

// drivers are qemu-img's names.
var drivers = map[Format]string{Raw: "raw", QCOW2: "qcow2", VMDK: "vmdk", VHD: "vpc", VHDX: "vhdx"}

// Formats lists what can be written, for help texts.
func Formats() []string {
	var out []string
	for f := range maps.Keys(drivers) {
		out = append(out, string(f))
	}
	slices.Sort(out)
	return out
}

// ParseFormat reads a format's name. Empty stays empty: it is to be found out.
func ParseFormat(s string) (Format, error) {
	f := Format(strings.ToLower(s))
	if f == "vpc" {
		f = VHD
	}
	if _, ok := drivers[f]; ok || f == "" || f == OVA {
		return f, nil
	}
	return "", fmt.Errorf("%q is no image format; known are %s, and ova for reading", s, strings.Join(Formats(), ", "))
}

// formatOf maps qemu-img's name back.
func formatOf(driver string) (Format, bool) {
	for f, d := range drivers {
		if d == driver {
			return f, true
		}
	}
	return "", false
}
