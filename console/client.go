package console

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strconv"

	"github.com/pollux-ha/pollux/cluster/access"
	"github.com/pollux-ha/pollux/cluster/config"
	"github.com/pollux-ha/pollux/cluster/pki"
	"github.com/pollux-ha/pollux/cluster/wire"
)

// Client talks to a daemon, over its Unix socket or, as a user, over TLS. Errors are *Error.
type Client struct {
	where string // the socket's path, or NAME@ADDRESS
	base  string // of all URLs
	token string // empty: over the socket
	http  *http.Client
}

// NewClient makes a client of the daemon that listens on socket (run_dir/pollux.sock).
func NewClient(socket string) *Client {
	var d net.Dialer
	return &Client{where: socket, base: "http://pollux", http: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return d.DialContext(ctx, "unix", socket)
		},
		DisableKeepAlives: true,
	}}}
}

// NewUserClient makes a client of a member's API (api_address) for the user whose token it is. at is in the
// form of NAME@ADDRESS:PORT; the token is shown only to the member of that name, of the token's own cluster.
func NewUserClient(at, token string) (*Client, error) {
	name, address := wire.Split(at)
	if _, _, err := net.SplitHostPort(address); err != nil || !config.ValidName(name) {
		return nil, Errorf(CodeInvalid, "%q: give a member and its api_address, like a@10.77.1.1:7702", at)
	}
	t, err := access.ParseToken(token)
	if err != nil {
		return nil, Errorf(CodeInvalid, "%v", err)
	}
	return &Client{where: at, base: "https://" + address, token: t.String(), http: &http.Client{
		Transport: &http.Transport{TLSClientConfig: pki.APIClientConfig(t.CAFingerprint, name), DisableKeepAlives: true},
		// The token goes to where it was meant for, and nowhere else.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

// Status tells of the whole cluster.
func (c *Client) Status(ctx context.Context) (*ClusterStatus, error) {
	return call[ClusterStatus](ctx, c, http.MethodGet, "/status", nil)
}

// Guests lists all guests, by name.
func (c *Client) Guests(ctx context.Context) ([]Guest, error) {
	g, err := call[[]Guest](ctx, c, http.MethodGet, "/guests", nil)
	if err != nil {
		return nil, err
	}
	return *g, nil
}

// Guest tells of one guest.
func (c *Client) Guest(ctx context.Context, name string) (*Guest, error) {
	return call[Guest](ctx, c, http.MethodGet, "/guests/"+url.PathEscape(name), nil)
}

// Create makes a guest.
func (c *Client) Create(ctx context.Context, r CreateRequest) (*Guest, error) {
	return call[Guest](ctx, c, http.MethodPost, "/guests", r)
}

// Start starts a guest.
func (c *Client) Start(ctx context.Context, name string, r StartRequest) (*Guest, error) {
	return call[Guest](ctx, c, http.MethodPost, "/guests/"+url.PathEscape(name)+"/start", r)
}

// Stop stops a guest.
func (c *Client) Stop(ctx context.Context, name string, r StopRequest) (*Guest, error) {
	return call[Guest](ctx, c, http.MethodPost, "/guests/"+url.PathEscape(name)+"/stop", r)
}

// Delete forgets a stopped guest. The answer is what it was.
func (c *Client) Delete(ctx context.Context, name string, r DeleteRequest) (*Guest, error) {
	return call[Guest](ctx, c, http.MethodDelete, "/guests/"+url.PathEscape(name), r)
}

// Switchover exchanges the roles of primary and replica.
func (c *Client) Switchover(ctx context.Context, name string, r SwitchoverRequest) (*Guest, error) {
	return call[Guest](ctx, c, http.MethodPost, "/guests/"+url.PathEscape(name)+"/switchover", r)
}

// Protect asks for a replica and waits until the guest is protected.
func (c *Client) Protect(ctx context.Context, name string, r ProtectRequest) (*Guest, error) {
	return call[Guest](ctx, c, http.MethodPost, "/guests/"+url.PathEscape(name)+"/protect", r)
}

// SetCPU chooses a stopped guest's CPU anew.
func (c *Client) SetCPU(ctx context.Context, name string, r SetCPURequest) (*Guest, error) {
	return call[Guest](ctx, c, http.MethodPost, "/guests/"+url.PathEscape(name)+"/cpu", r)
}

// Token issues a join token.
func (c *Client) Token(ctx context.Context, r TokenRequest) (*Token, error) {
	return call[Token](ctx, c, http.MethodPost, "/tokens", r)
}

// RemoveMember takes a machine out of the cluster.
func (c *Client) RemoveMember(ctx context.Context, name string, r RemoveMemberRequest) (*Member, error) {
	return call[Member](ctx, c, http.MethodDelete, "/members/"+url.PathEscape(name), r)
}

// Events reads the newest events of the asked host's log, oldest first. limit 0: 100; guest "": all.
func (c *Client) Events(ctx context.Context, limit int, guest string) ([]Event, error) {
	q := url.Values{}
	if limit > 0 {
		q.Set("limit", strconv.Itoa(limit))
	}
	if guest != "" {
		q.Set("guest", guest)
	}
	e, err := call[[]Event](ctx, c, http.MethodGet, "/events?"+q.Encode(), nil)
	if err != nil {
		return nil, err
	}
	return *e, nil
}

const maxAnswerBytes = 64 << 20

func call[T any](ctx context.Context, c *Client, method, path string, body any) (*T, error) {
	var r io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return nil, Errorf(CodeInvalid, "encode the request: %v", err)
		}
		r = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+"/api/v1"+path, r)
	if err != nil {
		return nil, Errorf(CodeInvalid, "%v", err)
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
			if method == http.MethodGet {
				return nil, Errorf(CodeTimeout, "no answer from the daemon in time: %v", err)
			}
			return nil, Errorf(CodeUnknown, "the daemon has not answered in time; look at the guest's status before you ask again")
		}
		if errors.Is(err, fs.ErrPermission) {
			return nil, Errorf(CodeUnavailable, "no permission to talk to the daemon on %s: run it as root, or as the user that runs the daemon", c.where)
		}
		if errors.Is(err, pki.ErrPeer) {
			return nil, Errorf(CodeUnavailable, "who answers at %s is not whom the token is for: %v", c.where, err)
		}
		if c.token != "" {
			return nil, Errorf(CodeUnavailable, "the daemon does not answer at %s (is api_address set there, and does no firewall stand between?): %v", c.where, err)
		}
		return nil, Errorf(CodeUnavailable, "the daemon does not answer on %s (is `pollux host` or `pollux witness` running?): %v", c.where, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswerBytes))
	if err != nil {
		return nil, Errorf(CodeUnknown, "the daemon's answer broke off: %v", err)
	}
	if resp.StatusCode != http.StatusOK {
		e := &Error{}
		if err := json.Unmarshal(b, e); err != nil || e.Code == "" {
			return nil, Errorf(CodeFailed, "the daemon answered %s: %.200s", resp.Status, b)
		}
		return nil, e
	}
	v := new(T)
	if err := json.Unmarshal(b, v); err != nil {
		return nil, Errorf(CodeFailed, "the daemon's answer can't be read: %v", fmt.Errorf("%w", err))
	}
	return v, nil
}
