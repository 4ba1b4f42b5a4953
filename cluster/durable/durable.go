// Package durable makes names survive a loss of power: a file that was fsynced may still be gone where its
// directory, or one above it, was not.
package durable

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"
)

// SyncDir makes the names in a directory durable.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("make the names in %s durable: %w", dir, err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("make the names in %s durable: %w", dir, err)
	}
	return nil
}

// MkdirAll is os.MkdirAll; when it returns, what it has made survives a loss of power. The name of a directory that
// was there is made durable too: who made it may not have come so far.
func MkdirAll(dir string, perm fs.FileMode) error {
	dir = filepath.Clean(dir)
	parent := filepath.Dir(dir)
	if parent == dir {
		return nil
	}
	switch info, err := os.Stat(dir); {
	case err == nil && !info.IsDir():
		return fmt.Errorf("make the directory %s: there is a file of this name", dir)
	case errors.Is(err, fs.ErrNotExist):
		if err := MkdirAll(parent, perm); err != nil {
			return err
		}
		if err := os.Mkdir(dir, perm); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("make the directory %s: %w", dir, err)
		}
	case err != nil:
		return fmt.Errorf("make the directory %s: %w", dir, err)
	}
	err := SyncDir(parent)
	if errors.Is(err, fs.ErrPermission) {
		return nil // not ours to write to, so neither was the making of dir
	}
	return err
}

// WriteFile replaces a file as a whole: after a loss of power it is the old one or the new one, and the
// new one once WriteFile has returned.
func WriteFile(path string, data []byte, perm fs.FileMode) error {
	// renameio syncs the file before the rename; the rename itself needs the directory.
	if err := renameio.WriteFile(path, data, perm); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return SyncDir(filepath.Dir(path))
}

// Rename moves a file or a directory, durably.
func Rename(from, to string) error {
	if err := os.Rename(from, to); err != nil {
		return err
	}
	if err := SyncDir(filepath.Dir(to)); err != nil || filepath.Dir(from) == filepath.Dir(to) {
		return err
	}
	return SyncDir(filepath.Dir(from))
}
