package main

import (
	"crypto/rand"
	"fmt"

	"github.com/pollux-ha/pollux/cluster/agent"
	"github.com/pollux-ha/pollux/vmm"
	"github.com/pollux-ha/pollux/vmm/legacy"
)

// vmServices is what "vm run" has of a host's services for its guest.
type vmServices struct {
	agentSocket string // path; empty: none
	keep        string // memory that the guest is to keep; empty: all
}

// start gives the guest its services; stop ends them.
func (s vmServices) start(m *vmm.Machine, out *vmOutput) (stop func() error, err error) {
	if s.keep != "" {
		keep, err := parseBytes(s.keep)
		if err != nil || keep > m.RAM().Size() {
			return nil, usagef("--balloon %s: a size up to the guest's memory", s.keep)
		}
		if err := m.SetBalloon(m.RAM().Size() - keep); err != nil {
			return nil, fmt.Errorf("--balloon: %w", err)
		}
	}
	if s.agentSocket == "" {
		return func() error { return nil }, nil
	}
	if out.agent, err = agent.Listen(s.agentSocket, m.AgentInput); err != nil {
		return nil, err
	}
	return out.agent.Close, nil
}

// newGeneration is for a guest of which nobody knows a past.
func newGeneration() (id legacy.GenerationID) {
	_, _ = rand.Read(id[:]) // never fails: it would end the program
	return id
}
