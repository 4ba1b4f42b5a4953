package images

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// builder keeps what it builds in a directory.
type builder struct {
	cache string
	logf  func(string, ...any)
}

// once makes a directory, unless it is there: whole or not at all. Other processes that want the same one wait.
func (b builder) once(dir string, build func(dir string) error) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	lock, err := os.OpenFile(dir+".lock", os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	start, partial := time.Now(), dir+".new"
	if err := os.RemoveAll(partial); err != nil {
		return err
	}
	if err := os.Mkdir(partial, 0o755); err != nil {
		return err
	}
	if err := build(partial); err != nil {
		return err
	}
	if err := os.Rename(partial, dir); err != nil {
		return err
	}
	b.logf("built %s in %.0f s", filepath.Base(dir), time.Since(start).Seconds())
	return nil
}

// tree makes the tree of a recipe and returns its directory.
func (b builder) tree(ctx context.Context, r *recipe) (string, error) {
	if os.Geteuid() != 0 {
		return "", errors.New("building a Debian tree needs root: its files belong to Debian's users")
	}
	dir := filepath.Join(b.cache, "trees", r.name+"-"+r.digest())
	err := b.once(dir, func(dir string) error {
		if err := b.plant(ctx, r, dir); err != nil {
			return err
		}
		for _, s := range r.steps {
			if err := b.chroot(ctx, dir, s, r.env); err != nil {
				return fmt.Errorf("%s: %w", s.script, err)
			}
		}
		return nil
	})
	if err != nil {
		return "", fmt.Errorf("build the tree %s: %w", r.name, err)
	}
	b.forget(dir)
	return dir, nil
}

// plant puts into dir what the recipe starts from.
func (b builder) plant(ctx context.Context, r *recipe, dir string) error {
	if r.parent != nil {
		parent, err := b.tree(ctx, r.parent)
		if err != nil {
			return err
		}
		return run(ctx, "cp", "-a", "--reflink=auto", parent+"/.", dir)
	}
	packages, err := b.packages()
	if err != nil {
		return err
	}
	b.logf("debootstrap %s: a minute or two", suite)
	if err := run(ctx, "debootstrap", "--variant=minbase", "--cache-dir="+packages, suite, dir, mirror+"/debian"); err != nil {
		return err
	}
	// Scripts in the tree see the cache there, and can't remove what lies under it.
	archives := filepath.Join(dir, "var", "cache", "apt", "archives")
	return errors.Join(os.RemoveAll(archives), os.MkdirAll(filepath.Join(archives, "partial"), 0o755))
}

// packages is where downloaded packages are kept.
func (b builder) packages() (string, error) {
	dir, err := filepath.Abs(filepath.Join(b.cache, "packages"))
	if err != nil {
		return "", err
	}
	return dir, os.MkdirAll(filepath.Join(dir, "partial"), 0o755)
}

// enter prepares a tree and runs a script there: $1 is the tree, $2 holds packages, $3 is the script. The
// mounts and processes are the namespaces' own and end with them.
const enter = `set -e
mount -t proc proc "$1/proc"
mount -t tmpfs -o mode=1777 tmp "$1/tmp"
mkdir -p "$1/dev/shm" "$1/var/cache/apt/archives"
mount -t tmpfs -o mode=1777 shm "$1/dev/shm"
mount --bind "$2" "$1/var/cache/apt/archives"
cat /etc/resolv.conf >"$1/etc/resolv.conf" 2>/dev/null || :
exec chroot "$1" /bin/sh -e -c "$3"`

// chroot runs a step in a tree.
func (b builder) chroot(ctx context.Context, dir string, s step, env []string) error {
	packages, err := b.packages()
	if err != nil {
		return err
	}
	args := []string{"--mount", "--pid", "--fork", "--kill-child", "--ipc"}
	if s.offline {
		args = append(args, "--net")
	}
	cmd := exec.CommandContext(ctx, "unshare", append(args, "sh", "-c", enter, "sh", dir, packages, s.text())...)
	cmd.Env = append([]string{
		"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive",
		"SUITE=" + suite, "MIRROR=" + mirror,
	}, env...)
	return runCommand(cmd)
}

func run(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	// exec looks with this process's own PATH, on which Debian's users have no sbin.
	if cmd.Err != nil {
		for _, dir := range []string{"/usr/sbin", "/sbin"} {
			if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
				cmd.Path, cmd.Err = path, nil
			}
		}
	}
	return runCommand(cmd)
}

// runCommand runs it; an error has the end of what it said.
func runCommand(cmd *exec.Cmd) error {
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	if errors.Is(err, exec.ErrNotFound) {
		return fmt.Errorf("%w: tests/setup.sh lab installs what the lab needs", err)
	}
	if err != nil {
		said := out.Bytes()
		return fmt.Errorf("%s: %w\n%s", filepath.Base(cmd.Path), err, said[max(0, len(said)-3000):])
	}
	return nil
}

func copyFile(to, from string) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, src)
	return errors.Join(err, dst.Close())
}
