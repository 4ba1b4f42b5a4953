package lockstep

import (
	"time"

	"golang.org/x/sys/unix"
)

var started = time.Now()

// bootTime is CLOCK_BOOTTIME: unlike the monotonic clock it goes on while the host is suspended, so
// that the suspend shows as a gap.
func bootTime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return time.Since(started)
	}
	return time.Duration(ts.Nano())
}
