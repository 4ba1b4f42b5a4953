package vmm

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/sys/unix"
)

func TestDiskErrorsAreLoggedOnceAKind(t *testing.T) {
	core, logs := observer.New(zap.ErrorLevel)
	told := 0
	w := &diskWatch{log: zap.New(core), tell: func(e DiskError) bool { told++; return e.Op == "write" }}
	for range 3 {
		for _, e := range []DiskError{
			{Op: "write", Err: fmt.Errorf("write: %w", unix.ENOSPC)}, {Op: "write", Err: unix.EIO},
			{Op: "read", Err: unix.EIO}, {Op: "flush", Err: errors.New("gone")},
		} {
			if w.failed(e) != (e.Op == "write") {
				t.Errorf("%v: held otherwise than it was said", e)
			}
		}
	}
	if logs.Len() != 4 || told != 12 {
		t.Errorf("%d lines, %d calls", logs.Len(), told)
	}
	for i, want := range []string{"make room", "kernel's log", "kernel's log", "durable"} {
		if got := fmt.Sprint(logs.All()[i].ContextMap()["advice"]); !strings.Contains(got, want) {
			t.Errorf("line %d advises %q", i, got)
		}
	}
}
