package kvm

import "fmt"

// Capabilities of events and of machine checks.
const (
	CapGetMSRFeatures   Cap = 153
	CapExceptionPayload Cap = 164
	CapTripleFaultEvent Cap = 218
)

// mcgCTL is MCG_CTL_P: the machine check architecture has a control register (Intel SDM volume 3, 16.3).
const mcgCTL = 1 << 8

// FeatureMSR reads an MSR that describes what KVM can give to guests (api.rst, 4.18 on the system's
// descriptor). ok is false where there is none.
func (s *System) FeatureMSR(index uint32) (value uint64, ok bool) {
	m := &MSRs{N: 1}
	m.Entries[0].Index = index
	n, err := ioctlPtr(s.fd, ioGetMSRs, m)
	return m.Entries[0].Value, err == nil && n == 1
}

// SetUpMCE gives the vCPU so many machine check banks (api.rst, 4.104).
func (c *VCPU) SetUpMCE(banks int) error {
	v := uint64(banks) | mcgCTL
	if _, err := ioctlPtr(c.fd, ioSetUpMCE, &v); err != nil {
		return fmt.Errorf("KVM_X86_SETUP_MCE of vCPU %d with %d banks: %w", c.id, banks, err)
	}
	return nil
}
