package daemon

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.uber.org/zap/zaptest"
	"golang.org/x/sys/unix"

	"github.com/pollux-ha/pollux/cluster/config"
	"github.com/pollux-ha/pollux/cluster/link"
)

const testFirstUser = 1_950_000_000

// newConfiner is one for a host with certificates and with directories for some guests.
func newConfiner(t *testing.T, guests ...string) *confiner {
	t.Helper()
	dir := t.TempDir()
	cfg := config.Config{StateDir: filepath.Join(dir, "state"), RunDir: filepath.Join(dir, "run")}.WithDefaults()
	cfg.DataPlane.Confine, cfg.DataPlane.FirstUser = "auto", testFirstUser
	for _, d := range []string{cfg.PKIDir(), cfg.GuestsDir(), cfg.RunDir} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, g := range guests {
		if err := os.Mkdir(cfg.GuestDir(g), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range append([]string{"ca.key", "cluster.json"}, certificates...) {
		if err := os.WriteFile(filepath.Join(cfg.PKIDir(), name), []byte("first "+name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return &confiner{cfg: &cfg}
}

func (c *confiner) process(t *testing.T, guest string) (link.ProcessConfig, error) {
	t.Helper()
	dir := c.cfg.GuestDir(guest)
	p := link.ProcessConfig{Guest: guest, PKI: c.cfg.PKIDir(), Journal: journalPath(dir), ConsoleLog: consolePath(dir), Disks: []string{filepath.Join(dir, "disk0.raw")}}
	return p, c.confine(&p)
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it gives files away")
	}
}

func TestEveryGuestHasAUserOfItsOwn(t *testing.T) {
	needRoot(t)
	c := newConfiner(t, "db", "web", "mail")
	users := map[string]uint32{}
	for range 2 { // the second time they are known
		for _, g := range []string{"db", "web", "mail"} {
			p, err := c.process(t, g)
			if err != nil {
				t.Fatal(err)
			}
			u := p.Confine.User
			if u <= testFirstUser || u >= testFirstUser+guestUsers || p.Confine.Group != testFirstUser {
				t.Errorf("%s: %+v", g, p.Confine)
			}
			if users[g] != 0 && users[g] != u {
				t.Errorf("%s was %d and is %d", g, users[g], u)
			}
			users[g] = u
		}
	}
	if users["db"] == users["web"] || users["web"] == users["mail"] || users["db"] == users["mail"] {
		t.Errorf("two guests have one user: %v", users)
	}
	// A deleted guest's disks are somebody's still.
	aside := filepath.Join(c.cfg.StateDir, "deleted")
	if err := errors.Join(os.Mkdir(aside, 0o700), os.Rename(c.cfg.GuestDir("web"), filepath.Join(aside, "web-7")), os.Mkdir(c.cfg.GuestDir("new"), 0o700)); err != nil {
		t.Fatal(err)
	}
	p, err := c.process(t, "new")
	if err != nil {
		t.Fatal(err)
	}
	for g, u := range users {
		if u == p.Confine.User {
			t.Errorf("the new guest has the user of %s", g)
		}
	}
}

// What a guest's user has put where root's files belong is not opened by root.
func TestFilesOfAGuestsUserAreNotTrusted(t *testing.T) {
	needRoot(t)
	c := newConfiner(t, "db")
	p, err := c.process(t, "db")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{p.Disks[0], p.Journal, p.ConsoleLog, filepath.Join(c.cfg.GuestDir("db"), createdFile)} {
		if err := errors.Join(os.Symlink("/etc/passwd", path), os.Lchown(path, int(p.Confine.User), int(p.Confine.User))); err != nil {
			t.Fatal(err)
		}
		if _, err := c.process(t, "db"); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s is accepted: %v", path, err)
		}
		// An operator's link is another matter.
		if err := os.Lchown(path, 0, 0); err != nil {
			t.Fatal(err)
		}
		if _, err := c.process(t, "db"); err != nil {
			t.Errorf("an operator's link: %v", err)
		}
	}
}

func TestProcessesSeeTheirCertificatesOnly(t *testing.T) {
	c := newConfiner(t, "db")
	p, err := c.process(t, "db")
	if err != nil {
		t.Fatal(err)
	}
	if p.PKI == c.cfg.PKIDir() {
		t.Fatal("the process is led to the host's own keys")
	}
	read := func() (names []string) {
		t.Helper()
		entries, err := os.ReadDir(p.PKI)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			names = append(names, e.Name())
			if info, err := e.Info(); err != nil || info.Mode().Perm() != 0o640 {
				t.Errorf("%s: %v, %v", e.Name(), info.Mode(), err)
			}
		}
		return names
	}
	if got := read(); !slices.Equal(got, slices.Sorted(slices.Values(certificates))) {
		t.Errorf("there are %v", got)
	}
	if err := os.WriteFile(filepath.Join(c.cfg.PKIDir(), "host.crt"), []byte("renewed"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := c.copyCertificates(); err != nil {
		t.Fatal(err)
	}
	read()
	if b, err := os.ReadFile(filepath.Join(p.PKI, "host.crt")); err != nil || string(b) != "renewed" {
		t.Errorf("%q, %v", b, err)
	}
}

func TestConfinementThatIsOff(t *testing.T) {
	c := newConfiner(t, "db")
	c.cfg.DataPlane.Confine = "off"
	p, err := c.process(t, "db")
	if err != nil || !p.Confine.Off() || p.PKI != c.cfg.PKIDir() || p.Confine.Root != "" {
		t.Errorf("%+v, %v", p, err)
	}
}

// A mark is what a guest's process says. It must not be able to hang the daemon, nor lead it elsewhere.
func TestHostileMarks(t *testing.T) {
	dir := t.TempDir()
	for name, plant := range map[string]func(path string) error{
		"a pipe":      func(path string) error { return unix.Mkfifo(path, 0o600) },
		"a link":      func(path string) error { return os.Symlink("/dev/zero", path) },
		"a directory": func(path string) error { return os.Mkdir(path, 0o700) },
		"much":        func(path string) error { return errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, 1<<40)) },
	} {
		disk := filepath.Join(dir, fmt.Sprintf("%x", name))
		if err := errors.Join(os.WriteFile(disk, nil, 0o600), plant(disk+".mark")); err != nil {
			t.Fatal(err)
		}
		if got := readMark(disk); got.state != "inconsistent" {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

func TestFileOfADump(t *testing.T) {
	path := filepath.Join(t.TempDir(), "dump")
	p := &process{log: zaptest.NewLogger(t), poke: make(chan struct{}, 1), hello: &link.Hello{TakesFiles: true}}
	order := link.Order{Kind: link.OrderDump, Path: path}
	if err := p.dump(order); err != nil {
		t.Fatal(err)
	}
	if len(p.orders) != 1 || p.orders[0].File == nil || p.orders[0].Order.Path != path {
		t.Fatalf("orders: %+v", p.orders)
	}
	defer p.orders[0].File.Close()
	if err := p.dump(order); err == nil {
		t.Error("two dumps at once")
	}
	p.dumped(&link.Dump{Path: path})
	p.dumped(&link.Dump{Path: "/elsewhere", Done: true, Error: "failed"})
	if _, err := os.Stat(path); err != nil {
		t.Fatal(err)
	}
	p.dumped(&link.Dump{Path: path, Done: true, Error: "failed"})
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file of a dump that failed is there: %v", err)
	}
	if err := p.dump(order); err != nil {
		t.Fatal(err)
	}
	defer p.orders[1].File.Close()
	p.dumped(&link.Dump{Path: path, Done: true, Bytes: 7})
	if _, err := os.Stat(path); err != nil {
		t.Error(err)
	}
	// A file that is there already is nobody's to overwrite.
	if err := p.dump(order); !errors.Is(err, os.ErrExist) {
		t.Errorf("%v, want that it exists", err)
	}
	// A process that opens files itself gets the order alone.
	old := &process{log: p.log, poke: make(chan struct{}, 1), hello: &link.Hello{}}
	if err := old.dump(link.Order{Kind: link.OrderDump, Path: path + "2"}); err != nil || len(old.orders) != 1 || old.orders[0].File != nil {
		t.Errorf("%+v, %v", old.orders, err)
	}
}
