package console

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
)

// AgentRequest has the agent in a guest do something: POST /api/v1/guests/{name}/agent.
type AgentRequest struct {
	Command  string `json:"command"` // "ping", "info", "version", "freeze", "thaw", "freeze-status", "shutdown"
	Operator string `json:"operator,omitempty"`
	DryRun   bool   `json:"dry_run,omitempty"`
}

// AgentAnswer is what it says.
type AgentAnswer struct {
	Guest   string `json:"guest"`
	Command string `json:"command"`
	// Answer is the agent's own, whose form QEMU's guest agent documents; null with DryRun.
	Answer json.RawMessage `json:"answer"`
}

// BalloonRequest asks a guest to keep only so much of its memory: POST /api/v1/guests/{name}/balloon.
type BalloonRequest struct {
	MemoryBytes uint64 `json:"memory_bytes"`
	Operator    string `json:"operator,omitempty"`
	DryRun      bool   `json:"dry_run,omitempty"`
}

func (s *Server) agent(r *http.Request) (any, error) {
	q, err := read[AgentRequest](r)
	if err != nil {
		return nil, err
	}
	name := r.PathValue("name")
	a := AgentAnswer{Guest: name, Command: q.Command}
	if q.DryRun {
		_, err := s.d.CheckAgent(name, q.Command)
		return a, err
	}
	a.Answer, err = s.d.Agent(r.Context(), name, q.Command, q.Operator)
	return a, err
}

func (s *Server) balloon(r *http.Request) (any, error) {
	q, err := read[BalloonRequest](r)
	if err != nil {
		return nil, err
	}
	name := r.PathValue("name")
	if _, err := s.d.CheckBalloon(name, q.MemoryBytes); err != nil {
		return nil, err
	}
	if !q.DryRun {
		if err := s.d.Balloon(r.Context(), name, q.MemoryBytes, q.Operator); err != nil {
			return nil, err
		}
	}
	return s.one(r.Context(), name)
}

// Agent has the agent in a guest do something.
func (c *Client) Agent(ctx context.Context, name string, r AgentRequest) (*AgentAnswer, error) {
	return call[AgentAnswer](ctx, c, http.MethodPost, "/guests/"+url.PathEscape(name)+"/agent", r)
}

// Balloon asks a guest to keep only so much of its memory. It does not wait for the guest.
func (c *Client) Balloon(ctx context.Context, name string, r BalloonRequest) (*Guest, error) {
	return call[Guest](ctx, c, http.MethodPost, "/guests/"+url.PathEscape(name)+"/balloon", r)
}
