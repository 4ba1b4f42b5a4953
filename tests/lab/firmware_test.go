package lab

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pollux-ha/pollux/tests/lab/emulator"
	"github.com/pollux-ha/pollux/tests/lab/parts"
	"github.com/pollux-ha/pollux/vmm/firmware"
)

// What the guest does: at the first boot it leaves a variable and reboots, at the second it looks for it.
const firmwareScript = `mkdir /efi
mount -t efivarfs efivarfs /efi || echo "L2: FAILED efivarfs"
v=/efi/Pollux-5e1f1c55-0d3c-4b37-9f0b-6a3d6f1f3b61
dmesg -r -s 1000000 | grep -iE '^<[0-3]>|WARNING: CPU|ACPI.*(error|warning)|firmware bug|not reserved' | sed 's/^/L2: complaint: /'
if [ -e $v ]; then
	echo "L2: second boot, the variable says $(tail -c +5 $v)"
	poweroff -f
fi
printf '\007\000\000\000kept' >$v && echo "L2: first boot"
reboot -f
`

// A guest boots from its own disk: Debian's OVMF finds GRUB, that finds the kernel. What it leaves in a variable of the
// firmware is there after a reboot, and when the machine is switched on anew with the same file.
func TestFirmware(t *testing.T) {
	needTools(t)
	for _, cpus := range []int{1, 2} {
		t.Run(fmt.Sprintf("%d-cpu", cpus), func(t *testing.T) { bootFromDisk(t, cpus) })
	}
}

func bootFromDisk(t *testing.T, cpus int) {
	if _, err := firmware.ReadImage("", ""); err != nil {
		t.Skipf("needs lab: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	kernel, err := parts.Fetch(ctx, parts.Cloud)
	if err != nil {
		t.Fatal(err)
	}
	pollux, err := program(ctx)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{"/bin/pollux": pollux, "/disk": systemDisk(t, kernel), firmware.DefaultCode: firmware.DefaultCode, firmware.DefaultVars: firmware.DefaultVars}
	err = LoneForFirmware(ctx, files, t.Logf, func(m *emulator.Machine) error {
		for _, want := range []string{"L2: first boot", "L2: second boot, the variable says kept"} {
			out := &transcript{}
			began := time.Now()
			err := m.Run(ctx, emulator.Command{
				Argv: []string{"pollux", "vm", "run", "--firmware", "uefi", "--firmware-vars", "/vars", "--disk", "/disk",
					"--memory", "320M", "--cpus", fmt.Sprint(cpus), "--no-reboot"},
				Stdin: strings.NewReader(""), Stdout: out, Stderr: out,
			})
			t.Logf("pollux vm run, %.1f s:\n%s", time.Since(began).Seconds(), out)
			if err != nil {
				return fmt.Errorf("pollux vm run: %w", err)
			}
			text := out.String()
			if !strings.Contains(text, want) {
				t.Errorf("the guest does not say %q", want)
			}
			if strings.Contains(text, "L2: FAILED") || strings.Contains(text, "L2: complaint") {
				t.Error("the guest complains")
			}
			if !strings.Contains(text, fmt.Sprintf("with %d CPU(s)", cpus)) {
				t.Errorf("the guest does not have %d CPUs", cpus)
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// systemDisk is a disk with one FAT file system, on it GRUB where firmware looks for it, a kernel and its initial
// RAM disk.
func systemDisk(t *testing.T, kernel *parts.Kernel) string {
	t.Helper()
	dir := t.TempDir()
	module, err := kernel.Modules("efivarfs")
	if err != nil {
		t.Fatal(err)
	}
	extra := map[string]string{}
	for i, m := range module {
		extra[fmt.Sprintf("/modules/9%d-%s", i, filepath.Base(m))] = m
	}
	initrd, disk, loader, menu := filepath.Join(dir, "initrd"), filepath.Join(dir, "disk"), filepath.Join(dir, "loader"), filepath.Join(dir, "grub.cfg")
	if err := parts.WriteGuestInit(kernel, initrd, firmwareScript, extra); err != nil {
		t.Fatal(err)
	}
	config := "search --no-floppy --file --set=root /vmlinuz\nlinux /vmlinuz " + parts.GuestCmdline + "\ninitrd /initrd\nboot\n"
	if err := os.WriteFile(menu, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, argv := range [][]string{
		{"grub-mkstandalone", "-O", "x86_64-efi", "-o", loader, "--modules=fat linux normal search search_fs_file", "--locales=", "--fonts=", "--themes=", "boot/grub/grub.cfg=" + menu},
		{"truncate", "-s", "64M", disk},
		{"mkfs.vfat", "-F", "32", disk},
		{"mmd", "-i", disk, "::/EFI", "::/EFI/BOOT"},
		{"mcopy", "-i", disk, loader, "::/EFI/BOOT/BOOTX64.EFI"},
		{"mcopy", "-i", disk, kernel.Image, "::/vmlinuz"},
		{"mcopy", "-i", disk, initrd, "::/initrd"},
	} {
		tool, err := parts.Tool(argv[0])
		if err != nil {
			t.Skipf("needs lab: %v (Debian packages grub-efi-amd64-bin, grub-common, mtools, dosfstools)", err)
		}
		if out, err := exec.CommandContext(t.Context(), tool, argv[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", argv[0], err, out)
		}
	}
	return disk
}
