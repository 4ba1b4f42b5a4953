package console

import (
	"fmt"
	"net/http"

	"github.com/pollux-ha/pollux/cluster/pact"
	"github.com/pollux-ha/pollux/vmm/cpu"
)

// CPU is a processor: what a host can give to guests, or what a guest sees.
type CPU struct {
	Policy   string   `json:"policy,omitempty"` // of a guest: "pair", "host", "x86-64-v3"
	Vendor   string   `json:"vendor"`
	Family   int      `json:"family"`
	Model    int      `json:"model"`
	Stepping int      `json:"stepping"`
	Brand    string   `json:"brand"`
	Level    string   `json:"level"`    // the highest x86-64 micro-architecture level that the features reach
	Features []string `json:"features"` // as Linux names them
	XCR0     string   `json:"xcr0"`     // extended state, hexadecimal
	PhysBits int      `json:"phys_bits"`
	TSCKHz   int      `json:"tsc_khz"`
	// Of a host:
	TSCScaling bool   `json:"tsc_scaling,omitempty"`
	MSRList    string `json:"msr_list,omitempty"` // a digest of the registers that its KVM lists
	Kernel     string `json:"kernel,omitempty"`
	Microcode  string `json:"microcode,omitempty"`
	// Problem says why nothing is known of it.
	Problem string `json:"problem,omitempty"`
}

func asCPU(m *cpu.Model) *CPU {
	return &CPU{
		Vendor: m.Vendor, Family: m.Family(), Model: m.ModelNumber(), Stepping: m.Stepping(), Brand: m.Brand,
		Level: cpu.LevelName(m.Features.Level()), Features: m.Features.Names(), XCR0: fmt.Sprintf("%#x", m.XCR0()),
		PhysBits: m.PhysBits, TSCKHz: m.TSCKHz,
	}
}

// guestCPU is what a guest sees; nil where it sees whatever its host has.
func guestCPU(s pact.CPUSpec) *CPU {
	if s.Model == "" {
		return nil
	}
	m, err := cpu.ParseModel(s.Model)
	if err != nil {
		return &CPU{Policy: s.Policy, Problem: err.Error()}
	}
	c := asCPU(&m)
	c.Policy = s.Policy
	return c
}

// hostCPU is what a member can give to guests; nil for one that runs none.
func (s *Server) hostCPU(name, role string) *CPU {
	if role != "host" {
		return nil
	}
	h, err := s.d.HostCPU(name)
	if err != nil {
		return &CPU{Problem: err.Error()}
	}
	c := asCPU(&h.Model)
	c.TSCScaling, c.MSRList, c.Kernel, c.Microcode = h.TSCScaling, fmt.Sprintf("%08x", h.MSRList), h.Kernel, h.Microcode
	return c
}

// SetCPURequest chooses a stopped guest's CPU anew: POST /api/v1/guests/{name}/cpu.
type SetCPURequest struct {
	Policy   string `json:"policy,omitempty"` // empty: the guest's own, computed again
	Operator string `json:"operator,omitempty"`
	DryRun   bool   `json:"dry_run,omitempty"`
}

func (s *Server) setCPU(r *http.Request) (any, error) {
	q, err := read[SetCPURequest](r)
	if err != nil {
		return nil, err
	}
	name := r.PathValue("name")
	if _, err := cpu.ParsePolicy(q.Policy); err != nil {
		return nil, Errorf(CodeInvalid, "%v", err)
	}
	if q.DryRun {
		a, err := s.d.CheckSetCPU(name, q.Policy)
		if err != nil {
			return nil, err
		}
		return asGuest(a, nil, nil), nil
	}
	if err := s.d.SetCPU(r.Context(), name, q.Policy, q.Operator); err != nil {
		return nil, err
	}
	return s.one(r.Context(), name)
}

// chooseCPU decides the CPU of a guest that is to be created.
func (s *Server) chooseCPU(spec *pact.Spec) error {
	if spec.CPU.Model != "" {
		return Errorf(CodeInvalid, "spec.cpu.model is computed from the guest's hosts; give spec.cpu.policy")
	}
	if _, err := cpu.ParsePolicy(spec.CPU.Policy); err != nil {
		return Errorf(CodeInvalid, "%v", err)
	}
	var err error
	spec.CPU, err = s.d.ChooseCPU(spec.CPU.Policy, spec.Hosts)
	return err
}

// unfitHosts are alarms: hosts of a guest that can't run it.
func (s *Server) unfitHosts(a pact.Assignment) (alarms []string) {
	for _, h := range a.Spec.Hosts {
		if why := s.d.Unfit(a, h); why != "" {
			alarms = append(alarms, fmt.Sprintf("guest %s: %s", a.Guest, why))
		}
	}
	return alarms
}
