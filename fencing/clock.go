package fencing

import (
	"time"

	"golang.org/x/sys/unix"
)

// Clock tells the time since some fixed moment. It never goes back.
type Clock func() time.Duration

// Boot is CLOCK_BOOTTIME: unlike Go's monotonic clock it counts the time in which the host slept.
func Boot() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic("CLOCK_BOOTTIME: " + err.Error()) // every Linux since 2.6.39 has it
	}
	return time.Duration(ts.Nano())
}
