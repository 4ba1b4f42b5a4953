package wire

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/pollux-ha/pollux/cluster/pki"
)

// MaxBodyBytes bounds a request and an answer between daemons.
const MaxBodyBytes = 4 << 20

// RPCError is an error that the other daemon's handler gave.
type RPCError struct {
	Status  int    `json:"-"`
	Code    string `json:"code"`
	Message string `json:"message"`
}

func (e *RPCError) Error() string { return e.Message }

// ErrNotSent says that the other side has certainly not got the request.
var ErrNotSent = errors.New("not sent")

// Handler answers one call of a member. Its answer is encoded as JSON.
type Handler func(ctx context.Context, from pki.Peer, body []byte) (any, error)

type peerKey struct{}

// Server answers calls: POST /<name> with a JSON body.
type Server struct {
	http *http.Server
	done chan struct{}
}

// Serve begins to answer calls on the port.
func (p *Port) Serve(handlers map[string]Handler) *Server {
	mux := http.NewServeMux()
	for name, h := range handlers {
		mux.HandleFunc("POST /"+name, func(w http.ResponseWriter, r *http.Request) { p.answer(w, r, h) })
	}
	s := &Server{done: make(chan struct{}), http: &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       30 * time.Second,
		WriteTimeout:      60 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          zap.NewStdLog(p.log),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			if m, ok := c.(*memberConn); ok {
				return context.WithValue(ctx, peerKey{}, m.peer)
			}
			return ctx
		},
	}}
	go func() {
		defer close(s.done)
		_ = s.http.Serve(p.rpc)
	}()
	return s
}

// Close ends the server and its connections.
func (s *Server) Close() error {
	err := s.http.Close()
	<-s.done
	return err
}

func (p *Port) answer(w http.ResponseWriter, r *http.Request, h Handler) {
	reply := func(status int, v any) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(v)
	}
	fail := func(err error) {
		e := &RPCError{Status: http.StatusInternalServerError, Code: "failed", Message: err.Error()}
		var given *RPCError
		if errors.As(err, &given) {
			e = given
		}
		reply(e.Status, e)
	}
	peer, ok := r.Context().Value(peerKey{}).(pki.Peer)
	if !ok {
		fail(&RPCError{Status: http.StatusForbidden, Code: "forbidden", Message: "the connection is not a member's"})
		return
	}
	if p.allowed != nil {
		if err := p.allowed(peer); err != nil { // it may have been removed since it connected
			fail(&RPCError{Status: http.StatusForbidden, Code: "forbidden", Message: err.Error()})
			return
		}
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, MaxBodyBytes))
	if err != nil {
		fail(&RPCError{Status: http.StatusBadRequest, Code: "invalid", Message: err.Error()})
		return
	}
	v, err := h(r.Context(), peer, body)
	if err != nil {
		fail(err)
		return
	}
	reply(http.StatusOK, v)
}

// Client calls other daemons. Connections are kept for the next call.
type Client struct {
	id *pki.Identity
	// DialVia, where set, makes the connections.
	DialVia DialFunc

	mu    sync.Mutex
	peers map[string]*http.Client // by At
}

// NewClient makes a client.
func NewClient(id *pki.Identity) *Client { return &Client{id: id, peers: map[string]*http.Client{}} }

// Close drops the kept connections.
func (c *Client) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, h := range c.peers {
		h.CloseIdleConnections()
	}
	clear(c.peers)
}

func (c *Client) peer(at string) *http.Client {
	c.mu.Lock()
	defer c.mu.Unlock()
	h, ok := c.peers[at]
	if !ok {
		h = &http.Client{Transport: &http.Transport{
			DialTLSContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				conn, err := dial(ctx, c.id, c.DialVia, at, pki.ALPNRPC)
				if err != nil {
					return nil, fmt.Errorf("%w: %w", ErrNotSent, err)
				}
				return conn, nil
			},
			MaxIdleConnsPerHost: 4,
			IdleConnTimeout:     time.Minute,
			DisableCompression:  true,
		}}
		c.peers[at] = h
	}
	return h
}

// Call asks a member, in the form of At. An error that wraps ErrNotSent says that it was not reached; an
// *RPCError is its answer; after any other one nobody knows what it has done.
func (c *Client) Call(ctx context.Context, at, name string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return fmt.Errorf("%w: encode %s: %w", ErrNotSent, name, err)
	}
	// Until there is a connection nothing has been sent, also where the caller's patience ends first.
	var connected atomic.Bool
	traced := httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { connected.Store(true) }})
	req, err := http.NewRequestWithContext(traced, http.MethodPost, "https://member/"+name, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNotSent, err)
	}
	resp, err := c.peer(at).Do(req)
	if err != nil {
		if !connected.Load() && !errors.Is(err, ErrNotSent) {
			err = fmt.Errorf("%w: %w", ErrNotSent, err)
		}
		return fmt.Errorf("%s to %s: %w", name, at, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, MaxBodyBytes))
	if err != nil {
		return fmt.Errorf("%s to %s: the answer broke off: %w", name, at, err)
	}
	if resp.StatusCode != http.StatusOK {
		e := &RPCError{}
		if json.Unmarshal(b, e) != nil || e.Code == "" {
			return fmt.Errorf("%s to %s: answered %s", name, at, resp.Status)
		}
		e.Status = resp.StatusCode
		return e
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("%s to %s: decode the answer: %w", name, at, err)
	}
	return nil
}
