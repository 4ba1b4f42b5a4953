package dataplane

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"go.uber.org/zap"

	"github.com/pollux-ha/pollux/cluster/link"
	"github.com/pollux-ha/pollux/cmd/pollux/dataplane/confine"
	"github.com/pollux-ha/pollux/replica/mark"
)

// What a process opens later, and how it can:
//
//   - the marks beside its disks are replaced, and their directory synced: the guest's directory is there, and the
//     process may make files in it, and replace its own;
//   - a certificate that was renewed: the daemon keeps a copy of what a process needs of the host's in a directory of
//     its own, which is there, for reading;
//   - the file of a dump: the daemon opens it (link.Message.File);
//   - the event log: the scribe has it;
//   - connections to the twin: TCP sockets are allowed.
//
// Kernel, initial RAM disk and firmware are read once, at the start; disks, journal, console log, taps, /dev/kvm and
// sockets stay open.

// errConfine says that the confinement that is required can't be had.
var errConfine = errors.New("confine the process")

// shutIn confines this process, and says how in words.
func shutIn(cfg link.ProcessConfig, log *zap.Logger) (string, error) {
	c := cfg.Confine
	if c.Off() {
		return link.ConfineOff, nil
	}
	o := confine.Options{User: c.User, Root: c.Root, Without: c.Why, Kill: c.Strict}
	if c.Group != 0 {
		o.Groups = []int{int(c.Group)}
	}
	for _, dir := range diskDirs(cfg) {
		o.Dirs = append(o.Dirs, confine.Dir{Path: dir, Writable: true})
	}
	if cfg.PKI != "" {
		o.Dirs = append(o.Dirs, confine.Dir{Path: cfg.PKI})
	}
	if c.User != 0 {
		if err := handOver(cfg, int(c.User)); err != nil {
			// A user that this host, or the user namespace that it is in, does not have.
			o.User, o.Groups, o.WithoutUser = 0, nil, err.Error()
		}
	}
	log.Info("shutting in") // with its local time, whose zone is read from a file once
	r, err := confine.Apply(o)
	if err != nil {
		return "", fmt.Errorf("%w: %w", errConfine, err)
	}
	if err := r.Err(); err != nil {
		if c.Mode == link.ConfineRequired {
			return "", fmt.Errorf("%w: dataplane.confine is \"required\", and this machine can't do it: %s", errConfine, r.Gaps())
		}
		log.Warn("the process is confined as far as this machine can", zap.String("missing", r.Gaps()))
		return "partial: " + r.Gaps(), nil
	}
	log.Info("the process is confined", zap.Uint32("user", c.User))
	return "full", nil
}

// diskDirs are the directories in which marks lie.
func diskDirs(cfg link.ProcessConfig) (dirs []string) {
	for _, disk := range cfg.Disks {
		dirs = append(dirs, filepath.Dir(disk))
	}
	slices.Sort(dirs)
	return slices.Compact(dirs)
}

// handOver lets the process's own user make and replace marks. Disks, journal and console log stay root's: the process
// has them open, and the directory is such (sticky) that it can't put others in their place.
func handOver(cfg link.ProcessConfig, user int) error {
	for _, dir := range diskDirs(cfg) {
		if err := os.Chown(dir, 0, user); err != nil {
			return fmt.Errorf("give the guest's directory to its group: %w", err)
		}
		if err := os.Chmod(dir, 0o770|fs.ModeSticky); err != nil {
			return fmt.Errorf("let the guest's group write in its directory: %w", err)
		}
		entries, err := os.ReadDir(dir)
		if err != nil {
			return fmt.Errorf("look for marks: %w", err)
		}
		for _, e := range entries {
			// Also temporary ones that a crash has left behind.
			if !strings.Contains(e.Name(), mark.Suffix) {
				continue
			}
			if err := os.Lchown(filepath.Join(dir, e.Name()), user, user); err != nil {
				return fmt.Errorf("give a mark to its writer: %w", err)
			}
		}
	}
	return nil
}
