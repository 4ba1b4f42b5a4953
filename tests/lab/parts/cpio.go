package parts

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// Archive writes an initial RAM disk: a cpio archive in the "newc" format (Linux,
// Documentation/driver-api/early-userspace/buffer-format.rst). Archives may follow each other in one file;
// each ends on a multiple of 512 bytes.
type Archive struct {
	w     io.Writer
	inode uint32
	size  int64
	dirs  map[string]bool
	err   error
}

// NewArchive begins an archive.
func NewArchive(w io.Writer) *Archive { return &Archive{w: w, dirs: map[string]bool{".": true}} }

// The type bits of an entry's mode, as stat(2) has them.
const (
	typeDirectory = 0o040000
	typeFile      = 0o100000
	typeLink      = 0o120000
	typeCharacter = 0o020000
)

func (a *Archive) write(b []byte) {
	if a.err == nil {
		var n int
		n, a.err = a.w.Write(b)
		a.size += int64(n)
	}
}

func (a *Archive) pad(to int64) {
	if n := a.size % to; n != 0 {
		a.write(make([]byte, to-n))
	}
}

func (a *Archive) header(name string, mode uint32, size int64, major, minor uint32) {
	a.inode++
	// magic, inode, mode, uid, gid, links, mtime, size, device (2), special device (2), name length, checksum
	a.write(fmt.Appendf(nil, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s\x00",
		a.inode, mode, 0, 0, 1, 0, size, 0, 0, major, minor, len(name)+1, 0, name))
	a.pad(4)
}

// Dir adds a directory and those above it.
func (a *Archive) Dir(name string) {
	name = strings.Trim(path.Clean("/"+name), "/")
	if name == "" || a.dirs[name] {
		return
	}
	a.Dir(path.Dir(name))
	a.dirs[name] = true
	a.header(name, typeDirectory|0o755, 0, 0, 0)
}

// Device adds a character device.
func (a *Archive) Device(name string, major, minor uint32) {
	a.Dir(path.Dir(name))
	a.header(strings.Trim(name, "/"), typeCharacter|0o600, 0, major, minor)
}

// Link adds a symbolic link.
func (a *Archive) Link(name, target string) {
	a.Dir(path.Dir(name))
	a.header(strings.Trim(name, "/"), typeLink|0o777, int64(len(target)), 0, 0)
	a.write([]byte(target))
	a.pad(4)
}

// Bytes adds a file with this content.
func (a *Archive) Bytes(name string, mode fs.FileMode, content []byte) {
	a.Dir(path.Dir(name))
	a.header(strings.Trim(name, "/"), typeFile|uint32(mode.Perm()), int64(len(content)), 0, 0)
	a.write(content)
	a.pad(4)
}

// File adds a copy of a file of this machine. Its content must be still.
func (a *Archive) File(name, source string) {
	b, err := os.ReadFile(source)
	if err == nil {
		var info fs.FileInfo
		if info, err = os.Stat(source); err == nil {
			a.Bytes(name, info.Mode(), b)
			return
		}
	}
	if a.err == nil {
		a.err = err
	}
}

// Tree adds a directory of this machine with all files and links in it.
func (a *Archive) Tree(name, source string) {
	err := filepath.WalkDir(source, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(source, p)
		if err != nil {
			return err
		}
		inside := path.Join(name, filepath.ToSlash(rel))
		switch {
		case d.IsDir():
			a.Dir(inside)
		case d.Type() == fs.ModeSymlink:
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			a.Link(inside, target)
		case d.Type().IsRegular():
			a.File(inside, p)
		}
		return nil
	})
	if a.err == nil {
		a.err = err
	}
}

// Close ends the archive and returns the first error of all that was added.
func (a *Archive) Close() error {
	a.header("TRAILER!!!", 0, 0, 0, 0)
	a.pad(512)
	if a.err != nil {
		return fmt.Errorf("write an initial RAM disk: %w", a.err)
	}
	return nil
}
