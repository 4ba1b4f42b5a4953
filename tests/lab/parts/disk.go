package parts

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Disk makes an ext4 file system of this size that holds these files (path in it: file of this machine), and a
// disk over it, disk, that takes what is written. The file system itself is cached under name and made again
// when a file has changed; it is sparse, as the files are.
func Disk(ctx context.Context, name, disk string, mib int, files map[string]string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	key, err := fingerprint(mib, files)
	if err != nil {
		return err
	}
	base := Cached("disks/" + name + "-" + key + ".raw")
	return Once(Cached("disks/"+name+".lock"), func() error {
		if _, err := os.Stat(base); err != nil {
			if err := makeBase(ctx, base, mib, files); err != nil {
				return err
			}
		}
		// The lab that uses the newest two may still run; older ones are nobody's.
		if old, _ := filepath.Glob(Cached("disks/" + name + "-*.raw")); len(old) > 2 {
			slices.SortFunc(old, func(a, b string) int { return modified(b).Compare(modified(a)) })
			for _, f := range old[2:] {
				os.Remove(f)
			}
		}
		now := time.Now()
		if err := os.Chtimes(base, now, now); err != nil {
			return err
		}
		return tool(ctx, "qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", disk)
	})
}

func modified(file string) time.Time {
	if info, err := os.Stat(file); err == nil {
		return info.ModTime()
	}
	return time.Time{}
}

func fingerprint(mib int, files map[string]string) (string, error) {
	h := sha256.New()
	fmt.Fprintln(h, mib)
	for _, path := range sorted(files) {
		info, err := os.Stat(files[path])
		if err != nil {
			return "", fmt.Errorf("file for a lab host's disk: %w", err)
		}
		fmt.Fprintln(h, path, files[path], info.Size(), info.ModTime().UnixNano(), info.Mode())
	}
	return hex.EncodeToString(h.Sum(nil))[:12], nil
}

func sorted(files map[string]string) []string {
	var paths []string
	for p := range files {
		paths = append(paths, p)
	}
	slices.Sort(paths)
	return paths
}

func makeBase(ctx context.Context, base string, mib int, files map[string]string) error {
	tree, err := os.MkdirTemp(filepath.Dir(base), "tree.")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tree)
	for _, path := range sorted(files) {
		to := filepath.Join(tree, filepath.Clean("/"+path))
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		if err := copySparse(to, files[path]); err != nil {
			return fmt.Errorf("copy %s for a lab host's disk: %w", files[path], err)
		}
	}
	fresh := base + ".new"
	f, err := os.Create(fresh)
	if err != nil {
		return err
	}
	defer os.Remove(fresh)
	if err := errors.Join(f.Truncate(int64(mib)<<20), f.Close()); err != nil {
		return err
	}
	// Uninitialized tables would be written by the kernel beside the tests, in emulation.
	if err := tool(ctx, "mke2fs", "-q", "-t", "ext4", "-m", "0", "-E", "lazy_itable_init=0,root_owner=0:0", "-N", "16384", "-d", tree, fresh); err != nil {
		return err
	}
	return os.Rename(fresh, base)
}

// copySparse copies a file and leaves its holes out.
func copySparse(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, info.Mode().Perm())
	if err != nil {
		return err
	}
	defer out.Close()
	if err := out.Truncate(info.Size()); err != nil {
		return err
	}
	for at := int64(0); at < info.Size(); {
		begin, err := in.Seek(at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break // only a hole is left
		} else if err != nil {
			return err
		}
		end, err := in.Seek(begin, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		if _, err := in.Seek(begin, io.SeekStart); err != nil {
			return err
		}
		if _, err := out.Seek(begin, io.SeekStart); err != nil {
			return err
		}
		if _, err := io.CopyN(out, in, end-begin); err != nil {
			return err
		}
		at = end
	}
	return out.Close()
}

func tool(ctx context.Context, name string, args ...string) error {
	path, err := Tool(name)
	if err != nil {
		return err
	}
	if out, err := exec.CommandContext(ctx, path, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}
