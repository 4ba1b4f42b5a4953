package scenario

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"path"
	"path/filepath"
	"strings"

	"github.com/pollux-ha/pollux/tests/lab"
	"github.com/pollux-ha/pollux/tests/lab/emulator"
	"github.com/pollux-ha/pollux/tests/lab/parts"
)

// qemuFiles are this machine's QEMU, its libraries and its firmware, for the data disks of the hosts: the very program that
// emulates them, run on their KVM for comparison.
func (s *stage) qemuFiles() map[string]string {
	s.Helper()
	program, err := parts.Tool("qemu-system-x86_64")
	if err != nil {
		s.Fatal(err)
	}
	out, err := exec.CommandContext(s.Context(), "ldd", program).Output()
	if err != nil {
		s.Fatalf("libraries of %s: %v", program, err)
	}
	files := map[string]string{"qemu/qemu": program}
	for line := range strings.Lines(string(out)) {
		// libz.so.1 => /lib/x86_64-linux-gnu/libz.so.1 (0x…), and the loader by its path alone
		for _, word := range strings.Fields(line) {
			if !strings.HasPrefix(word, "/") {
				continue
			}
			real, err := filepath.EvalSymlinks(word)
			if err != nil {
				s.Fatal(err)
			}
			to := "qemu/lib/" + path.Base(word)
			if strings.HasPrefix(path.Base(word), "ld-linux") {
				to = "qemu/ld"
			}
			files[to] = real
		}
	}
	for _, rom := range []string{"bios-256k.bin", "linuxboot_dma.bin", "kvmvapic.bin"} {
		for _, dir := range []string{"/usr/share/seabios", "/usr/share/qemu"} {
			if found, err := filepath.EvalSymlinks(filepath.Join(dir, rom)); err == nil {
				files["qemu/share/"+rom] = found
				break
			}
		}
	}
	return files
}

// startOnQEMU starts the guest, which Pollux has stopped, on a host's QEMU, from that host's copy of the disk and at
// its old address, and waits until one can log in.
func (s *stage) startOnQEMU(ctx context.Context, h *lab.Host) {
	s.Helper()
	g, err := s.cluster.Status(ctx, guestName)
	if err != nil {
		s.Fatal(err)
	}
	if _, err := h.Exec(ctx, "sh", "-c", "tunctl -t qemu0 >/dev/null && ifconfig qemu0 up && brctl addif br0 qemu0"); err != nil {
		s.Fatal(err)
	}
	var out bytes.Buffer
	p, err := h.Start(emulator.Command{Stdout: &out, Stderr: &out, Argv: []string{
		"/data/qemu/ld", "--library-path", "/data/qemu/lib", "/data/qemu/qemu", "-L", "/data/qemu/share",
		"-accel", "kvm", "-M", "q35", "-cpu", "host", "-smp", fmt.Sprint(g.Spec.CPUs), "-m", fmt.Sprint(g.Spec.MemoryBytes >> 20),
		"-display", "none", "-monitor", "none", "-serial", "null", "-nodefaults", "-no-user-config", "-no-reboot",
		"-kernel", "/data/images/vmlinuz", "-initrd", "/data/images/initrd", "-append", s.image.Cmdline,
		"-drive", "file=" + lab.StateDir + "/guests/" + guestName + "/disk0.raw,format=raw,if=virtio,cache=none",
		"-netdev", "tap,id=n0,ifname=qemu0,script=no,downscript=no,vhost=on", "-device", "virtio-net-pci,netdev=n0,romfile=,mac=" + g.Spec.Nets[0].MAC,
	}})
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() {
		if s.Failed() {
			s.Logf("QEMU on %s said:\n%s", h.Name, out.String())
		}
	})
	_ = p // it ends with its host
	s.login()
}
