// Package parts makes what lab machines are built from: kernels, initial RAM disks, data disks, programs.
// Everything lies in .cache/lab of the working tree and is made once.
package parts

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Root is the working tree: the folder above the current one that has the go.mod.
func Root() string {
	dir, err := os.Getwd()
	for err == nil {
		if _, e := os.Stat(filepath.Join(dir, "go.mod")); e == nil {
			return dir
		}
		if dir == "/" {
			break
		}
		dir = filepath.Dir(dir)
	}
	return "."
}

// Cached is the path of something in the cache.
func Cached(name string) string { return filepath.Join(Root(), ".cache", "lab", name) }

// Once runs f while no other process does so with this lock file.
func Once(lock string, f func() error) error {
	if err := os.MkdirAll(filepath.Dir(lock), 0o755); err != nil {
		return err
	}
	l, err := os.OpenFile(lock, os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return err
	}
	defer l.Close()
	if err := unix.Flock(int(l.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", lock, err)
	}
	return f()
}

// Tools are the programs that a lab needs, and the Debian packages that have them.
var Tools = map[string]string{
	"qemu-system-x86_64": "qemu-system-x86", "qemu-img": "qemu-utils", "busybox": "busybox-static",
	"mke2fs": "e2fsprogs", "apt-get": "apt", "dpkg": "dpkg", "go": "golang",
}

// Check says what is missing on this machine.
func Check() error {
	for tool, pkg := range Tools {
		if _, err := Tool(tool); err != nil {
			return fmt.Errorf("%s (Debian package %s); `make lab` installs it", tool, pkg)
		}
	}
	return nil
}

// Tool is the path of a program. Users' paths often lack /sbin.
func Tool(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err == nil {
		return path, nil
	}
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if _, e := os.Stat(filepath.Join(dir, name)); e == nil {
			return filepath.Join(dir, name), nil
		}
	}
	return "", err
}

// Program builds a program of this module, static and without debugging symbols, and returns its path. The
// Go build cache makes the second time cheap.
func Program(ctx context.Context, pkg string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	out := Cached("bin/" + filepath.Base(pkg))
	err := Once(out+".lock", func() error {
		cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", out, pkg)
		cmd.Dir = Root()
		// -test.coverprofile and the like of an outer `go test` are no business of this build.
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
		if b, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("go build %s: %w: %s", pkg, err, strings.TrimSpace(string(b)))
		}
		return nil
	})
	return out, err
}

// Libraries are the files that a dynamic program of this machine needs beside itself.
func Libraries(ctx context.Context, program string) ([]string, error) {
	out, err := exec.CommandContext(ctx, "ldd", program).Output()
	if err != nil {
		return nil, fmt.Errorf("ldd %s: %w", program, err)
	}
	var files []string
	for line := range strings.Lines(string(out)) {
		for _, word := range strings.Fields(line) {
			if strings.HasPrefix(word, "/") {
				files = append(files, word)
			}
		}
	}
	return files, nil
}
