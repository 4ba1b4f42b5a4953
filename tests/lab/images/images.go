package images

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Image is a guest's disk, and what boots it.
type Image struct {
	Name string
	// Dir holds the files below. They are shared: copy the disk before a guest writes to it.
	Dir    string
	Disk   string // raw, with UEFI boot loader
	Kernel string
	Initrd string
	// Cmdline is what the kernel wants to be told when it is booted directly.
	Cmdline string
	// Key is the private key for ssh as root.
	Key string
	// DiskBytes is the size of the disk; the file is sparse.
	DiskBytes int64
}

// Tree is a Debian root file system, to be used by chroot.
type Tree struct {
	Dir string
	// Key is the private key that the guests know, beside the tree.
	Key string
}

// Credentials of the PostgreSQL server's one database, which the recipe makes.
const (
	Database = "lab"
	User     = "lab"
	Password = "lab"
)

// Of the DICOM server; it sends images (C-MOVE) to the client.
const (
	DICOMPort       = 4242
	DICOMTitle      = "ORTHANC"
	ClientTitle     = "CLIENT"
	ClientDICOMPort = 11112
	// ClientAddress is where the Orthanc image expects the client: the first machine on the lab's LAN that is not a host.
	ClientAddress = "10.78.0.20"
)

// cmdline boots from either way in. The watchdogs are off because a virtual CPU under two emulators can go without time
// for longer than they bear; noxsave because QEMU's emulated SVM does not report a guest's XSETBV to KVM (a fault of
// the emulated host: tests/lab/README.md).
const cmdline = "root=LABEL=root ro console=ttyS0 quiet panic=-1 nowatchdog noxsave net.ifnames=0"

// Postgres is a Debian server with PostgreSQL, built if need be.
func Postgres(ctx context.Context, cache string, logf func(string, ...any)) (Image, error) {
	return builder{cache, logf}.image(ctx, "postgres", postgresRecipe)
}

// Orthanc is a Debian server with the DICOM server Orthanc, built if need be.
func Orthanc(ctx context.Context, cache string, logf func(string, ...any)) (Image, error) {
	return builder{cache, logf}.image(ctx, "orthanc", orthancRecipe)
}

// Client is a tree with the tools of the lab's client, built if need be.
func Client(ctx context.Context, cache string, logf func(string, ...any)) (Tree, error) {
	b := builder{cache, logf}
	key, _, err := b.key(ctx)
	if err != nil {
		return Tree{}, err
	}
	dir, err := b.tree(ctx, clientRecipe)
	return Tree{Dir: dir, Key: key}, err
}

// image makes the disk image of a recipe's tree.
func (b builder) image(ctx context.Context, name string, r *recipe) (Image, error) {
	key, public, err := b.key(ctx)
	if err != nil {
		return Image{}, err
	}
	r = r.with("AUTHORIZED_KEY=" + public)
	dir := filepath.Join(b.cache, "images", name+"-"+digest(r.digest(), diskFormat))
	img := Image{
		Name: name, Dir: dir, Cmdline: cmdline, Key: key, DiskBytes: diskBytes,
		Disk: filepath.Join(dir, "disk.raw"), Kernel: filepath.Join(dir, "vmlinuz"), Initrd: filepath.Join(dir, "initrd"),
	}
	err = b.once(dir, func(dir string) error {
		tree, err := b.tree(ctx, r)
		if err != nil {
			return err
		}
		for from, to := range map[string]string{"vmlinuz-*": "vmlinuz", "initrd.img-*": "initrd"} {
			found, err := filepath.Glob(filepath.Join(tree, "boot", from))
			if err != nil || len(found) != 1 {
				return fmt.Errorf("the tree has %d files /boot/%s where one is expected", len(found), from)
			}
			if err := copyFile(filepath.Join(dir, to), found[0]); err != nil {
				return err
			}
		}
		return writeDisk(ctx, filepath.Join(dir, "disk.raw"), tree)
	})
	if err != nil {
		return Image{}, fmt.Errorf("build the image %s: %w", name, err)
	}
	b.forget(dir)
	return img, nil
}

// forget removes earlier builds of what lies at path, and what is left of those that failed.
func (b builder) forget(path string) {
	name := path[:strings.LastIndexByte(path, '-')]
	others, _ := filepath.Glob(name + "-????????????????*")
	for _, o := range others {
		if !strings.HasPrefix(o, path) {
			os.RemoveAll(o) // it only takes room
		}
	}
}

// key makes the lab's key pair for ssh, once.
func (b builder) key(ctx context.Context) (private, public string, err error) {
	dir := filepath.Join(b.cache, "images", "key")
	err = b.once(dir, func(dir string) error {
		return run(ctx, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f", filepath.Join(dir, "id_ed25519"))
	})
	if err != nil {
		return "", "", fmt.Errorf("make the lab's key pair: %w", err)
	}
	private = filepath.Join(dir, "id_ed25519")
	data, err := os.ReadFile(private + ".pub")
	return private, strings.TrimSpace(string(data)), err
}
