package boot

import (
	"bytes"
	"testing"
)

// TestNothingIsOfferedForHotPlug: an operating system takes for removable what has one of these methods or
// objects (ACPI 6.3, 6.3), and no event could tell it of a change.
func TestNothingIsOfferedForHotPlug(t *testing.T) {
	b := dsdt(ACPIConfig{CPUs: MaxCPUs})
	for _, name := range []string{"_EJ0", "_EJD", "_RMV", "_LCK", "_OST", "_SUN", "PCNT"} {
		if bytes.Contains(b, []byte(name)) {
			t.Errorf("the DSDT has %s", name)
		}
	}
	if n := bytes.Count(b, []byte("_OSC")); n != 1 {
		t.Errorf("%d methods _OSC, of which the only one gives no hot-plug control", n)
	}
}
