package platform

// What the device models and the ACPI tables that describe them must agree on.
const (
	PMWindowSize = 0x30 // of the ports that begin at PMBase

	PM1EventOffset   = 0x00 // PM1a_EVT_BLK, PM1_EVT_LEN 4: status, then enable
	PM1ControlOffset = 0x04 // PM1a_CNT_BLK, PM1_CNT_LEN 2
	PMTimerOffset    = 0x08 // PM_TMR_BLK, PM_TMR_LEN 4; 32 bits wide (TMR_VAL_EXT)
	GPE0Offset       = 0x20 // GPE0_BLK, GPE0_BLK_LEN 4: 16 events, status, then enable

	// GPEGeneration is the general-purpose event of a changed VM generation ID (\_GPE._E00).
	GPEGeneration = 0

	// SleepTypeS5 is the SLP_TYPa value of the \_S5 package. UEFI firmware takes it for granted.
	SleepTypeS5 = 0

	// ResetPort and ResetValue are the FADT's RESET_REG and RESET_VALUE.
	ResetPort  = 0xcf9
	ResetValue = 0x06

	// RTCCenturyIndex is the FADT's CENTURY field: the CMOS index of the century.
	RTCCenturyIndex = 0x32

	pciINTxBase = 16
	// PCIInterruptLines is the number of GSIs that PCI devices share.
	PCIInterruptLines = 4
)

// PCIInterrupt is the GSI (level-triggered, active high) to which INTA# of the PCI device in a slot
// of bus 0 is wired; the DSDT's _PRT has one entry for each slot that says the same.
func PCIInterrupt(slot int) int { return pciINTxBase + slot%PCIInterruptLines }

// Suspender is a part that works beside the vCPUs: it reads a tap, or has a worker of its own.
// After Suspend it touches neither guest memory nor its rings nor the outside world until it is
// activated again, so that a machine whose last checkpoint was taken in the same critical section
// keeps exactly the memory of that checkpoint. Requests in flight stay part of its state.
// Parts begin suspended. Called with the device lock held.
type Suspender interface{ Suspend() }
