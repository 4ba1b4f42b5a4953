package lab

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/pollux-ha/pollux/tests/lab/emulator"
	"github.com/pollux-ha/pollux/tests/lab/parts"
)

// What the smoke test's guest does: every device that a small guest has, and what its kernel complains of.
const smokeScript = `check() { if eval "$2"; then echo "L2: ok $1"; else echo "L2: FAILED $1"; fi; }
echo "L2: hello"
read -r line
check console '[ "$line" = "typed line" ]'
check disk-size '[ "$(cat /sys/block/vda/size)" = 8192 ]'
check disk-read '[ "$(dd if=/dev/vda bs=512 count=1 2>/dev/null | head -c 9)" = "from host" ]'
check disk-write 'echo "from guest" | dd of=/dev/vda bs=512 seek=8191 conv=fsync,sync 2>/dev/null'
check read-only '! echo x | dd of=/dev/vdb bs=512 conv=fsync 2>/dev/null'
ifconfig eth0 10.99.0.2 up
check network 'ping -c 1 -W 30 10.99.0.1 >/dev/null'
check random '[ "$(dd if=/dev/hwrng bs=16 count=1 2>/dev/null | wc -c)" = 16 ]'
dmesg -r -s 1000000 | grep -iE '^<[0-3]>|WARNING: CPU|ACPI.*(error|warning)|firmware bug|XSAVE consistency' | sed 's/^/L2: complaint: /'
poweroff -f
`

// A stock kernel runs on `pollux vm run`: console in and out, disks, network, random numbers, power-off by ACPI.
func TestSmoke(t *testing.T) {
	needTools(t)
	for _, cpus := range []int{1, 2} {
		t.Run(fmt.Sprintf("%d-cpu", cpus), func(t *testing.T) { smoke(t, cpus) })
	}
}

func smoke(t *testing.T, cpus int) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	kernel, err := parts.Fetch(ctx, parts.Cloud)
	if err != nil {
		t.Fatal(err)
	}
	pollux, err := program(ctx)
	if err != nil {
		t.Fatal(err)
	}
	initrd := filepath.Join(t.TempDir(), "guest.cpio")
	if err := parts.WriteGuestInit(kernel, initrd, smokeScript, nil); err != nil {
		t.Fatal(err)
	}
	files := map[string]string{"/bin/pollux": pollux, "/kernel": kernel.Image, "/guest.cpio": initrd}
	err = Lone(ctx, files, t.Logf, func(m *emulator.Machine) error {
		const prepare = "echo 'from host' >/disk; truncate -s 4M /disk; truncate -s 1M /readonly; tunctl -t tap0; ifconfig tap0 10.99.0.1 up"
		if _, err := m.Exec(ctx, nil, "sh", "-c", prepare); err != nil {
			return err
		}
		out := &transcript{}
		typed, keys := io.Pipe()
		defer keys.Close()
		// A line typed before the guest has opened its console is lost, as on any serial port.
		out.at("L2: hello", func() { go io.WriteString(keys, "typed line\n") })
		began := time.Now()
		err := m.Run(ctx, emulator.Command{
			Argv: []string{"pollux", "vm", "run", "--kernel", "/kernel", "--initrd", "/guest.cpio", "--memory", "192M", "--cpus", fmt.Sprint(cpus),
				"--cmdline", parts.GuestCmdline, "--disk", "/disk", "--disk", "/readonly,readonly", "--net", "tap=tap0", "--no-reboot"},
			Stdin: typed, Stdout: out, Stderr: out,
		})
		t.Logf("pollux vm run, %.1f s:\n%s", time.Since(began).Seconds(), out)
		if err != nil {
			return fmt.Errorf("pollux vm run: %w", err)
		}
		text := out.String()
		for _, c := range []string{"console", "disk-size", "disk-read", "disk-write", "read-only", "network", "random"} {
			if !strings.Contains(text, "L2: ok "+c) {
				t.Errorf("the guest does not say that this is well: %s", c)
			}
		}
		if !strings.Contains(text, fmt.Sprintf("with %d CPU(s)", cpus)) {
			t.Errorf("the guest does not have %d CPUs", cpus)
		}
		for _, bad := range regexp.MustCompile(`L2: (FAILED|complaint).*`).FindAllString(text, -1) {
			t.Error(bad)
		}
		tail, err := m.Exec(ctx, nil, "sh", "-c", "dd if=/disk bs=512 skip=8191 2>/dev/null | head -c 10")
		if tail != "from guest" {
			t.Errorf("the end of the disk has %q", tail)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// transcript is what a program has said, and does something once when a word has come.
type transcript struct {
	bytes.Buffer
	word string
	do   func()
}

func (b *transcript) at(word string, do func()) { b.word, b.do = word, do }

func (b *transcript) Write(p []byte) (int, error) {
	n, err := b.Buffer.Write(p)
	if b.do != nil && bytes.Contains(b.Bytes(), []byte(b.word)) {
		b.do()
		b.do = nil
	}
	return n, err
}

// The tests of a lone host need no root.
func needTools(t *testing.T) {
	t.Helper()
	if os.Getenv(Variable) == "" {
		t.Skip("needs lab: run make lab-test")
	}
	if err := parts.Check(); err != nil {
		t.Skip("needs lab: ", err)
	}
}
