package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestTerminalKeys(t *testing.T) {
	for _, c := range []struct {
		typed []string // one read each
		raw   bool
		guest string
		leave bool
	}{
		{typed: []string{"ls\r"}, guest: "ls\r"},
		{typed: []string{"ab\x1dcd"}, guest: "ab", leave: true},
		{typed: []string{"ab\x01xcd"}, guest: "ab", leave: true},
		{typed: []string{"ab\x01", "x"}, guest: "ab", leave: true},
		{typed: []string{"\x01\x01x"}, guest: "\x01x"},
		{typed: []string{"\x01a"}, guest: "\x01a"},
		{typed: []string{"\x03\x1c"}, guest: "\x03\x1c"},
		{typed: []string{"\x1d\x01x"}, raw: true, guest: "\x1d\x01x"},
	} {
		e := escapes{raw: c.raw}
		var guest []byte
		leave := false
		for _, s := range c.typed {
			var p []byte
			p, leave = e.take([]byte(s))
			guest = append(guest, p...)
		}
		if string(guest) != c.guest || leave != c.leave {
			t.Errorf("%q: the guest gets %q, leave %v; want %q, %v", c.typed, guest, leave, c.guest, c.leave)
		}
	}
}

// openPTY opens a pseudo terminal: the person's side and the program's.
func openPTY(t *testing.T) (person, program *os.File) {
	t.Helper()
	person, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("needs /dev/ptmx: %v", err)
	}
	t.Cleanup(func() { person.Close() })
	if err := unix.IoctlSetPointerInt(int(person.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Skipf("needs pseudo terminals: %v", err)
	}
	n, err := unix.IoctlGetInt(int(person.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	program, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("needs /dev/pts: %v", err)
	}
	t.Cleanup(func() { program.Close() })
	return person, program
}

func TestTerminalIsRawAndComesBack(t *testing.T) {
	person, program := openPTY(t)
	before, err := unix.IoctlGetTermios(int(program.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	term, err := openTerminal(program, program)
	if err != nil {
		t.Fatal(err)
	}
	in := term.input()
	if _, err := person.WriteString("a\x03"); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 2)
	if _, err := io.ReadFull(in, b); err != nil || string(b) != "a\x03" {
		t.Errorf("the guest gets %q, %v", b, err)
	}
	term.print([]byte("hello\n"))
	b = make([]byte, 7)
	if _, err := io.ReadFull(person, b); err != nil || string(b) != "hello\r\n" {
		t.Errorf("the person sees %q, %v", b, err)
	}
	if _, err := person.WriteString("\x1d"); err != nil {
		t.Fatal(err)
	}
	<-term.left()
	if _, err := in.Read(b); err != io.EOF {
		t.Errorf("input after leaving: %v, want EOF", err)
	}
	if err := term.Close(); err != nil {
		t.Fatal(err)
	}
	after, err := unix.IoctlGetTermios(int(program.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	if *after != *before {
		t.Errorf("terminal modes are %+v, were %+v", after, before)
	}
}

func TestPipedConsole(t *testing.T) {
	inR, inW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	outR, outW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer inR.Close()
	defer outR.Close()
	term, err := openTerminal(inR, outW)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(inW, "\x1dquit\n")
	inW.Close()
	first := term.input()
	b := make([]byte, 6)
	if _, err := io.ReadFull(first, b); err != nil || string(b) != "\x1dquit\n" {
		t.Errorf("the guest gets %q, %v", b, err)
	}
	first.Close()
	if _, err := first.Read(b); err != io.EOF {
		t.Errorf("a closed machine's input: %v, want EOF", err)
	}
	select {
	case <-term.left():
		t.Error("the end of the input ended the guest")
	default:
	}
	want := bytes.Repeat([]byte("0123456789"), 30_000) // more than a pipe holds
	got := make(chan []byte)
	go func() {
		all, _ := io.ReadAll(outR)
		got <- all
	}()
	term.print(want)
	if err := term.Close(); err != nil {
		t.Error(err)
	}
	outW.Close()
	if all := <-got; !bytes.Equal(all, want) {
		t.Errorf("%d bytes of output came out, want %d", len(all), len(want))
	}
}

func TestConsoleReaderThatGoesAway(t *testing.T) {
	inR, inW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer inW.Close()
	defer inR.Close()
	outR, outW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer outW.Close()
	term, err := openTerminal(inR, outW)
	if err != nil {
		t.Fatal(err)
	}
	outR.Close()
	term.print([]byte("hello"))
	<-term.left()
	term.print(make([]byte, 2*outputMax)) // must not wait for ever
	if err := term.Close(); !errors.Is(err, unix.EPIPE) {
		t.Errorf("Close: %v, want EPIPE", err)
	}
}

func TestDisksThatCantBeUsed(t *testing.T) {
	dir := t.TempDir()
	path := func(name string, size int64) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(p, size); err != nil {
			t.Fatal(err)
		}
		return p
	}
	used, shared := path("used", 4096), path("shared", 4096)
	for _, s := range []string{used, shared + ",readonly"} {
		d, err := openDisk(s)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		if d.Size() != 4096 {
			t.Errorf("%s: size %d", s, d.Size())
		}
	}
	again, err := openDisk(shared + ",readonly")
	if err != nil {
		t.Errorf("two readers of one disk: %v", err)
	} else {
		again.Close()
	}
	for _, c := range []struct{ disk, text string }{
		{"", "give FILE"},
		{used + ",rw", "known are"},
		{filepath.Join(dir, "missing"), "truncate -s"},
		{dir + ",readonly", "neither"},
		{"/dev/null", "neither"},
		{path("empty", 0), "too small"},
		{path("tiny", 511), "too small"},
		{path("odd", 4097), "multiple of 512"},
		{used, "in use"},
		{used + ",readonly", "in use"},
		{shared, "in use"},
	} {
		d, err := openDisk(c.disk)
		if err == nil {
			d.Close()
			t.Errorf("%q was accepted", c.disk)
		} else if !strings.Contains(err.Error(), c.text) {
			t.Errorf("%q: error %q, want one that says %q", c.disk, err, c.text)
		}
	}
}

func TestVMRunRefusals(t *testing.T) {
	dir := t.TempDir()
	kernel := filepath.Join(dir, "kernel")
	if err := os.WriteFile(kernel, []byte("kernel"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		text string
		code int
	}{
		{nil, "--kernel is needed", exitUsage},
		{[]string{"--kernel", "builtin:other"}, "builtin:ledger", exitUsage},
		{[]string{"--kernel", filepath.Join(dir, "missing")}, "kernel", exitFailed},
		{[]string{"--kernel", dir}, "not a regular file", exitFailed},
		{[]string{"--kernel", kernel, "--initrd", filepath.Join(dir, "missing")}, "initrd", exitFailed},
		{[]string{"--kernel", kernel, "--initrd", kernel, "--memory", "1K"}, "between 1M", exitUsage},
		{[]string{"--kernel", kernel, "--memory", "lots"}, "size like", exitUsage},
		{[]string{"--kernel", kernel, "--cpus", "0"}, "at least one", exitUsage},
		{[]string{"--kernel", kernel, "--disk", "x,y"}, "known are readonly, serial, queues", exitUsage},
		{[]string{"--kernel", kernel, "--disk", "x,queues=0"}, "between 1 and", exitUsage},
		{[]string{"--kernel", kernel, "--disk", ",readonly"}, "give FILE", exitUsage},
		{[]string{"--kernel", kernel, "--net", "name=x"}, "unknown", exitUsage},
		{[]string{"--kernel", kernel, "--net", "mac=02:00:00:00:00:01"}, "tap=NAME", exitUsage},
		{[]string{"--kernel", kernel, "--net", "tap=x,mac=03:00:00:00:00:01"}, "unicast", exitUsage},
		{[]string{"--kernel", kernel, "--net", "tap=no-such-tap"}, "ip tuntap add", exitFailed},
		{[]string{"--kernel", kernel, "--net", "tap=../lo"}, "no tap", exitFailed},
		{[]string{"--kernel", kernel, "--net", "tap=lo"}, "no tap", exitFailed},
	} {
		cmd := newVMCommand()
		cmd.SetArgs(append([]string{"run"}, c.args...))
		cmd.SilenceErrors, cmd.SilenceUsage = true, true
		err := cmd.ExecuteContext(t.Context())
		if err == nil || !strings.Contains(err.Error(), c.text) || exitCode(err) != c.code {
			t.Errorf("%q: error %v (exit code %d), want %q and %d", c.args, err, exitCode(err), c.text, c.code)
		}
	}
	if _, err := readImage("kernel", filepath.Join(dir, "none"), 1); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing image: %v", err)
	}
	if _, err := readImage("initrd", kernel, 3); err == nil || !strings.Contains(err.Error(), "do not fit") {
		t.Errorf("an image that is too large: %v", err)
	}
}
