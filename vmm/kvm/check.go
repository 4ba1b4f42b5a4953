package kvm

import (
	"fmt"
	"strings"
)

// Report is what a preflight found out about a host's KVM.
type Report struct {
	APIVersion int
	Missing    []MissingCap // needed capabilities that are not there
	MaxVCPUs   int
	TSCKHz     int  // the host's TSC rate as KVM gives it to guests; 0: unknown
	TSCScaling bool // a guest can have another rate than the host
	SyncRegs   bool // faster pauses
	Sregs2     bool
	XSAVE2     bool
}

// MissingCap is a capability that Pollux can't do without.
type MissingCap struct {
	Name string // as in the kernel's documentation
	Why  string // what Pollux needs it for
	Got  int    // KVM's answer
	Want int    // bits that it lacks; 0: any value
}

// Err is nil where the host can run guests, otherwise it names everything that is wrong at once.
func (r *Report) Err() error {
	var wrong []string
	if r.APIVersion != APIVersion {
		wrong = append(wrong, fmt.Sprintf("API version %d instead of %d", r.APIVersion, APIVersion))
	}
	for _, m := range r.Missing {
		s := fmt.Sprintf("%s (%s)", m.Name, m.Why)
		if m.Got != 0 {
			s = fmt.Sprintf("%s (%s; has %#x, needs %#x)", m.Name, m.Why, m.Got, m.Want)
		}
		wrong = append(wrong, s)
	}
	if wrong == nil {
		return nil
	}
	return fmt.Errorf("this host's KVM lacks %s: use Linux 5.7 or later with kvm_intel or kvm_amd", strings.Join(wrong, ", "))
}

// Probe asks the host's KVM for all that Pollux needs. It fails where /dev/kvm can't be opened;
// what is missing is in the report.
func Probe() (*Report, error) {
	s, err := Open()
	if err != nil {
		return nil, err
	}
	defer s.Close()
	r, err := s.probe()
	if err != nil || r.Err() != nil {
		return r, err
	}
	if r.TSCKHz, err = s.tscKHz(); err != nil {
		return nil, fmt.Errorf("make a first machine: %w", err)
	}
	return r, nil
}

func (s *System) probe() (*Report, error) {
	v, err := s.APIVersion()
	if err != nil {
		return nil, fmt.Errorf("%s does not answer as KVM does (KVM_GET_API_VERSION): %w", Path, err)
	}
	r := &Report{
		APIVersion: v,
		MaxVCPUs:   s.Extension(CapMaxVCPUs),
		TSCScaling: s.Extension(CapTSCControl) != 0,
		SyncRegs:   s.HasSyncRegs(),
		Sregs2:     s.Extension(CapSregs2) != 0,
		XSAVE2:     s.Extension(CapXSAVE2) != 0,
	}
	r.Missing = missing(s.Extension)
	return r, nil
}

// tscKHz asks a machine made for the purpose; only a vCPU knows the rate.
func (s *System) tscKHz() (int, error) {
	vm, err := s.CreateVM()
	if err != nil {
		return 0, err
	}
	defer vm.Close()
	c, err := vm.CreateVCPU(0)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	return c.TSCKHz()
}

// Check is the package's Check on an open /dev/kvm; it makes no machine.
func (s *System) Check() error {
	r, err := s.probe()
	if err != nil {
		return err
	}
	return r.Err()
}

func missing(has func(Cap) int) []MissingCap {
	var m []MissingCap
	for _, n := range needed {
		if got := has(n.cap); got == 0 || got&n.mask != n.mask {
			m = append(m, MissingCap{Name: n.name, Why: n.why, Got: got, Want: n.mask})
		}
	}
	return m
}

// Check says in one error all that keeps this host from running guests, and what to do about it.
func Check() error {
	r, err := Probe()
	if err != nil {
		return err
	}
	return r.Err()
}
