package parts

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/pollux-ha/pollux/tests/lab/control"
)

// HostModules are what a lab host's kernel needs to run Pollux.
var HostModules = []string{
	"virtio_pci", "virtio_blk", "virtio_net", "virtio_console", "virtio_rng",
	"ext4", "crc32c_generic", "kvm_amd", "tun", "bridge", "veth",
}

// Host is what goes into a lab host's initial RAM disk.
type Host struct {
	Kernel  *Kernel
	Modules []string // besides HostModules, loaded at the start
	Setup   control.Setup
	Files   map[string]string // path in the host: program or file of this machine
	CalmKVM bool              // for guests with firmware: see CalmKVM
}

// Write makes the initial RAM disk.
func (h Host) Write(ctx context.Context, file string) (err error) {
	agent, err := Program(ctx, "./tests/lab/agent")
	if err != nil {
		return err
	}
	busybox, err := Tool("busybox")
	if err != nil {
		return err
	}
	modules, err := h.Kernel.Modules(append(append([]string(nil), HostModules...), h.Modules...)...)
	if err != nil {
		return err
	}
	setup, err := json.Marshal(h.Setup)
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
	for _, dir := range []string{"/dev", "/proc", "/sys", "/tmp", "/run", "/etc", "/var/lib", "/var/tmp", "/root"} {
		a.Dir(dir)
	}
	a.Device("/dev/console", 5, 1)
	a.File("/init", agent)
	a.File("/bin/busybox", busybox)
	a.Bytes("/etc/passwd", 0o644, []byte("root:x:0:0:root:/:/bin/sh\n"))
	a.Bytes("/etc/group", 0o644, []byte("root:x:0:\n"))
	a.Bytes(control.SetupFile, 0o644, setup)
	for i, m := range modules {
		name := fmt.Sprintf("/modules/%03d-%s", i, filepath.Base(m))
		if h.CalmKVM && plain(filepath.Base(m)) == "kvm_amd.ko" {
			module, err := os.ReadFile(m)
			if err != nil {
				return err
			}
			if module, err = CalmKVM(module); err != nil {
				return err
			}
			a.Bytes(name, 0o644, module)
			continue
		}
		a.File(name, m)
	}
	for _, to := range sorted(h.Files) {
		a.File(to, h.Files[to])
	}
	return errors.Join(a.Close(), w.Flush())
}
