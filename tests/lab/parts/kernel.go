package parts

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// Debian's packages of the newest kernel: the ordinary one, and the one for guests of a cloud, which has
// fewer modules (no watchdogs but softdog, no hardware error counters, no device mapper targets).
const (
	Ordinary = "linux-image-amd64"
	Cloud    = "linux-image-cloud-amd64"
)

// Kernel is an unpacked kernel package.
type Kernel struct {
	Image   string            // its vmlinuz
	Release string            // as uname -r says it
	modules map[string]string // file of a module, by its name with underscores
	builtin map[string]bool
}

// Fetch downloads and unpacks a kernel package, unless the cache has it.
func Fetch(ctx context.Context, meta string) (*Kernel, error) {
	dir := Cached(map[string]string{Cloud: "kernel", Ordinary: "kernel-amd64"}[meta])
	err := Once(dir+".lock", func() error {
		if found, _ := filepath.Glob(dir + "/boot/vmlinuz-*"); len(found) > 0 {
			return nil
		}
		ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
		defer cancel()
		out, err := exec.CommandContext(ctx, "apt-cache", "depends", meta).Output()
		if err != nil {
			return fmt.Errorf("apt-cache depends %s: %w", meta, err)
		}
		found := regexp.MustCompile(`Depends: (linux-image-[0-9]\S*)`).FindSubmatch(out)
		if found == nil {
			return fmt.Errorf("%s is unknown here: run apt-get update", meta)
		}
		work, err := os.MkdirTemp(filepath.Dir(dir), "kernel.")
		if err != nil {
			return err
		}
		defer os.RemoveAll(work)
		// As root apt drops its privileges, and complains where it may not write.
		get := exec.CommandContext(ctx, "apt-get", "-o", "APT::Sandbox::User=root", "download", string(found[1]))
		get.Dir = work
		if out, err := get.CombinedOutput(); err != nil {
			return fmt.Errorf("download %s: %w: %s", found[1], err, out)
		}
		debs, _ := filepath.Glob(work + "/*.deb")
		if len(debs) != 1 {
			return fmt.Errorf("apt-get download %s left %d packages", found[1], len(debs))
		}
		if out, err := exec.CommandContext(ctx, "dpkg", "-x", debs[0], work+"/tree").CombinedOutput(); err != nil {
			return fmt.Errorf("unpack %s: %w: %s", debs[0], err, out)
		}
		return errors.Join(os.RemoveAll(dir), os.Rename(work+"/tree", dir))
	})
	if err != nil {
		return nil, fmt.Errorf("kernel for the lab: %w", err)
	}
	return open(dir)
}

func open(dir string) (*Kernel, error) {
	images, _ := filepath.Glob(dir + "/boot/vmlinuz-*")
	if len(images) != 1 {
		return nil, fmt.Errorf("%s has %d kernels: remove it, it is made again", dir, len(images))
	}
	k := &Kernel{Image: images[0], Release: strings.TrimPrefix(filepath.Base(images[0]), "vmlinuz-"),
		modules: make(map[string]string), builtin: make(map[string]bool)}
	list, err := os.ReadFile(filepath.Join(dir, "lib/modules", k.Release, "modules.builtin"))
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(list)) {
		k.builtin[plain(strings.TrimSuffix(filepath.Base(strings.TrimSpace(line)), ".ko"))] = true
	}
	return k, filepath.WalkDir(dir+"/lib/modules", func(path string, _ os.DirEntry, err error) error {
		if name, ok := strings.CutSuffix(filepath.Base(path), ".ko"); ok {
			k.modules[plain(name)] = path
		}
		return err
	})
}

// plain is a module's name with the one spelling of - and _.
func plain(name string) string { return strings.ReplaceAll(name, "-", "_") }

// Modules are the files of these modules and of all that they need, in the order in which they must be
// loaded. The package has no modules.dep: what a module needs stands in its own .modinfo section.
func (k *Kernel) Modules(names ...string) ([]string, error) {
	var order []string
	seen := make(map[string]bool)
	var want func(name string) error
	want = func(name string) error {
		name = plain(name)
		if seen[name] || k.builtin[name] {
			return nil
		}
		seen[name] = true
		file, ok := k.modules[name]
		if !ok {
			return fmt.Errorf("kernel %s has no module %s", k.Release, name)
		}
		needs, err := dependencies(file)
		if err != nil {
			return fmt.Errorf("module %s: %w", file, err)
		}
		for _, n := range needs {
			if err := want(n); err != nil {
				return err
			}
		}
		order = append(order, file)
		return nil
	}
	for _, n := range names {
		if err := want(n); err != nil {
			return nil, err
		}
	}
	return order, nil
}

func dependencies(file string) ([]string, error) {
	f, err := elf.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	s := f.Section(".modinfo")
	if s == nil {
		return nil, errors.New("no .modinfo section")
	}
	info, err := s.Data()
	if err != nil {
		return nil, err
	}
	for line := range bytes.SplitSeq(info, []byte{0}) {
		if list, ok := bytes.CutPrefix(line, []byte("depends=")); ok && len(list) > 0 {
			return strings.Split(string(list), ","), nil
		}
	}
	return nil, nil
}
