package link

import (
	"encoding/binary"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// pair is a Unix socket's two ends.
func pair(t *testing.T) (a, b net.Conn) {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if a, err = net.Dial("unix", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if b, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

func openTemp(t *testing.T) *os.File {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestFilesTravelWithTheirMessages(t *testing.T) {
	a, b := pair(t)
	daemon, process := NewConn(a), NewConn(b)
	process.TakeFiles()
	f := openTemp(t)
	sent := make(chan error, 1)
	go func() {
		for _, m := range []Message{
			{Order: &Order{Kind: OrderReset}},
			{Order: &Order{Kind: OrderDump}, File: f},
			{Order: &Order{Kind: OrderKill}},
		} {
			if err := daemon.Send(m); err != nil {
				sent <- err
				return
			}
		}
		sent <- nil
	}()
	for _, want := range []string{OrderReset, OrderDump, OrderKill} {
		m, err := process.Receive()
		if err != nil || m.Order == nil || m.Order.Kind != want {
			t.Fatalf("%+v, %v, want %s", m.Order, err, want)
		}
		if (m.File != nil) != (want == OrderDump) {
			t.Fatalf("%s: file %v", want, m.File)
		}
		if m.File == nil {
			continue
		}
		if _, err := m.File.WriteString("dump"); err != nil {
			t.Error(err)
		}
		if flags, err := unix.FcntlInt(m.File.Fd(), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("a program that the process started would have the file: %#x, %v", flags, err)
		}
		m.File.Close()
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(f.Name()); err != nil || string(got) != "dump" {
		t.Errorf("%q, %v", got, err)
	}
}

// Who does not expect files gets none, and loses no descriptors to them.
func TestFilesThatNobodyTakes(t *testing.T) {
	a, b := pair(t)
	process, daemon := NewConn(a), NewConn(b)
	before := descriptors(t)
	for range 50 {
		if err := process.Send(Message{Order: &Order{Kind: OrderReset}, File: openTemp(t)}); err != nil {
			t.Fatal(err)
		}
		if m, err := daemon.Receive(); err != nil || m.File != nil {
			t.Fatalf("%+v, %v", m, err)
		}
	}
	if now := descriptors(t); now > before+60 { // those of this test's own files at most
		t.Errorf("%d descriptors, %d before", now, before)
	}
}

// Nor does a message that can't be understood leave its file behind.
func TestFileOfNonsense(t *testing.T) {
	a, b := pair(t)
	process := NewConn(b)
	process.TakeFiles()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	frame := append(binary.LittleEndian.AppendUint32(nil, 3), "{]\n"...)
	if _, _, err := a.(*net.UnixConn).WriteMsgUnix(frame, unix.UnixRights(int(w.Fd())), nil); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if m, err := process.Receive(); err == nil || m.File != nil {
		t.Errorf("%+v, %v", m, err)
	}
	// The pipe's last writer is gone.
	if n, err := r.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("%d, %v", n, err)
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skipf("needs /proc: %v", err)
	}
	return len(entries)
}
