package lab

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestHost(t *testing.T) {
	note := filepath.Join(t.TempDir(), "note")
	if err := os.WriteFile(note, []byte("carried over"), 0o640); err != nil {
		t.Fatal(err)
	}
	l := New(t, Options{Data: map[string]string{"some/note": note}})
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	if err := l.PowerOn(ctx); err != nil {
		t.Fatal(err)
	}
	a := l.Host("a")
	run := func(h *Host, argv ...string) string {
		t.Helper()
		began := time.Now()
		out, err := h.Exec(ctx, argv...)
		if err != nil {
			t.Error(err)
		}
		t.Logf("%s: %s: %.0f ms", h.Name, strings.Join(argv, " "), time.Since(began).Seconds()*1000)
		return out
	}
	if got := run(a, "cat", "/data/some/note"); got != "carried over" {
		t.Errorf("the data disk has %q", got)
	}
	run(a, "test", "-c", "/dev/kvm")
	run(a, "ping", "-c", "1", "-W", "5", Replication.Address(l.Host("b").Number).String())
	t.Log(run(a, "pollux", "version"))

	// What was flushed is there after a power cut; memory is not.
	run(a, "sh", "-c", "echo durable >/data/kept; sync; echo gone >/kept")
	if err := a.PowerCut(); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Exec(ctx, "true"); err == nil {
		t.Error("a host without power runs programs")
	}
	if err := a.PowerOn(ctx); err != nil {
		t.Fatal(err)
	}
	if got := run(a, "sh", "-c", "cat /data/kept; test ! -e /kept"); got != "durable\n" {
		t.Errorf("after a power cut the disk has %q", got)
	}

	// Files, both ways, with their permissions.
	if err := a.Put(ctx, "/data/x/put", note); err != nil {
		t.Fatal(err)
	}
	if got := run(a, "stat", "-c", "%a", "/data/x/put"); got != "640\n" {
		t.Errorf("the file has the permissions %s", got)
	}
	back := filepath.Join(t.TempDir(), "back")
	if err := a.Get(ctx, "/data/x/put", back); err != nil {
		t.Fatal(err)
	}
	if b, _ := os.ReadFile(back); string(b) != "carried over" {
		t.Errorf("the file came back as %q", b)
	}

	// A client reaches hosts, through cables that can be cut.
	c := l.Client("client")
	ping := func() error {
		out, err := c.Command(ctx, "busybox", "ping", "-c", "1", "-W", "2", Control.Address(a.Number).String()).CombinedOutput()
		if err != nil {
			t.Logf("%s", out)
		}
		return err
	}
	if err := ping(); err != nil {
		t.Errorf("a client can't reach host a: %v", err)
	}
	if err := a.Cut(Control); err != nil {
		t.Fatal(err)
	}
	if ping() == nil {
		t.Error("a cut cable carries frames")
	}
	if err := a.Mend(Control); err != nil {
		t.Fatal(err)
	}
	if err := ping(); err != nil {
		t.Errorf("a mended cable carries none: %v", err)
	}
	if err := a.PowerOff(ctx); err != nil {
		t.Error(err)
	}
}
