package parts

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// GuestModules are what a stock cloud kernel needs for Pollux's devices.
var GuestModules = []string{"virtio_pci", "virtio_blk", "virtio_net", "virtio_rng", "virtio_console", "virtio_balloon"}

// GuestCmdline is what a stock kernel is best started with in the lab. noxsave: QEMU's emulated SVM does not report a
// guest's XSETBV to KVM, which then has a wrong idea of the guest's extended state; real CPUs do.
const GuestCmdline = "console=ttyS0 quiet panic=-1 noxsave"

// WriteGuest makes the initial RAM disk of a small guest: busybox, the modules, an address by DHCP on eth0, and then
// this program of the working tree.
func WriteGuest(ctx context.Context, k *Kernel, file, program string, args ...string) error {
	binary, err := Program(ctx, program)
	if err != nil {
		return err
	}
	line := "/bin/program"
	for _, arg := range args {
		line += fmt.Sprintf(" '%s'", arg)
	}
	return WriteGuestInit(k, file, `ifconfig lo 127.0.0.1 up
ifconfig eth0 up
udhcpc -q -t 20 -T 2 -i eth0 -s /dhcp
`+line+`
echo "guest: the program has ended with $?"
poweroff -f
`, map[string]string{"/bin/program": binary})
}

const guestBegin = `#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
exec </dev/ttyS0 >/dev/ttyS0 2>&1
for m in /modules/*.ko; do insmod "$m" || echo "guest: cannot load $m"; done
echo "guest: $(uname -r) with $(grep -c ^processor /proc/cpuinfo) CPU(s), up $(cut -d ' ' -f 1 /proc/uptime) s, clock $(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)"
`

// WriteGuestInit makes the initial RAM disk of a small guest that loads its modules and then runs a shell script, on
// the serial console, with these files (path in the guest: file of this machine).
func WriteGuestInit(k *Kernel, file, script string, files map[string]string) (err error) {
	busybox, err := Tool("busybox")
	if err != nil {
		return err
	}
	modules, err := k.Modules(GuestModules...)
	if err != nil {
		return err
	}
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w := bufio.NewWriterSize(f, 1<<20)
	a := NewArchive(w)
	for _, dir := range []string{"/dev", "/proc", "/sys", "/tmp", "/root"} {
		a.Dir(dir)
	}
	a.Device("/dev/console", 5, 1)
	a.File("/bin/busybox", busybox)
	for i, m := range modules {
		a.File(fmt.Sprintf("/modules/%03d-%s", i, filepath.Base(m)), m)
	}
	for _, to := range sorted(files) {
		a.File(to, files[to])
	}
	a.Bytes("/dhcp", 0o755, []byte(`#!/bin/busybox sh
[ "$1" = bound ] || [ "$1" = renew ] || exit 0
/bin/busybox ifconfig "$interface" "$ip" netmask "$subnet" up
echo "guest: address $ip"
`))
	a.Bytes("/init", 0o755, []byte(guestBegin+script))
	return errors.Join(a.Close(), w.Flush())
}
