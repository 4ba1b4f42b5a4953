package vmm

import "github.com/pollux-ha/pollux/vmm/cpu"

// MSRs with a treatment of their own (Intel SDM volume 4; AMD APM volume 2, appendix A). Which others are
// a part of a guest's state says package cpu.
const (
	msrTSC         = cpu.MSRTSC
	msrTSCAdjust   = cpu.MSRTSCAdjust
	msrTSCDeadline = cpu.MSRTSCDeadline
)
