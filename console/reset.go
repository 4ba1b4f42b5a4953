package console

import (
	"context"
	"net/http"
	"net/url"
)

// ResetRequest has a guest boot again: POST /api/v1/guests/{name}/reset. It does not wait for the guest.
type ResetRequest struct {
	Operator string `json:"operator,omitempty"`
	DryRun   bool   `json:"dry_run,omitempty"`
}

// DumpRequest has the memory of a guest that stands still written to a new file on its primary's host: POST
// /api/v1/guests/{name}/dump. The primary's status (dump) says when it is done.
type DumpRequest struct {
	Path     string `json:"path"`
	Operator string `json:"operator,omitempty"`
	DryRun   bool   `json:"dry_run,omitempty"`
}

func (s *Server) reset(r *http.Request) (any, error) {
	q, err := read[ResetRequest](r)
	if err != nil {
		return nil, err
	}
	name := r.PathValue("name")
	if _, err := s.d.CheckReset(name); err != nil {
		return nil, err
	}
	if !q.DryRun {
		if err := s.d.Reset(r.Context(), name, q.Operator); err != nil {
			return nil, err
		}
	}
	return s.one(r.Context(), name)
}

func (s *Server) dump(r *http.Request) (any, error) {
	q, err := read[DumpRequest](r)
	if err != nil {
		return nil, err
	}
	name := r.PathValue("name")
	if _, err := s.d.CheckDump(name, q.Path); err != nil {
		return nil, err
	}
	if !q.DryRun {
		if err := s.d.Dump(r.Context(), name, q.Path, q.Operator); err != nil {
			return nil, err
		}
	}
	return s.one(r.Context(), name)
}

// Reset has a guest boot again, as by the reset button. It does not wait for the guest.
func (c *Client) Reset(ctx context.Context, name string, r ResetRequest) (*Guest, error) {
	return call[Guest](ctx, c, http.MethodPost, "/guests/"+url.PathEscape(name)+"/reset", r)
}

// Dump has the memory of a guest that stands still written to a file of its primary's host. It does not wait
// for it.
func (c *Client) Dump(ctx context.Context, name string, r DumpRequest) (*Guest, error) {
	return call[Guest](ctx, c, http.MethodPost, "/guests/"+url.PathEscape(name)+"/dump", r)
}
