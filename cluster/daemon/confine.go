package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/google/renameio/v2"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/pollux-ha/pollux/cluster/config"
	"github.com/pollux-ha/pollux/cluster/link"
	"github.com/pollux-ha/pollux/cluster/pki"
)

// processNamespaces are the namespaces of its own that a process to be confined starts in (clone(2) flags): Go's threads
// can't leave theirs together any more once they run. There is none for process IDs: a confined process has no /proc
// and no call that reaches another one, and tools on the host find it under the number that they know.
const processNamespaces = unix.CLONE_NEWNS | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS

// The users of guests' processes. They need no account: they are numbers, one a guest. Which one is a guest's is kept
// as the group of its directory, where it survives whatever the disks survive. The first number of the range is no
// guest's but the group of all of them.
const guestUsers = 1 << 16

// certificates are the files of pki/ that a process needs, in the order in which they are replaced: whoever sees a new
// certificate finds its key there already.
var certificates = []string{pki.RevokedFile, "host.key", "ca.crt", "host.crt"}

const certificatesEvery = 5 * time.Second

// confiner gives out what confined processes need.
type confiner struct {
	cfg *config.Config
	mu  sync.Mutex
}

// confine completes a process's configuration.
func (c *confiner) confine(p *link.ProcessConfig) error {
	mode := c.cfg.DataPlane.Confine
	p.Confine = link.Confinement{Mode: mode}
	if p.Confine.Off() {
		return nil
	}
	dir := c.cfg.GuestDir(p.Guest)
	user, err := c.user(dir)
	if err != nil {
		return err
	}
	p.Confine.User, p.Confine.Group, p.Confine.Strict = user, c.cfg.DataPlane.FirstUser, c.cfg.DataPlane.Strict
	if err := c.trusted(append([]string{p.Journal, p.ConsoleLog, filepath.Join(dir, createdFile)}, p.Disks...)); err != nil {
		return err
	}
	p.Confine.Root = filepath.Join(c.cfg.ProcessDir(), "root")
	if err := os.MkdirAll(p.Confine.Root, 0o700); err != nil {
		return fmt.Errorf("make the directory that a confined process begins in: %w", err)
	}
	p.PKI = c.certificateDir()
	return c.copyCertificates()
}

func (c *confiner) certificateDir() string { return filepath.Join(c.cfg.RunDir, "certificates") }

// user finds the number of the guest with that directory, or takes the first free one and writes it down.
func (c *confiner) user(dir string) (uint32, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	first := c.cfg.DataPlane.FirstUser
	ours := func(gid uint32) bool { return gid > first && gid-first < guestUsers }
	if gid, err := groupOf(dir); err != nil {
		return 0, fmt.Errorf("look at the guest's directory: %w", err)
	} else if ours(gid) {
		return gid, nil
	}
	taken := map[uint32]bool{}
	for _, pattern := range []string{filepath.Join(c.cfg.GuestsDir(), "*"), filepath.Join(c.cfg.StateDir, "deleted", "*")} {
		dirs, err := filepath.Glob(pattern)
		if err != nil {
			return 0, err
		}
		for _, d := range dirs {
			if gid, err := groupOf(d); err == nil {
				taken[gid] = true
			}
		}
	}
	for user := first + 1; ours(user); user++ {
		if taken[user] {
			continue
		}
		// Where that can't be written down, a process can't become it either, and says so.
		_ = os.Chown(dir, -1, int(user))
		return user, nil
	}
	return 0, fmt.Errorf("no number between %d and %d is free for the guest's user: remove guests below %s that are not needed any more, or set dataplane.first_user to another range",
		first, first+guestUsers-1, filepath.Join(c.cfg.StateDir, "deleted"))
}

func groupOf(path string) (uint32, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return 0, err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, errors.ErrUnsupported
	}
	return st.Gid, nil
}

// trusted refuses files that only root may have put where they are, and that a guest's user owns. The next process
// opens them before it is confined.
func (c *confiner) trusted(paths []string) error {
	first := c.cfg.DataPlane.FirstUser
	for _, path := range paths {
		info, err := os.Lstat(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Uid >= first && st.Uid-first < guestUsers {
			return fmt.Errorf("%s belongs to user %d, which is a guest's: its process has put it there, which it has no reason to; "+
				"take the guest for compromised, and look at the file before you remove it", path, st.Uid)
		}
	}
	return nil
}

// copyCertificates brings the copy up to date that confined processes read.
func (c *confiner) copyCertificates() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	dir, group := c.certificateDir(), int(c.cfg.DataPlane.FirstUser)
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return fmt.Errorf("make the directory of the processes' certificates: %w", err)
	}
	_ = os.Chown(dir, -1, group) // where there are no such groups the processes stay this user's
	for _, name := range certificates {
		b, err := os.ReadFile(filepath.Join(c.cfg.PKIDir(), name))
		if name == pki.RevokedFile && errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("copy a certificate for the processes: %w", err)
		}
		to := filepath.Join(dir, name)
		if have, err := os.ReadFile(to); err == nil && bytes.Equal(have, b) {
			continue
		}
		if err := writeForGroup(to, b, group); err != nil {
			return fmt.Errorf("copy a certificate for the processes: %w", err)
		}
	}
	return nil
}

func writeForGroup(path string, b []byte, group int) error {
	f, err := renameio.NewPendingFile(path, renameio.WithTempDir(filepath.Dir(path)), renameio.WithPermissions(0o640), renameio.IgnoreUmask())
	if err != nil {
		return err
	}
	defer func() { _ = f.Cleanup() }() // nothing, once the file is in its place
	_ = f.Chown(-1, group)
	if _, err := f.Write(b); err != nil {
		return err
	}
	return f.CloseAtomicallyReplace()
}

// keepCertificates has processes see certificates that were renewed.
func (c *confiner) keepCertificates(ctx context.Context, log *zap.Logger) {
	t := time.NewTicker(certificatesEvery)
	defer t.Stop()
	var said string
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		if _, err := os.Stat(c.certificateDir()); err != nil {
			continue // no process reads it
		}
		text := ""
		if err := c.copyCertificates(); err != nil {
			text = err.Error()
		}
		if text != "" && text != said {
			log.Error("processes go on with the certificates that they have", zap.String("reason", text))
		}
		said = text
	}
}

// dump has a process that can't open files write the guest's memory to one.
func (p *process) dump(o link.Order) error {
	p.mu.Lock()
	takes := p.hello != nil && p.hello.TakesFiles
	busy := p.dumping != "" || p.status != nil && p.status.Dump != nil && !p.status.Dump.Done
	p.mu.Unlock()
	if !takes {
		p.give(o)
		return nil
	}
	if busy {
		return errors.New("a dump is being written already")
	}
	f, err := os.OpenFile(o.Path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("make the file of the dump: %w", err)
	}
	p.mu.Lock()
	p.dumping = o.Path
	p.orders = append(p.orders, link.Message{Order: &o, File: f})
	p.mu.Unlock()
	p.wake()
	return nil
}

// dumped takes what the process tells of a dump: a file that holds none goes. p.mu is held.
func (p *process) dumped(d *link.Dump) {
	if p.dumping == "" || d == nil || !d.Done || d.Path != p.dumping {
		return
	}
	if d.Error != "" {
		if err := os.Remove(p.dumping); err != nil {
			p.log.Warn("remove the file of a dump that failed", zap.Error(err))
		}
	}
	p.dumping = ""
}
