package diskimage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// SectorBytes is the unit of a disk's size.
const SectorBytes = 512

// Options go with Import and Export.
type Options struct {
	Format   Format    // of the foreign image; empty: recognized
	Number   int       // which disk of an OVA, from 0
	Replace  bool      // the target may exist
	Compress bool      // of the target, where its format can
	Progress io.Writer // what qemu-img tells of its progress; nil: nobody
}

// Import makes a raw disk out of an image. The target appears whole, durable and under its name only
// when everything is read; until then an older file of that name stays as it is.
func Import(ctx context.Context, source, target string, o Options) (Info, error) {
	if o.Format == OVA || o.Format == "" && isArchive(source) {
		return importOVA(ctx, source, target, o)
	}
	i, err := Look(ctx, source, o.Format)
	if err != nil {
		return Info{}, err
	}
	if i.SizeBytes == 0 {
		return Info{}, fmt.Errorf("%s holds a disk of no size", source)
	}
	err = replace(target, o.Replace, func(temporary string) error {
		if _, err := qemuImg(ctx, o.Progress, convertArgs(o, i.Format, Raw, source, temporary)...); err != nil {
			return err
		}
		return padToSector(temporary)
	})
	if err != nil {
		return Info{}, fmt.Errorf("import %s: %w", source, err)
	}
	return describeRaw(target)
}

// Export writes a raw disk as an image of another format.
func Export(ctx context.Context, source, target string, o Options) error {
	if o.Format == OVA || o.Format == "" {
		return fmt.Errorf("an export is written as one of %v", Formats())
	}
	f, err := OpenLocked(source, os.O_RDONLY)
	if err != nil {
		return err
	}
	defer f.Close()
	err = replace(target, o.Replace, func(temporary string) error {
		_, err := qemuImg(ctx, o.Progress, convertArgs(o, Raw, o.Format, source, temporary)...)
		return err
	})
	if err != nil {
		return fmt.Errorf("export %s: %w", source, err)
	}
	return nil
}

func convertArgs(o Options, from, to Format, source, target string) []string {
	args := []string{"convert", "-f", drivers[from], "-O", drivers[to]}
	if o.Progress != nil {
		args = append(args, "-p")
	}
	if o.Compress {
		args = append(args, "-c")
	}
	if to == VHD {
		// Otherwise the size is rounded up to what a disk geometry of 1990 can say.
		args = append(args, "-o", "force_size=on")
	}
	return append(args, "--", local(source), local(target))
}

// replace has make write a new file and gives it the name path once it is durable.
func replace(path string, overwrite bool, make func(temporary string) error) (err error) {
	if _, err := os.Lstat(path); err == nil && !overwrite {
		return fmt.Errorf("%s exists: give another name, or --force to replace it", path)
	}
	// A guest that runs from the file holds its lock.
	if f, err := OpenLocked(path, os.O_RDONLY); err == nil {
		defer f.Close()
	} else if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	dir, err := os.MkdirTemp(filepath.Dir(path), ".pollux-image-*")
	if err != nil {
		return fmt.Errorf("make room for %s: %w", path, err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	temporary := filepath.Join(dir, "image")
	if err := make(temporary); err != nil {
		return err
	}
	if err := os.Chmod(temporary, 0o600); err != nil {
		return err
	}
	if err := syncPath(temporary); err != nil {
		return err
	}
	if err := os.Rename(temporary, path); err != nil {
		return err
	}
	return syncPath(filepath.Dir(path))
}

func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func padToSector(path string) error {
	st, err := os.Stat(path)
	if err != nil {
		return err
	}
	if over := st.Size() % SectorBytes; over != 0 {
		return os.Truncate(path, st.Size()+SectorBytes-over)
	}
	return nil
}

// OpenLocked opens a disk file that nobody else uses, for as long as it stays open.
func OpenLocked(path string, flags int) (*os.File, error) {
	f, err := os.OpenFile(path, flags, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%s is in use by a guest or another program, which holds its lock: stop that first", path)
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return f, nil
}
