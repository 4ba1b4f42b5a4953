package main

import (
	"context"
	"encoding/binary"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pollux-ha/pollux/vmm/kvm"
	"github.com/pollux-ha/pollux/vmm/platform"
)

// assemble builds a PVH kernel out of 32-bit code that runs without a stack.
func assemble(code []byte) []byte {
	const load, at = 0x100000, 64 + 2*56
	le := binary.LittleEndian
	note := append(le.AppendUint32(le.AppendUint32(le.AppendUint32(nil, 4), 4), 18), "Xen\x00"...)
	note = le.AppendUint32(note, load)
	h := append([]byte("\x7fELF\x02\x01\x01"), make([]byte, 57)...)
	le.PutUint16(h[16:], 2)  // executable
	le.PutUint16(h[18:], 62) // x86-64
	le.PutUint64(h[32:], 64)
	le.PutUint16(h[54:], 56)
	le.PutUint16(h[56:], 2)
	segment := func(kind uint32, offset, addr uint64, b []byte) {
		h = le.AppendUint32(le.AppendUint32(h, kind), 7)
		for _, v := range []uint64{offset, addr, addr, uint64(len(b)), uint64(len(b)), 4} {
			h = le.AppendUint64(h, v)
		}
	}
	segment(4, at, 0, note)
	segment(1, at+uint64(len(note)), load, code)
	return append(append(h, note...), code...)
}

// say is code that writes s to the serial port.
func say(s string) (code []byte) {
	code = append(code, 0x66, 0xba, 0xf8, 0x03) // mov dx, 0x3f8
	for _, c := range []byte(s) {
		code = append(code, 0xb0, c, 0xee) // mov al, c; out dx, al
	}
	return code
}

// out16 is code that writes v to a port.
func out16(port, v uint16) []byte {
	return []byte{0x66, 0xba, byte(port), byte(port >> 8), 0x66, 0xb8, byte(v), byte(v >> 8), 0x66, 0xef} // mov dx; mov ax; out dx, ax
}

// powerOff is code that asks for ACPI S5 and halts.
func powerOff() []byte {
	const sleepEnable = 1 << 13
	return append(out16(platform.PMBase+platform.PM1ControlOffset, platform.SleepTypeS5<<10|sleepEnable), 0xf4)
}

// echo is code that waits for a byte on the serial port and sends it back.
func echo() []byte {
	return []byte{
		0x66, 0xba, 0xfd, 0x03, // mov dx, 0x3fd
		0xec,       // in al, dx
		0xa8, 0x01, // test al, 1
		0x74, 0xfb, // jz back to in
		0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
		0xec, // in al, dx
		0xee, // out dx, al
	}
}

// runGuest runs "vm run" with the kernel, what is typed on a pipe, and returns what the guest wrote.
func runGuest(t *testing.T, code []byte, typed string, args ...string) (string, error) {
	t.Helper()
	return runGuestUntil(t, t.Context(), code, typed, func() {}, args...)
}

// runGuestUntil is runGuest with a look at each piece of output.
func runGuestUntil(t *testing.T, ctx context.Context, code []byte, typed string, seen func(), args ...string) (string, error) {
	t.Helper()
	if err := kvm.Check(); err != nil {
		t.Skipf("needs /dev/kvm: %v", err)
	}
	kernel := filepath.Join(t.TempDir(), "kernel")
	if err := os.WriteFile(kernel, assemble(code), 0o600); err != nil {
		t.Fatal(err)
	}
	pipe := func() (r, w *os.File) {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { r.Close(); w.Close() })
		return r, w
	}
	inR, inW := pipe()
	outR, outW := pipe()
	stdin, stdout := os.Stdin, os.Stdout
	os.Stdin, os.Stdout = inR, outW
	defer func() { os.Stdin, os.Stdout = stdin, stdout }()
	io.WriteString(inW, typed)
	inW.Close()
	all := make(chan string)
	go func() {
		var out []byte
		b := make([]byte, 1) // a piece is a byte
		for {
			n, err := outR.Read(b)
			if err != nil {
				all <- string(out)
				return
			}
			seen()
			out = append(out, b[:n]...)
		}
	}()
	cmd := newVMCommand()
	cmd.SetArgs(append([]string{"run", "--kernel", kernel, "--memory", "4M"}, args...))
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	err := cmd.ExecuteContext(ctx)
	outW.Close()
	return <-all, err
}

func TestGuestSpeaksAndPowersOff(t *testing.T) {
	disk := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(disk, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := runGuest(t, append(say("hello\n"), powerOff()...), "", "--disk", disk, "--cpus", "2")
	if err != nil || out != "hello\n" {
		t.Errorf("wrote %q, %v", out, err)
	}
}

func TestGuestReadsWhatIsTyped(t *testing.T) {
	out, err := runGuest(t, append(append(append(say(">"), echo()...), echo()...), powerOff()...), "ab")
	if err != nil || out != ">ab" {
		t.Errorf("wrote %q, %v", out, err)
	}
}

func TestGuestCrashes(t *testing.T) {
	// An exception without an IDT is a triple fault.
	out, err := runGuest(t, append(say("!"), 0x0f, 0x0b), "")
	if err == nil || !strings.Contains(err.Error(), "crashed") || out != "!" {
		t.Errorf("wrote %q, %v", out, err)
	}
}

func TestGuestResets(t *testing.T) {
	reset := []byte{0x66, 0xba, 0xf9, 0x0c, 0xb0, platform.ResetValue, 0xee, 0xf4} // mov dx, 0xcf9; mov al, 6; out dx, al
	if out, err := runGuest(t, append(say("r"), reset...), "", "--no-reboot"); err != nil || out != "r" {
		t.Errorf("with --no-reboot: wrote %q, %v", out, err)
	}
	// Without the flag it boots again, until somebody ends it.
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	boots := 0
	_, err := runGuestUntil(t, ctx, append(say("r"), reset...), "", func() {
		if boots++; boots == 3 {
			cancel()
		}
	})
	if err == nil || !strings.Contains(err.Error(), "signal") || boots < 3 {
		t.Errorf("ended after %d boots: %v", boots, err)
	}
}
