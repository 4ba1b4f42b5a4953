package demo

import (
	"errors"
	"fmt"
	"os"
	"os/exec"

	"golang.org/x/sys/unix"

	"github.com/pollux-ha/pollux/vmm/kvm"
)

// Preflight names everything that is missing on this machine at once, with what to do about it.
func Preflight() error {
	var errs []error
	if err := kvm.Check(); err != nil {
		errs = append(errs, err)
	}
	if err := unix.Access("/dev/net/tun", unix.R_OK|unix.W_OK); err != nil {
		errs = append(errs, fmt.Errorf("/dev/net/tun: %w: the guest's network needs it; as root: modprobe tun, and chmod 666 /dev/net/tun for other users", err))
	}
	if _, err := exec.LookPath("redis-benchmark"); err != nil {
		errs = append(errs, errors.New("redis-benchmark is missing; as root: apt-get install redis-tools"))
	}
	// A user namespace maps one user only; that is enough, but the kernel must allow it.
	if os.Geteuid() != 0 {
		if b, err := os.ReadFile("/proc/sys/user/max_user_namespaces"); err == nil && string(b) == "0\n" {
			errs = append(errs, errors.New("user namespaces are switched off; run it as root, or as root: sysctl user.max_user_namespaces=10000"))
		}
	}
	if len(errs) > 0 {
		return fmt.Errorf("this machine can't run the demo yet:\n%w", errors.Join(errs...))
	}
	return nil
}
