package main

import (
	"errors"
	"strings"
	"testing"

	"github.com/pollux-ha/pollux/console"
	"github.com/pollux-ha/pollux/vmm/cpu"
)

func TestCPUTable(t *testing.T) {
	var b strings.Builder
	cpuTable(&b, map[string]*console.CPU{
		"b": {Vendor: cpu.AMD, Family: 0x17, Model: 0x31, Brand: "Old", Level: "x86-64-v3", Features: []string{"fpu", "avx2"}, XCR0: "0x7", PhysBits: 48, TSCKHz: 2794750},
		"a": {Vendor: cpu.AMD, Family: 0x19, Model: 0x11, Stepping: 1, Brand: "New", Level: "x86-64-v4", Features: []string{"fpu", "avx2", "avx512f"}, XCR0: "0xe7", PhysBits: 52, TSCKHz: 3245120, TSCScaling: true},
		"c": {Problem: "has not told"},
	})
	got := b.String()
	for _, want := range []string{"3245120, scales", "0x17/0x31/0", "has not told", "2 features are common to all", "b lacks avx512f"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is missing in\n%s", want, got)
		}
	}
	if strings.Contains(got, "a lacks") || strings.Contains(got, "c lacks") || strings.Index(got, "\na") > strings.Index(got, "\nb") {
		t.Errorf("\n%s", got)
	}
	b.Reset()
	cpuTable(&b, map[string]*console.CPU{"c": {Problem: "has not told"}})
	if strings.Contains(b.String(), "common") {
		t.Errorf("\n%s", b.String())
	}
}

func TestVMRunCPU(t *testing.T) {
	if _, err := (vmOptions{cpu: "i486"}).model(); err == nil || !strings.Contains(err.Error(), "x86-64-v3") {
		t.Errorf("an unknown CPU: %v", err)
	}
	for _, all := range []string{"", "host", "pair"} {
		if m, err := (vmOptions{cpu: all}).model(); m != nil || err != nil {
			t.Errorf("%q: %v %v", all, m, err)
		}
	}
	// Whatever this machine has: a level that it reaches gives a model of it, another one is refused.
	m, err := (vmOptions{cpu: "x86-64-v2"}).model()
	switch {
	case err == nil && m.Features.Level() != 2:
		t.Errorf("a CPU of %s", cpu.LevelName(m.Features.Level()))
	case err != nil && !errors.Is(err, cpu.ErrRefused) && !strings.Contains(err.Error(), "/dev/kvm") && !strings.Contains(err.Error(), "KVM"):
		t.Error(err)
	}
}
