package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Directories of sessions have this prefix, and a lock that their session holds while it lives.
const (
	dirPrefix = "pollux-demo-"
	lockName  = "lock"
)

// maxDirBytes leaves room in a socket's path for a machine's part: /a/run/guests/NAME-INCARNATION.sock.
const maxDirBytes = 50

// Dir is a session's directory.
type Dir struct {
	Path string
	lock *os.File
}

// NewDir makes a directory for a session below parent ("" means the usual place), and removes those
// of sessions that were killed before they could clean up.
func NewDir(parent string) (*Dir, error) {
	if parent == "" {
		if parent = os.TempDir(); len(parent)+len(dirPrefix)+12 > maxDirBytes {
			parent = "/tmp"
		}
	}
	removeAbandoned(parent)
	path, err := os.MkdirTemp(parent, dirPrefix)
	if err != nil {
		return nil, fmt.Errorf("make a directory for the demo: %w", err)
	}
	if len(path) > maxDirBytes {
		os.Remove(path)
		return nil, fmt.Errorf("%s is too long: the sockets in it would have paths beyond 107 bytes; choose another directory", path)
	}
	lock, err := os.OpenFile(filepath.Join(path, lockName), os.O_CREATE|os.O_RDWR, 0o600)
	if err == nil {
		err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	if err != nil {
		os.RemoveAll(path)
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return &Dir{Path: path, lock: lock}, nil
}

// Remove removes the directory with all that is in it.
func (d *Dir) Remove() error {
	err := os.RemoveAll(d.Path)
	d.lock.Close()
	return err
}

// Keep gives the directory a name under which no later session removes it, without the guests'
// disks, and returns that name.
func (d *Dir) Keep() (string, error) {
	disks, _ := filepath.Glob(filepath.Join(d.Path, "*", "state", "guests", "*", "*.raw"))
	for _, disk := range disks {
		os.Remove(disk)
	}
	kept := filepath.Join(filepath.Dir(d.Path), "pollux-failed-"+filepath.Base(d.Path)[len(dirPrefix):])
	err := os.Rename(d.Path, kept)
	d.lock.Close()
	return kept, err
}

// removeAbandoned removes directories whose session is dead. What can't be removed (another user's)
// stays.
func removeAbandoned(parent string) {
	dirs, err := filepath.Glob(filepath.Join(parent, dirPrefix+"*"))
	if err != nil {
		return
	}
	for _, dir := range dirs {
		info, err := os.Lstat(dir)
		// A young one may be about to get its lock.
		if err != nil || !info.IsDir() || time.Since(info.ModTime()) < 10*time.Second {
			continue
		}
		lock, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR, 0)
		if err != nil {
			if os.IsNotExist(err) {
				os.RemoveAll(dir)
			}
			continue
		}
		if unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			os.RemoveAll(dir)
		}
		lock.Close()
	}
}
