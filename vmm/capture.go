package vmm

import "time"

// Capture takes what one checkpoint consists of on the guest's side. It is made once and used
// again: Pause.Capture overwrites it.
type Capture struct {
	Pages   []uint32 // page indexes as memory.RAM numbers them, ascending
	Data    []byte   // their contents, len(Pages)*memory.PageSize bytes
	State   []byte   // vCPUs and devices, in platform.AppendState's format
	Timings CaptureTimings
}

// CaptureTimings says where a pause went.
type CaptureTimings struct {
	Stop    time.Duration // from RequestPause to the last vCPU out of the guest
	Harvest time.Duration // reading the dirty log
	Copy    time.Duration
	State   time.Duration // of the devices; vCPUs save theirs while they arrive, part of Stop
	Clear   time.Duration // protecting the harvested pages again
}
