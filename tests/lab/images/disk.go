package images

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// The disk's layout, in bytes. The EFI system partition has room for a boot loader and little else.
const (
	diskBytes  = 1 << 30
	espStart   = 1 << 20
	espBytes   = 8 << 20
	rootStart  = espStart + espBytes
	gptReserve = 1 << 20 // the second GPT lies at the end
	rootBytes  = diskBytes - rootStart - gptReserve
	sector     = 512

	espType  = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
	rootType = "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709" // Linux root, x86-64

	// diskFormat changes with the code below, so that images are made anew.
	diskFormat = "1"
)

// RootOffset is where a disk's root file system begins, in bytes.
const RootOffset = rootStart

// writeDisk makes a bootable disk of a tree. Nothing is mounted: mke2fs and mtools write into the file.
func writeDisk(ctx context.Context, path, tree string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	err = f.Truncate(diskBytes)
	f.Close()
	if err != nil {
		return err
	}
	if err := partition(ctx, path); err != nil {
		return err
	}
	esp := fmt.Sprintf("%s@@%d", path, espStart)
	if err := run(ctx, "mformat", "-i", esp, "-T", fmt.Sprint(espBytes/sector), "-h", "16", "-s", "63", "-H", fmt.Sprint(espStart/sector), "-v", "ESP", "::"); err != nil {
		return err
	}
	if err := run(ctx, "mmd", "-i", esp, "::/EFI", "::/EFI/BOOT"); err != nil {
		return err
	}
	if err := run(ctx, "mcopy", "-i", esp, filepath.Join(tree, "boot", "BOOTX64.EFI"), "::/EFI/BOOT/BOOTX64.EFI"); err != nil {
		return err
	}
	// Inode tables are zero already in a file just made; left to the guest, the kernel would write them in the background.
	return run(ctx, "mke2fs", "-q", "-F", "-t", "ext4", "-L", "root", "-m", "1", "-d", tree,
		"-E", fmt.Sprintf("offset=%d,lazy_itable_init=1,assume_storage_prezeroed=1,lazy_journal_init=1,nodiscard", rootStart),
		path, fmt.Sprintf("%dk", rootBytes>>10))
}

func partition(ctx context.Context, path string) error {
	table := fmt.Sprintf("label: gpt\nstart=%d, size=%d, type=%s\nstart=%d, size=%d, type=%s\n",
		espStart/sector, espBytes/sector, espType, rootStart/sector, rootBytes/sector, rootType)
	sfdisk := "sfdisk"
	if _, err := exec.LookPath(sfdisk); err != nil {
		sfdisk = "/usr/sbin/sfdisk"
	}
	cmd := exec.CommandContext(ctx, sfdisk, "-q", "--no-reread", "--no-tell-kernel", path)
	cmd.Stdin = strings.NewReader(table)
	return runCommand(cmd)
}
