package kvm

import (
	"strings"
	"testing"
)

func TestReportNamesEverythingAtOnce(t *testing.T) {
	r := &Report{APIVersion: 11, Missing: missing(func(c Cap) int {
		switch c {
		case CapSignalMSI:
			return 0
		case CapManualDirtyLog:
			return DirtyLogManual
		}
		return 1
	})}
	err := r.Err()
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{"API version 11", "KVM_CAP_SIGNAL_MSI", "KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2", "has 0x1, needs 0x3"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is missing in: %v", want, err)
		}
	}
}

func TestCheckThisHost(t *testing.T) {
	if s, err := Open(); err != nil {
		t.Skipf("needs /dev/kvm: %v", err)
	} else {
		s.Close()
	}
	r, err := Probe()
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Err(); err != nil {
		t.Skipf("needs a KVM that Pollux can use: %v", err)
	}
	if r.TSCKHz == 0 || r.MaxVCPUs == 0 {
		t.Errorf("report lacks figures: %+v", r)
	}
}
