package vmm

import "errors"

// ErrNoAgent says that no agent in the guest listens.
var ErrNoAgent = errors.New("no agent runs in the guest: install and start qemu-guest-agent there")

// AgentInput gives the guest's agent what it is sent and says how many bytes were taken; a busy agent
// takes the rest later. What it says comes out of Config.Output. ErrNoAgent: nobody listens.
func (m *Machine) AgentInput(p []byte) (int, error) {
	m.Lock()
	defer m.Unlock()
	if !m.devices.console.AgentOpen() {
		return 0, ErrNoAgent
	}
	return m.devices.console.AgentInput(p), nil
}
