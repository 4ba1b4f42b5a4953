package virtio

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"

	"github.com/pollux-ha/pollux/vmm/virtio/virtiotest"
)

// ports plays Linux's virtio_console with several ports.
type ports struct {
	t    *testing.T
	d    *virtiotest.Driver
	bufs []uint64 // of the control receive queue, by descriptor
}

func newPorts(t *testing.T, r *rig) *ports {
	p := &ports{t: t, d: virtiotest.Find(t, r.Machine, r.console.Slot(), freeRAM)}
	p.d.EnableMSIX()
	p.d.Start(t, consoleMultiport|virtiotest.EventIdx)
	for range 16 {
		p.offer()
	}
	return p
}

func (p *ports) offer() {
	at := p.d.Alloc(64)
	head := p.d.Queues[consoleControlRX].Add(virtiotest.Desc{Addr: at, Len: 64, Flags: writable})
	for int(head) >= len(p.bufs) {
		p.bufs = append(p.bufs, 0)
	}
	p.bufs[head] = at
}

// send sends a control message.
func (p *ports) send(id uint32, event, value uint16) {
	m := binary.LittleEndian.AppendUint32(nil, id)
	m = binary.LittleEndian.AppendUint16(m, event)
	m = binary.LittleEndian.AppendUint16(m, value)
	q := p.d.Queues[consoleControlTX]
	q.Add(virtiotest.Desc{Addr: p.d.Put(m), Len: uint32(len(m))})
	q.Kick()
	q.Take()
}

// heard returns the control messages that have come: "id event value name".
func (p *ports) heard() (out []string) {
	events := map[uint16]string{controlAdd: "add", controlConsole: "console", controlOpen: "open", controlName: "name"}
	for _, u := range p.d.Queues[consoleControlRX].Take() {
		m := p.d.Get(p.bufs[u.ID], uint64(u.Len))
		le := binary.LittleEndian
		s := []string{string('0' + rune(le.Uint32(m))), events[le.Uint16(m[4:])]}
		if le.Uint16(m[6:]) != 1 {
			s = append(s, "off")
		}
		if len(m) > controlSize {
			s = append(s, string(m[controlSize:]))
		}
		out = append(out, strings.Join(s, " "))
	}
	return out
}

func (p *ports) expect(want ...string) {
	p.t.Helper()
	if got := p.heard(); strings.Join(got, ", ") != strings.Join(want, ", ") {
		p.t.Fatalf("heard %q, want %q", got, want)
	}
}

func TestAgentPort(t *testing.T) {
	r := newRig(t)
	r.activate(t)
	p := newPorts(t, r)
	if r.Load(p.d.Device+4, 4) != portCount {
		t.Fatalf("%d ports", r.Load(p.d.Device+4, 4))
	}
	p.send(0, controlReady, 1)
	p.expect("0 add", "1 add")
	p.send(0, controlPort, 1)
	p.expect("0 console", "0 open")
	p.send(1, controlPort, 1)
	p.expect("1 name "+AgentPort, "1 open")

	agent := func(r *rig, s string) (n int, open bool) {
		r.Do(func() { n, open = r.console.AgentInput([]byte(s)), r.console.AgentOpen() })
		return n, open
	}
	if n, open := agent(r, "nobody"); n != 0 || open {
		t.Fatalf("%d bytes taken by an agent that does not run", n)
	}
	p.send(1, controlOpen, 1)
	in, out := p.d.Queues[consoleAgentRX], p.d.Queues[consoleAgentTX]
	buf := p.d.Alloc(64)
	in.Add(virtiotest.Desc{Addr: buf, Len: 64, Flags: writable})
	in.Kick()
	if n, open := agent(r, "ping\n"); n != 5 || !open {
		t.Fatalf("%d bytes taken, open %v", n, open)
	}
	if used := in.Take(); len(used) != 1 || string(p.d.Get(buf, uint64(used[0].Len))) != "ping\n" {
		t.Fatalf("used %v", used)
	}
	out.Add(virtiotest.Desc{Addr: p.d.Put([]byte("pong")), Len: 4})
	out.Kick()
	if r.AgentText.String() != "pong" || r.Text.Len() != 0 {
		t.Fatalf("agent %q, console %q", &r.AgentText, &r.Text)
	}
	// The console is another port.
	tx := p.d.Queues[consoleTX]
	tx.Add(virtiotest.Desc{Addr: p.d.Put([]byte("login:")), Len: 6})
	tx.Kick()
	if r.Text.String() != "login:" {
		t.Fatalf("console %q", &r.Text)
	}

	// A takeover: the agent stays, and what it has not read yet.
	agent(r, "late")
	to := r.move(t)
	p.d = p.d.On(to.Machine)
	to.activate(t)
	in = p.d.Queues[consoleAgentRX]
	in.Add(virtiotest.Desc{Addr: buf, Len: 64, Flags: writable})
	in.Kick()
	if used := in.Take(); len(used) != 1 || string(p.d.Get(buf, uint64(used[0].Len))) != "late" {
		t.Fatalf("used %v after a takeover", used)
	}
	// The agent ends with a command unread: it is not for its successor.
	agent(to, "old")
	p.send(1, controlOpen, 0)
	if n, open := agent(to, "x"); n != 0 || open {
		t.Fatal("an agent that has ended takes input")
	}
	p.send(1, controlOpen, 1)
	in.Add(virtiotest.Desc{Addr: buf, Len: 64, Flags: writable})
	in.Kick()
	if used := in.Take(); len(used) != 0 {
		t.Fatalf("used %v: a successor reads what was its predecessor's", used)
	}
}

// TestControlMessagesWait: a driver asks for more than it makes room for, and a takeover comes between.
func TestControlMessagesWait(t *testing.T) {
	r := newRig(t)
	r.activate(t)
	p := &ports{t: t, d: virtiotest.Find(t, r.Machine, r.console.Slot(), freeRAM)}
	p.d.Start(t, consoleMultiport)
	for range 20 {
		p.send(0, controlReady, 1)
		p.send(0, controlPort, 1)
		p.send(1, controlPort, 1)
		p.send(portCount, controlPort, 1) // no such port
		p.send(0xffff_ffff, controlOpen, 1)
	}
	p.expect()
	to := r.move(t)
	p.d = p.d.On(to.Machine)
	to.activate(t)
	p.offer()
	p.d.Queues[consoleControlRX].Kick()
	p.expect("0 add")
	for range 16 {
		p.offer()
	}
	p.d.Queues[consoleControlRX].Kick()
	p.expect("1 add", "0 console", "1 name "+AgentPort, "0 open", "1 open")

	// A driver that knows of one port only is told nothing.
	to.Do(func() { to.console.resetDevice() })
	p.d.Start(t, 0)
	p.send(0, controlReady, 1)
	p.offer()
	p.d.Queues[consoleControlRX].Kick()
	p.expect()
}

func TestConsoleRefusesBadState(t *testing.T) {
	r := newRig(t)
	state := r.Save(r.console)
	bad := bytes.Clone(state)
	bad[len(bad)-1] = 0x80
	if r.Restore(r.console, bad) == nil {
		t.Error("unknown messages were taken")
	}
	if err := r.Restore(r.console, state); err != nil {
		t.Error(err)
	}
}
