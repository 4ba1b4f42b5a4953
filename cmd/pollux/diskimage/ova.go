package diskimage

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/pollux-ha/pollux/cmd/pollux/domain"
)

// isArchive says whether a file is a tar archive, as an OVA is: POSIX.1-1988 puts "ustar" at byte 257.
func isArchive(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	var magic [5]byte
	_, err = f.ReadAt(magic[:], 257)
	return err == nil && string(magic[:]) == "ustar"
}

// Description finds the OVF description in an OVA. The OVF specification (DSP0243, section 6) puts it
// first; any place is taken.
func Description(path string) (*domain.Domain, error) {
	var found *domain.Domain
	err := walk(path, func(name string, r io.Reader) (bool, error) {
		if !strings.EqualFold(filepath.Ext(name), ".ovf") {
			return true, nil
		}
		b, err := domain.Read(r)
		if err != nil {
			return false, err
		}
		found, err = domain.ParseOVF(b)
		return false, err
	})
	if err == nil && found == nil {
		err = errors.New("there is no .ovf description in it")
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return found, nil
}

// walk calls fn for each file of an archive until it returns false.
func walk(path string, fn func(name string, r io.Reader) (bool, error)) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	for t := tar.NewReader(f); ; {
		h, err := t.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("it is no whole archive: %w", err)
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		if more, err := fn(h.Name, t); err != nil || !more {
			return err
		}
	}
}

// importOVA makes a raw disk of one of an archive.
func importOVA(ctx context.Context, source, target string, o Options) (i Info, err error) {
	err = unpacked(source, o.Number, filepath.Dir(target), func(path string) error {
		if i, err = Look(ctx, path, ""); err != nil {
			return err
		}
		o.Format = i.Format
		i, err = Import(ctx, path, target, o)
		return err
	})
	return i, err
}

// unpacked takes a disk out of an archive into a folder of its own in dir, for as long as use runs. The
// names in the archive name nothing outside of it.
func unpacked(archive string, number int, dir string, use func(path string) error) error {
	d, err := Description(archive)
	if err != nil {
		return err
	}
	if number < 0 || number >= len(d.Disks) {
		return fmt.Errorf("%s has %d disks: there is no number %d", archive, len(d.Disks), number)
	}
	want := d.Disks[number].Source
	dir, err = os.MkdirTemp(dir, ".pollux-ova-*")
	if err != nil {
		return fmt.Errorf("make room for the disk: %w", err)
	}
	defer os.RemoveAll(dir)
	member := filepath.Join(dir, "member")
	taken := false
	err = walk(archive, func(name string, r io.Reader) (bool, error) {
		if name != want {
			return true, nil
		}
		taken = true
		out, err := os.OpenFile(member, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return false, err
		}
		_, err = io.Copy(out, r)
		return false, errors.Join(err, out.Close())
	})
	if err == nil && !taken {
		err = fmt.Errorf("its description names the disk %q, which is not in it", want)
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", archive, err)
	}
	if err := use(member); err != nil {
		return fmt.Errorf("disk %q of %s: %w", want, archive, err)
	}
	return nil
}
