package scenario

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pollux-ha/pollux/cluster/pact"
	"github.com/pollux-ha/pollux/tests/lab"
	"github.com/pollux-ha/pollux/tests/lab/images"
	"github.com/pollux-ha/pollux/tests/lab/parts"
)

// guestName is the guest's in every scenario.
const guestName = "debian"

// The images that there are.
const (
	postgres = "postgres"
	orthanc  = "orthanc"
)

// patience bounds a step that nobody waits for without end.
const patience = 6 * time.Minute

// stage is two lab hosts and a witness with one protected guest, and a client machine with Debian's tools.
type stage struct {
	*testing.T
	options options

	lab     *lab.Lab
	cluster *lab.Cluster
	client  *lab.Machine
	image   images.Image
	address string // the guest's
	scratch string // a directory that client programs know by the same path
	runs    int    // of pgbench
	began   time.Time
	last    time.Time
}

// options say what differs between scenarios.
type options struct {
	image  string // postgres or orthanc
	cpus   int
	memory int // MiB
	uefi   bool
	// qemu puts QEMU on the hosts too.
	qemu bool
	// protectedBoot has the guest protected while it boots, which takes longer than to boot and protect it then.
	protectedBoot bool
}

// kept is the stage of the test before, for the next one that wants the same.
var kept *stage

// TestMain ends the lab that the last test has left.
func TestMain(m *testing.M) {
	code := m.Run()
	if kept != nil {
		kept.close()
	}
	os.Exit(code)
}

// newStage returns a stage with its guest protected and ready to be logged in to: that of the test before if it was the same
// and has passed, or a new one.
func newStage(t *testing.T, o options) *stage {
	t.Helper()
	lab.Need(t)
	o.cpus = max(1, o.cpus)
	if o.image == "" {
		o.image = postgres
	}
	if o.memory == 0 {
		o.memory = 512
	}
	s := kept
	kept = nil
	if s != nil && (s.options != o || o.protectedBoot) {
		s.close()
		s = nil
	}
	fresh := s == nil
	if fresh {
		s = &stage{options: o}
	}
	s.T, s.began, s.last = t, time.Now(), time.Now()
	// The lab ends with a test that fails; what it needs comes last, as cleanups run backwards.
	t.Cleanup(func() {
		if !t.Failed() {
			kept = s
			return
		}
		if s.cluster != nil {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			var b strings.Builder
			s.cluster.CopyLogs(ctx, &b)
			t.Log(b.String())
		}
		s.close()
	})
	if fresh {
		s.build()
	} else {
		s.again()
	}
	return s
}

// close ends the lab.
func (s *stage) close() {
	if s.lab != nil {
		if err := s.lab.Close(); err != nil {
			fmt.Fprintln(os.Stderr, "the lab has not ended well:", err)
		}
	}
	if s.scratch != "" {
		os.RemoveAll(s.outside(""))
	}
}

// build makes the lab, the cluster and the guest.
func (s *stage) build() {
	s.Helper()
	ctx, o := s.Context(), s.options
	logf := func(format string, a ...any) { s.Logf(format, a...) }
	build := map[string]func(context.Context, string, func(string, ...any)) (images.Image, error){postgres: images.Postgres, orthanc: images.Orthanc}[o.image]
	var err error
	s.image, err = build(ctx, parts.Cached(""), logf)
	s.must("the image is there", err)
	tree, err := images.Client(ctx, parts.Cached(""), logf)
	s.must("the client's tools are there", err)

	wanted := lab.Options{MemoryMiB: 1024 + o.memory, Firmware: o.uefi, Data: map[string]string{
		"images/vmlinuz": s.image.Kernel, "images/initrd": s.image.Initrd,
		// Both copies begin with the image, as an operator would do it who has put it on both hosts.
		"pollux/guests/" + guestName + "/disk0.raw": s.image.Disk,
	}}
	if o.qemu {
		maps.Copy(wanted.Data, s.qemuFiles())
		wanted.Modules = append(wanted.Modules, "vhost_net")
	}
	s.lab, err = lab.Open(ctx, wanted, logf)
	s.must("the lab is built", err)
	s.client = s.lab.Client("client")
	s.client.Root = tree.Dir
	s.makeScratch(tree)
	s.cluster, err = s.lab.Cluster(ctx)
	s.must("two hosts and a witness are up", err)
	args := []string{"--memory", fmt.Sprintf("%dM", o.memory), "--cpus", strconv.Itoa(o.cpus), "--disk", fmt.Sprintf("size=%d", s.image.DiskBytes), "--net", "bridge=lan"}
	if o.uefi {
		args = append(args, "--firmware", "uefi")
	} else {
		args = append(args, "--kernel", "/data/images/vmlinuz", "--initrd", "/data/images/initrd", "--cmdline", s.image.Cmdline)
	}
	s.must("the guest is created", s.cluster.Create(ctx, guestName, args...))
	b := s.lab.Host("b")
	if !o.protectedBoot {
		s.must("host b is off for now", b.PowerOff(ctx))
	}
	s.startGuest()
	if !o.protectedBoot {
		s.install()
		s.must("host b is on again", b.PowerOn(ctx))
	}
	s.protected()
}

// again brings a stage that a test has left back to where tests begin.
func (s *stage) again() {
	s.Helper()
	s.must("the hosts are on", s.lab.PowerOn(s.Context()))
	g, err := s.cluster.Status(s.Context(), guestName)
	if err != nil {
		s.Fatal(err)
	}
	if g.Desired == pact.DesiredStopped {
		s.startGuest()
	}
	s.login()
	s.protected()
}

// startGuest starts the guest and waits until one can log in.
func (s *stage) startGuest() {
	s.Helper()
	ctx := s.Context()
	s.must("the guest is started", s.cluster.Start(ctx, guestName))
	ip, err := s.cluster.Address(ctx, guestName)
	s.must("it has its address", err)
	s.address = ip.String()
	s.login()
}

// makeScratch makes the directory that is shared with client programs, with the key for ssh in it.
func (s *stage) makeScratch(tree images.Tree) {
	s.Helper()
	dir, err := os.MkdirTemp(filepath.Join(tree.Dir, "tmp"), "lab.")
	if err != nil {
		s.Fatal(err)
	}
	s.scratch = strings.TrimPrefix(dir, tree.Dir)
	key, err := os.ReadFile(tree.Key)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "key"), key, 0o600)
	}
	if err != nil {
		s.Fatal(err)
	}
}

// outside is the path of a scratch file on this machine.
func (s *stage) outside(name string) string { return filepath.Join(s.client.Root, s.scratch, name) }

// inside is its path for a client's program.
func (s *stage) inside(name string) string { return filepath.Join(s.scratch, name) }

// step says that something is done, and how long it took.
func (s *stage) step(format string, a ...any) {
	s.Helper()
	now := time.Now()
	s.Logf("%6.1f s  +%5.1f  %s", now.Sub(s.began).Seconds(), now.Sub(s.last).Seconds(), fmt.Sprintf(format, a...))
	s.last = now
}

// must ends the test if what should be so is not.
func (s *stage) must(what string, err error) {
	s.Helper()
	if err != nil {
		s.Fatalf("not so: %s: %v", what, err)
	}
	s.step("%s", what)
}

// eventually asks until there is no error.
func (s *stage) eventually(what string, ask func(ctx context.Context) error) {
	s.Helper()
	ctx, cancel := context.WithTimeout(s.Context(), patience)
	defer cancel()
	for {
		err := ask(ctx)
		if err == nil {
			s.step("%s", what)
			return
		}
		select {
		case <-time.After(500 * time.Millisecond):
		case <-ctx.Done():
			s.Fatalf("waited in vain until: %s: %v", what, err)
		}
	}
}

// run runs a program of the client's and returns what it says.
func (s *stage) run(ctx context.Context, in io.Reader, argv ...string) (string, error) {
	cmd := s.client.Command(ctx, argv...)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in, &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s: %w: %s", argv[0], err, strings.TrimSpace(errs.String()))
	}
	return out.String(), nil
}

// sshCommand is a command line for the client that runs a script in the guest.
func (s *stage) sshCommand(script string) []string {
	return []string{
		"ssh", "-i", s.inside("key"), "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
		"-o", "LogLevel=ERROR", "-o", "ConnectTimeout=20", "root@" + s.address, script,
	}
}

// ssh runs a shell script in the guest.
func (s *stage) ssh(ctx context.Context, script string) (string, error) {
	return s.run(ctx, nil, s.sshCommand(script)...)
}

// login waits until one can log in.
func (s *stage) login() {
	s.Helper()
	s.eventually("one can log in", func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		_, err := s.ssh(ctx, "true")
		return err
	})
}

// protected waits until the guest is protected.
func (s *stage) protected() {
	s.Helper()
	ctx, cancel := context.WithTimeout(s.Context(), patience)
	defer cancel()
	s.must("the guest is protected", s.cluster.WaitProtected(ctx, guestName))
}

// primary and its twin, as the witness has it.
func (s *stage) hosts() (primary, other *lab.Host) {
	s.Helper()
	g, err := s.cluster.Status(s.Context(), guestName)
	if err != nil {
		s.Fatal(err)
	}
	for _, h := range s.lab.Hosts() {
		if h.Name == g.Primary {
			primary = h
		} else {
			other = h
		}
	}
	if primary == nil {
		s.Fatalf("the guest's primary is %q", g.Primary)
	}
	return primary, other
}

// mirror says what the mirroring costs: the primary's own account of its recent epochs.
func (s *stage) mirror() {
	s.Helper()
	g, err := s.cluster.Status(s.Context(), guestName)
	if err != nil {
		s.Fatal(err)
	}
	for _, p := range g.Processes {
		if p.Host != g.Primary || p.Status == nil {
			continue
		}
		var phases []string
		for _, name := range slices.Sorted(maps.Keys(p.Status.TimingsUs)) {
			t := p.Status.TimingsUs[name]
			phases = append(phases, fmt.Sprintf("%s %.1f/%.1f", name, t.P50/1000, t.P99/1000))
		}
		s.Logf("%s: %d epochs, %d pages, %d bytes on the wire; median and 99th percentile in ms: %s",
			g.State, p.Status.Epochs, p.Status.DirtyPages, p.Status.WireBytes, strings.Join(phases, ", "))
	}
}

// pullPlug cuts the power of the primary's host and waits until the guest runs on the other.
func (s *stage) pullPlug() (dead, alive *lab.Host) {
	s.Helper()
	dead, alive = s.hosts()
	ctx, cancel := context.WithTimeout(s.Context(), patience)
	defer cancel()
	s.must("the plug of "+dead.Name+" is pulled", dead.PowerCut())
	s.must("the guest runs on "+alive.Name, s.cluster.WaitPrimary(ctx, guestName, alive))
	return dead, alive
}

// install puts the program for the guest there.
func (s *stage) install() {
	s.Helper()
	ctx, cancel := context.WithTimeout(s.Context(), patience)
	defer cancel()
	program, err := parts.Program(ctx, "./tests/lab/scenario/inside")
	if err != nil {
		s.Fatal(err)
	}
	f, err := os.Open(program)
	if err != nil {
		s.Fatal(err)
	}
	defer f.Close()
	_, err = s.run(ctx, f, s.sshCommand("cat >/usr/local/bin/inside && chmod +x /usr/local/bin/inside && sync")...)
	s.must("the guest has its program", err)
}

// inBackground runs a command in the guest that goes on after the login has ended, anew if it did already.
func (s *stage) inBackground(unit, script string) {
	s.Helper()
	_, err := s.ssh(s.Context(), "systemctl stop "+unit+" 2>/dev/null; systemd-run --quiet --collect --unit="+unit+" "+script)
	s.must("the guest runs "+unit, err)
}

// stopGuest presses the power button.
func (s *stage) stopGuest() {
	s.Helper()
	ctx, cancel := context.WithTimeout(s.Context(), patience)
	defer cancel()
	s.must("the power button shuts the guest down", s.cluster.Stop(ctx, guestName, false))
}

// disks switches the hosts off and returns both copies of the guest's disk as files of this machine.
func (s *stage) disks() map[string]string {
	s.Helper()
	ctx, cancel := context.WithTimeout(s.Context(), patience)
	defer cancel()
	copies := make(map[string]string)
	for _, h := range s.lab.Hosts() {
		if h.On() {
			if err := h.PowerOff(ctx); err != nil {
				s.Fatalf("switch %s off: %v", h.Name, err)
			}
		}
		raw, disk := filepath.Join(h.Dir, "data.raw"), filepath.Join(h.Dir, "disk0.raw")
		for _, argv := range [][]string{
			{"qemu-img", "convert", "-O", "raw", filepath.Join(h.Dir, "data.qcow2"), raw},
			// The power went without unmounting, so the journal of the host's own file system comes first.
			{"e2fsck", "-fy", raw},
			{"debugfs", "-R", "dump " + strings.TrimPrefix(lab.StateDir, "/data") + "/guests/" + guestName + "/disk0.raw " + disk, raw},
		} {
			if err := tool(ctx, argv...); err != nil {
				s.Fatal(err)
			}
		}
		os.Remove(raw)
		copies[h.Name] = disk
	}
	s.step("the hosts are off and their disks are here")
	return copies
}

// tool runs a program of this machine. e2fsck's codes 1 and 2 say that it has put right what it found.
func tool(ctx context.Context, argv ...string) error {
	path, err := parts.Tool(argv[0])
	if err != nil {
		return err
	}
	out, err := exec.CommandContext(ctx, path, argv[1:]...).CombinedOutput()
	var exit *exec.ExitError
	if argv[0] == "e2fsck" && argv[1] == "-fy" && errors.As(err, &exit) && exit.ExitCode() <= 2 {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, out)
	}
	return nil
}
