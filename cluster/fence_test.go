package cluster

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pollux-ha/pollux/cluster/config"
	"github.com/pollux-ha/pollux/cluster/pact"
	"github.com/pollux-ha/pollux/console"
)

// fenceable gives m a fence device for another host: the fake agent, whose machine is a directory. It takes effect
// when m's daemon is started again.
func (m *machine) fenceable(host string) (dir string) {
	m.t.Helper()
	path, err := filepath.Abs("../fencing/agent/testdata/fence_fake")
	if err != nil {
		m.t.Fatal(err)
	}
	dir = m.t.TempDir()
	secrets := filepath.Join(dir, "secrets")
	for name, text := range map[string]string{"power": "on\n", "secrets": "password=sesame and more\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			m.t.Fatal(err)
		}
	}
	m.cfg.Fencing.Patience = config.Duration(100 * time.Millisecond)
	m.cfg.Fencing.Hosts = map[string]config.FenceDevice{host: {Agent: path, Parameters: map[string]string{"dir": dir}, SecretsFile: secrets, Timeout: config.Duration(limit)}}
	*m.cfg = m.cfg.WithDefaults()
	if err := m.cfg.Validate(); err != nil {
		m.t.Fatal(err)
	}
	return dir
}

func power(t *testing.T, dir string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "power"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

// report is what m last said of its fencing of a host.
func (m *machine) report(host string) string {
	f, err := m.client.Fencing(m.t.Context())
	if err != nil {
		return err.Error()
	}
	for _, r := range f.Reports {
		if r.Host == host {
			return r.Stage
		}
	}
	return ""
}

// fenceableTrio is a trio with a guest that a runs and b protects, where b can power a off. dir is the power's.
func fenceableTrio(t *testing.T) (a, b *machine, dir string, g *console.Guest) {
	t.Helper()
	a, b, _ = trio(t)
	b.stop()
	dir = b.fenceable("a")
	b.start()
	if _, err := a.client.Create(t.Context(), console.CreateRequest{Name: "g", Spec: spec(), Start: true}); err != nil {
		t.Fatal(err)
	}
	return a, b, dir, b.sees("protected", protectedBy("a", "b"))
}

func TestALostHostIsPoweredOff(t *testing.T) {
	a, b, dir, g := fenceableTrio(t)
	ctx := t.Context()

	// a's process dies, and its daemon says so, before or after the takeover: a is not powered off for that.
	if err := syscall.Kill(process(g, "a").PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	b.sees("b has taken over and is protected by a", protectedBy("b", "a"))
	b.eventually("the fence is not needed", func() bool { return b.report("a") == "not-needed" || b.report("a") == "" })
	if p := power(t, dir); p != "on" {
		t.Errorf("a is %s", p)
	}
	if _, err := b.client.Switchover(ctx, "g", console.SwitchoverRequest{}); err != nil {
		t.Fatal(err)
	}
	g = b.sees("a has it again", protectedBy("a", "b"))

	// An operator may ask, and may not shoot what the cluster counts on.
	if r, err := b.client.TestFence(ctx, console.FenceTestRequest{Host: "a"}); err != nil || r.Power != "on" || r.Error != "" {
		t.Errorf("%+v %v", r, err)
	}
	if _, err := b.client.TestFence(ctx, console.FenceTestRequest{Host: "a", Off: true, Confirm: "a"}); !isCode(err, console.CodeRefused) {
		t.Errorf("a primary was powered off: %v", err)
	}
	if _, err := b.client.TestFence(ctx, console.FenceTestRequest{Host: "a", Off: true, EvenPrimary: true}); !isCode(err, console.CodeNeedsConfirmation) {
		t.Errorf("unconfirmed: %v", err)
	}

	// a is gone with all that it has.
	a.stop()
	if err := syscall.Kill(process(g, "a").PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	b.eventually("a is off", func() bool { return b.report("a") == "off" })
	if p := power(t, dir); p != "off" {
		t.Errorf("a is %s", p)
	}
	b.eventually("a is not kept out any more", func() bool {
		f, err := b.client.Fencing(ctx)
		return err == nil && len(f.KeptOut) == 0
	})
	a.start() // somebody has switched it on
	b.sees("protected by a", protectedBy("b", "a"))
	b.eventually("one fencing, in the event log", func() bool {
		events, err := b.client.Events(ctx, 1000, "g")
		stages := ""
		for _, e := range events {
			if e.Kind == "fence" {
				stages += " " + e.Detail["stage"].(string)
			}
		}
		return err == nil && strings.HasSuffix(stages, "waiting fencing off") && strings.Count(stages, "fencing") == 1
	})
}

// The operator's word that a host is off does not count against a fence agent that says that it is on.
func TestAWordAgainstTheAgents(t *testing.T) {
	a, b, dir, g := fenceableTrio(t)
	ctx := t.Context()
	loseBoth(t, g, a, b)
	order := console.StartRequest{Host: "b", AcceptLoss: "whatever a has", HostsOff: []string{"a"}, Operator: "op", Confirm: "g"}
	if _, err := b.client.Start(ctx, "g", order); !isCode(err, console.CodeRefused) || !strings.Contains(err.Error(), "says that a is on") {
		t.Errorf("a word against the agent's: %v", err)
	}
	if r, err := b.client.TestFence(ctx, console.FenceTestRequest{Host: "a", Off: true, EvenPrimary: true, Confirm: "a", Operator: "op"}); err != nil || r.Power != "off" || power(t, dir) != "off" {
		t.Fatalf("%+v %v", r, err)
	}
	if _, err := b.client.Start(ctx, "g", order); err != nil {
		t.Fatal(err)
	}
	b.sees("b runs it from its own disk", func(g *console.Guest) bool { return g.Mode == pact.Solo && g.Primary == "b" })
}

func TestAHostThatFailsAgainAndAgain(t *testing.T) {
	a, b, w := trio(t)
	ctx := t.Context()
	for _, m := range []*machine{b, w} { // w sees it too
		m.stop()
		m.cfg.Flapping = config.Flapping{Faults: 2, Within: config.Duration(time.Hour)}
		m.start()
	}
	if _, err := a.client.ResetMember(ctx, "a", console.ResetMemberRequest{}); !isCode(err, console.CodeRefused) {
		t.Errorf("reset without need: %v", err)
	}
	if _, err := a.client.Create(ctx, console.CreateRequest{Name: "g", Spec: spec(), Start: true}); err != nil {
		t.Fatal(err)
	}
	g := b.sees("protected", protectedBy("a", "b"))
	for i := range 2 {
		if err := syscall.Kill(process(g, "a").PID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if i == 1 {
			break
		}
		b.sees("b has taken over and is protected by a", protectedBy("b", "a"))
		if _, err := b.client.Switchover(ctx, "g", console.SwitchoverRequest{}); err != nil {
			t.Fatal(err)
		}
		g = b.sees("a has it again", protectedBy("a", "b"))
	}
	for _, m := range []*machine{a, b, w} {
		m.eventually("a is kept out, and that is an alarm", func() bool {
			s, err := m.client.Status(ctx)
			f, ferr := m.client.Fencing(ctx)
			return err == nil && ferr == nil && len(f.KeptOut) == 1 && f.KeptOut[0].Host == "a" && strings.Contains(strings.Join(s.Alarms, "\n"), "member reset a")
		})
	}
	b.sees("b alone", func(g *console.Guest) bool {
		if protectedBy("b", "a")(g) { // it was faster; what it is entitled to it keeps, once
			_ = syscall.Kill(process(g, "a").PID, syscall.SIGKILL)
		}
		return g.Mode == pact.Solo && g.Primary == "b" && len(g.Processes) == 1
	})
	if _, err := b.client.Protect(ctx, "g", console.ProtectRequest{}); !isCode(err, console.CodeRefused) || !strings.Contains(err.Error(), "member reset a") {
		t.Errorf("protect: %v", err)
	}
	if k, err := w.client.ResetMember(ctx, "a", console.ResetMemberRequest{Operator: "op", DryRun: true}); err != nil || len(k) != 1 {
		t.Errorf("dry run: %v %v", k, err)
	}
	if _, err := w.client.ResetMember(ctx, "a", console.ResetMemberRequest{Operator: "op"}); err != nil {
		t.Fatal(err)
	}
	b.sees("protected by a", protectedBy("b", "a"))
}

func TestADaemonGivesItsGuestsAwayBeforeItsEnd(t *testing.T) {
	a, b, _ := trio(t)
	ctx := t.Context()
	for _, m := range []*machine{a, b} {
		m.stop()
		m.cfg.Shutdown = config.Shutdown{Guests: config.ShutdownSwitchover, Within: config.Duration(limit)}
		m.start()
	}
	if _, err := a.client.Create(ctx, console.CreateRequest{Name: "g", Spec: spec(), Start: true}); err != nil {
		t.Fatal(err)
	}
	g := a.sees("protected", protectedBy("a", "b")) // by its own log: it gives away what that says
	a.stop()
	b.sees("the roles are exchanged", func(is *console.Guest) bool {
		return is.Primary == "b" && is.Mode == pact.Protected && is.Assignment.Replica == g.Assignment.Primary
	})
	a.start()
	b.sees("as it was, the other way round", protectedBy("b", "a"))
	// A guest that nobody else can run stays, and the daemon ends nevertheless.
	if err := syscall.Kill(process(g, "a").PID, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	a.stop()
	b.stop()
	if err := syscall.Kill(process(g, "b").PID, 0); err != nil {
		t.Errorf("the guest went with its daemon: %v", err)
	}
}
