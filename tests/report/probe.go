package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"github.com/pollux-ha/pollux/vmm/kvm"
)

// probe looks for something that tests need.
type probe struct {
	name  string
	needs []string // what a skipped test calls it in its reason
	found error    // nil: it is here
}

func (p probe) speaksOf(reason string) bool {
	for _, n := range p.needs {
		if strings.Contains(reason, "needs "+n) {
			return true
		}
	}
	return false
}

func probes() []probe {
	return []probe{
		// Every guest of the tests (the ledger, and some of a few instructions) runs on any KVM that
		// passes the preflight; stock kernels are the lab's business.
		{"kvm-own-guests", []string{"/dev/kvm", "a KVM that Pollux can use"}, kvm.Check()},
		{"root", []string{"root"}, root()},
		{"tun", []string{"/dev/net/tun"}, errors.Join(root(), usable("/dev/net/tun"))},
		{"fuse", []string{"fuse"}, errors.Join(root(), usable("/dev/fuse"))},
		{"build", []string{"bin/pollux"}, usable("bin/pollux")},
		{"redis-tools", []string{"redis-benchmark", "redis-cli"}, command("redis-benchmark")},
	}
}

func root() error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("runs as user %d", os.Geteuid())
	}
	return nil
}

func usable(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return f.Close()
}

func command(name string) error {
	_, err := exec.LookPath(name)
	return err
}
