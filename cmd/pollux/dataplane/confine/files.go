package confine

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// rootBytes is room for the names of directories in the new root.
const rootBytes = "size=1m,nr_inodes=1k,mode=0755"

// hideFiles gives the process a root directory with o.Dirs in it and nothing else.
func hideFiles(o Options) error {
	if o.Root == "" {
		return errors.New(o.Without)
	}
	if err := unix.Mount("pollux", o.Root, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, rootBytes); err != nil {
		return fmt.Errorf("mount an empty root: %w", err)
	}
	if err := fill(o.Root, o.Dirs); err != nil {
		return errors.Join(err, unix.Unmount(o.Root, unix.MNT_DETACH))
	}
	if err := enter(o.Root); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("%w: make the new root read-only: %w", errHalf, err)
	}
	return nil
}

func fill(root string, dirs []Dir) error {
	for _, d := range dirs {
		at := filepath.Join(root, d.Path)
		if err := os.MkdirAll(at, 0o755); err != nil {
			return fmt.Errorf("make a place for %s: %w", d.Path, err)
		}
		if err := unix.Mount(d.Path, at, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("take %s along: %w", d.Path, err)
		}
		flags := uintptr(unix.MS_REMOUNT | unix.MS_BIND | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC)
		var st unix.Statfs_t
		if err := unix.Statfs(at, &st); err != nil {
			return fmt.Errorf("look at %s: %w", d.Path, err)
		}
		if !d.Writable || st.Flags&unix.ST_RDONLY != 0 {
			flags |= unix.MS_RDONLY
		}
		if err := unix.Mount("", at, "", flags, ""); err != nil {
			return fmt.Errorf("restrict %s: %w", d.Path, err)
		}
	}
	return nil
}

// enter makes root the root of the process, for all its threads: they share one, and pivot_root(2) moves whoever had
// the old one.
func enter(root string) error {
	if err := unix.Chdir(root); err != nil {
		return fmt.Errorf("enter the new root: %w", err)
	}
	err := unix.PivotRoot(".", ".")
	switch err {
	case nil:
		// Both are at "/" now, the old one on top.
		if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
			return fmt.Errorf("%w: leave the old root: %w", errHalf, err)
		}
	case unix.EINVAL:
		// A host that runs from its initial RAM file system, which can't be pivoted away: cover it, and go where
		// there is no way back without CAP_SYS_CHROOT.
		if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("move the new root: %w", errors.Join(err, unix.Chdir("/")))
		}
		if err := unix.Chroot("."); err != nil {
			return fmt.Errorf("%w: change the root: %w", errHalf, err)
		}
	default:
		return fmt.Errorf("pivot to the new root: %w", errors.Join(err, unix.Chdir("/")))
	}
	if err := unix.Chdir("/"); err != nil {
		return fmt.Errorf("%w: %w", errHalf, err)
	}
	return nil
}
