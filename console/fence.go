package console

import (
	"context"
	"net/http"
	"net/url"

	"github.com/pollux-ha/pollux/cluster/daemon"
	"github.com/pollux-ha/pollux/cluster/pact"
)

// Fencing is the answer to GET /api/v1/fence: the asked host's fence devices and watchdog, what became of its last
// fencings, and the hosts that the cluster keeps out. Devices are told without their parameters.
type Fencing = daemon.FenceInfo

// FenceDevice is one host's power, as the asked host can see it.
type FenceDevice = daemon.FenceDeviceInfo

// FenceTestRequest asks a fence device for its host's power: POST /api/v1/fence/test. A device that does not answer
// is told in the answer's error.
type FenceTestRequest struct {
	Host string `json:"host"`
	// Off powers the host off first; it needs Confirm. The answer comes once the device has confirmed it.
	Off bool `json:"off,omitempty"`
	// EvenPrimary extends Off to a host that is the primary of a guest.
	EvenPrimary bool   `json:"even_primary,omitempty"`
	Confirm     string `json:"confirm,omitempty"` // the host's name, typed again
	Operator    string `json:"operator,omitempty"`
	DryRun      bool   `json:"dry_run,omitempty"`
}

// ResetMemberRequest lets a host that is kept out in again: POST /api/v1/members/{name}/reset.
type ResetMemberRequest struct {
	Operator string `json:"operator,omitempty"`
	DryRun   bool   `json:"dry_run,omitempty"`
}

func (s *Server) fencing(*http.Request) (any, error) { return s.d.Fencing(), nil }

func (s *Server) testFence(r *http.Request) (any, error) {
	q, err := read[FenceTestRequest](r)
	if err != nil {
		return nil, err
	}
	if err := s.d.CheckFence(q.Host, q.Off, q.EvenPrimary); err != nil {
		return nil, err
	}
	if q.Off && !q.DryRun && q.Confirm != q.Host {
		return nil, Errorf(CodeNeedsConfirmation, "to power off a host has to be confirmed with its name")
	}
	return s.d.TestFence(r.Context(), q.Host, q.Off && !q.DryRun, q.EvenPrimary, q.Operator)
}

func (s *Server) resetMember(r *http.Request) (any, error) {
	q, err := read[ResetMemberRequest](r)
	if err != nil {
		return nil, err
	}
	name := r.PathValue("name")
	out, err := s.d.CheckReadmit(name)
	if err != nil || q.DryRun {
		return out, err
	}
	return out, s.d.Readmit(r.Context(), name, q.Operator)
}

// fenceAlarms are what an operator should see to: hosts that are kept out, and fences that did not work.
func (s *Server) fenceAlarms() []string {
	var alarms []string
	f := s.d.Fencing()
	for _, o := range f.KeptOut {
		alarms = append(alarms, daemon.OutText(o))
	}
	for _, r := range f.Reports {
		if r.Stage == "failed" || r.Stage == "refused" {
			alarms = append(alarms, "fencing of "+r.Host+" "+r.Stage+": "+r.Detail)
		}
	}
	if f.Watchdog.Error != "" {
		alarms = append(alarms, s.d.Name()+" can't use its watchdog: "+f.Watchdog.Error)
	}
	return alarms
}

// Fencing tells of the asked host's fencing.
func (c *Client) Fencing(ctx context.Context) (*Fencing, error) {
	return call[Fencing](ctx, c, http.MethodGet, "/fence", nil)
}

// TestFence asks a fence device, or orders it.
func (c *Client) TestFence(ctx context.Context, r FenceTestRequest) (*FenceDevice, error) {
	return call[FenceDevice](ctx, c, http.MethodPost, "/fence/test", r)
}

// ResetMember lets a host that is kept out in again. The answer is what it was kept out for.
func (c *Client) ResetMember(ctx context.Context, name string, r ResetMemberRequest) ([]pact.Out, error) {
	out, err := call[[]pact.Out](ctx, c, http.MethodPost, "/members/"+url.PathEscape(name)+"/reset", r)
	if err != nil {
		return nil, err
	}
	return *out, nil
}
