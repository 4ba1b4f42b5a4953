package console

import (
	"context"
	"net/http"
	"net/url"

	"github.com/pollux-ha/pollux/cluster/daemon"
	"github.com/pollux-ha/pollux/cluster/link"
)

// FaultRequest has a fault happen to a guest, to see what comes of it: POST /api/v1/guests/{name}/fault. It does not
// wait for what comes of it.
type FaultRequest struct {
	Fault string `json:"fault"` // "memory"
	// Page is the index of a page of guest memory; nil: one that the host chooses.
	Page  *int   `json:"page,omitempty"`
	State string `json:"state,omitempty"` // "clean" or "dirty" since the last checkpoint; empty: as it is
	Quiet bool   `json:"quiet,omitempty"` // whoever touches the page finds out
	Copy  string `json:"copy,omitempty"`  // whose: "primary" (the default) or "replica"
	// Confirm is the guest's name, typed again: needed for a guest that is not a test guest.
	Confirm  string `json:"confirm,omitempty"`
	Operator string `json:"operator,omitempty"`
	DryRun   bool   `json:"dry_run,omitempty"`
}

func (s *Server) fault(r *http.Request) (any, error) {
	q, err := read[FaultRequest](r)
	if err != nil {
		return nil, err
	}
	if q.Fault != "memory" {
		return nil, Errorf(CodeInvalid, "fault %q: this release injects memory errors", q.Fault)
	}
	if q.Copy != "" && q.Copy != "primary" && q.Copy != "replica" {
		return nil, Errorf(CodeInvalid, "copy %q: primary or replica", q.Copy)
	}
	name := r.PathValue("name")
	m := daemon.Damage{Damage: link.Damage{Page: link.AnyPage, State: q.State, Quiet: q.Quiet}, Replica: q.Copy == "replica"}
	if q.Page != nil {
		if m.Page = *q.Page; m.Page < 0 {
			return nil, Errorf(CodeInvalid, "page %d: pages are numbered from 0", m.Page)
		}
	}
	a, err := s.d.CheckDamage(name, m)
	if err != nil {
		return nil, err
	}
	if !a.Spec.Test && q.Confirm != name {
		return nil, Errorf(CodeNeedsConfirmation, "%s is not a test guest (`pollux guest create --test`): a fault in it has to be confirmed with its name", name)
	}
	if !q.DryRun {
		if err := s.d.Inject(r.Context(), name, m, q.Operator); err != nil {
			return nil, err
		}
	}
	return s.one(r.Context(), name)
}

// Fault has a fault happen to a guest. It does not wait for what comes of it.
func (c *Client) Fault(ctx context.Context, name string, r FaultRequest) (*Guest, error) {
	return call[Guest](ctx, c, http.MethodPost, "/guests/"+url.PathEscape(name)+"/fault", r)
}
