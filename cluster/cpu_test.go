package cluster

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/pollux-ha/pollux/cluster/config"
	"github.com/pollux-ha/pollux/cluster/pki"
	"github.com/pollux-ha/pollux/console"
	"github.com/pollux-ha/pollux/vmm/cpu"
)

// processor is a host's CPU with some bits of leaf 7 EBX: AVX2 is 1<<5, BMI1 1<<3, SMEP 1<<7.
func processor(t *testing.T, leaf7 uint32) func() (cpu.Host, error) {
	t.Helper()
	var msrs cpu.MSRSet
	for _, r := range cpu.MSRs {
		msrs.Add(r.Index)
	}
	h, err := cpu.FromLeaves([]cpu.Leaf{
		{Function: 0, EAX: 0xd, EBX: 0x756e6547, ECX: 0x6c65746e, EDX: 0x49656e69},
		{Function: 1, EAX: 0x50654, ECX: 0x7ffefbff, EDX: 0xbfebfbff},
		{Function: 7, Indexed: true, EBX: leaf7},
		{Function: 0xd, Indexed: true, EAX: 7, EBX: 0x340, ECX: 0x340},
		{Function: 0xd, Index: 2, Indexed: true, EAX: 0x100, EBX: 0x240},
		{Function: 0x8000_0001, ECX: 0x121, EDX: 0x2c100800},
		{Function: 0x8000_0008, EAX: 0x302e},
	}, cpu.Facts{Brand: "Test CPU", TSCKHz: 2_000_000, MSRs: msrs})
	if err != nil {
		t.Fatal(err)
	}
	return func() (cpu.Host, error) { return h, nil }
}

// with gives a machine's daemon a CPU from its next start on.
func (m *machine) with(probe func() (cpu.Host, error)) {
	m.run = func(ctx context.Context, cfg *config.Config) error { return run(ctx, cfg, pki.RoleHost, probe) }
}

const (
	bmi1 = 1 << 3
	avx2 = 1 << 5
	smep = 1 << 7
)

// A guest's CPU is what its hosts have when it is created, and stays. A host that comes back with another
// processor is not made its replica, and says why.
func TestACPUForBothHosts(t *testing.T) {
	a, b, w := trio(t)
	ctx := t.Context()
	restart := func(m *machine, probe func() (cpu.Host, error)) {
		m.stop()
		m.with(probe)
		m.start()
		text := ""
		if h, err := probe(); err == nil {
			text = strings.Join(h.Features.Names(), " ")
		}
		for _, n := range []*machine{a, b, w} {
			n.eventually(n.cfg.Name+" knows of the CPU of "+m.cfg.Name, func() bool {
				s, err := n.client.Status(ctx)
				if err != nil {
					return false
				}
				for _, o := range s.Members {
					if o.Name == m.cfg.Name {
						return o.CPU != nil && strings.Join(o.CPU.Features, " ") == text
					}
				}
				return false
			})
		}
	}
	restart(a, processor(t, bmi1|avx2|smep))
	restart(b, processor(t, avx2|smep))

	s := spec()
	s.CPU.Policy = "host"
	if _, err := a.client.Create(ctx, console.CreateRequest{Name: "h", Spec: s}); !isCode(err, console.CodeRefused) || !strings.Contains(err.Error(), "b lacks the CPU features bmi1; --cpu pair") {
		t.Errorf("a guest that b can't run: %v", err)
	}
	s.CPU.Policy = "x86-64-v3"
	if _, err := w.client.Create(ctx, console.CreateRequest{Name: "h", Spec: s, DryRun: true}); !isCode(err, console.CodeRefused) || !strings.Contains(err.Error(), "it lacks") {
		t.Errorf("a level that the hosts don't reach: %v", err)
	}
	s.CPU.Policy = "i486"
	if _, err := a.client.Create(ctx, console.CreateRequest{Name: "h", Spec: s}); !isCode(err, console.CodeInvalid) {
		t.Errorf("an unknown policy: %v", err)
	}
	s.CPU.Policy, s.CPU.Model = "", "mine"
	if _, err := a.client.Create(ctx, console.CreateRequest{Name: "h", Spec: s}); !isCode(err, console.CodeInvalid) {
		t.Errorf("a model of one's own: %v", err)
	}

	g, err := w.client.Create(ctx, console.CreateRequest{Name: "g", Spec: spec(), Start: true})
	if err != nil {
		t.Fatal(err)
	}
	if g.CPU == nil || g.CPU.Policy != "pair" || !has(g.CPU, "avx2") || !has(g.CPU, "smep") || has(g.CPU, "bmi1") {
		t.Fatalf("the guest's CPU: %+v", g.CPU)
	}
	model := a.sees("protected", protectedBy("a", "b")).Spec.CPU.Model

	// b comes back as another machine; its replica is gone, and it is given no other.
	killAll(b)
	restart(b, processor(t, smep))
	a.sees("solo, and b says why", func(g *console.Guest) bool {
		return g.State == "solo" && len(g.Processes) == 1 && strings.Contains(g.Detail+notes(a), "b can't run the guest: it lacks the CPU features avx2")
	})
	if _, err := a.client.Protect(ctx, "g", console.ProtectRequest{}); !isCode(err, console.CodeRefused) || !strings.Contains(err.Error(), "avx2") || !strings.Contains(err.Error(), "guest cpu g") {
		t.Errorf("protect: %v", err)
	}
	b.eventually("it is in b's event log", func() bool {
		events, err := b.client.Events(ctx, 200, "g")
		if err != nil {
			return false
		}
		for _, e := range events {
			if why, _ := e.Detail["reason"].(string); e.Kind == "fault" && strings.Contains(why, "lacks the CPU features avx2") {
				return true
			}
		}
		return false
	})

	// Another CPU only by order, and only while the guest is stopped.
	if _, err := a.client.SetCPU(ctx, "g", console.SetCPURequest{}); !isCode(err, console.CodeRefused) || !strings.Contains(err.Error(), "stop it first") {
		t.Errorf("another CPU under a running guest: %v", err)
	}
	if _, err := a.client.Stop(ctx, "g", console.StopRequest{}); err != nil {
		t.Fatal(err)
	}
	if _, err := a.client.SetCPU(ctx, "g", console.SetCPURequest{Policy: "host"}); !isCode(err, console.CodeRefused) {
		t.Errorf("a CPU that b does not have: %v", err)
	}
	if g, err = a.client.SetCPU(ctx, "g", console.SetCPURequest{DryRun: true}); err != nil || has(g.CPU, "avx2") {
		t.Errorf("what would be: %+v %v", g, err)
	}
	if g, err = w.client.Guest(ctx, "g"); err != nil || g.Spec.CPU.Model != model {
		t.Errorf("a dry run changed the CPU: %v", err)
	}
	if g, err = a.client.SetCPU(ctx, "g", console.SetCPURequest{Operator: "op"}); err != nil || g.CPU == nil || has(g.CPU, "avx2") || !has(g.CPU, "smep") {
		t.Fatalf("the new CPU: %+v %v", g, err)
	}
	if _, err := a.client.Start(ctx, "g", console.StartRequest{}); err != nil {
		t.Fatal(err)
	}
	a.sees("protected again", protectedBy("a", "b"))

	// A host that knows nothing of its CPU is no host for a guest.
	killAll(b)
	restart(b, func() (cpu.Host, error) { return cpu.Host{}, errors.New("no KVM here") })
	if _, err := a.client.Create(ctx, console.CreateRequest{Name: "h", Spec: spec()}); !isCode(err, console.CodeRefused) || !strings.Contains(err.Error(), "b has not told what its CPU can do") {
		t.Errorf("a host without KVM: %v", err)
	}
}

func has(c *console.CPU, feature string) bool {
	for _, f := range c.Features {
		if f == feature {
			return true
		}
	}
	return false
}

// notes are the alarms that m's daemon knows of.
func notes(m *machine) string {
	s, err := m.client.Status(m.t.Context())
	if err != nil {
		return ""
	}
	return strings.Join(s.Alarms, "\n")
}
