package console

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	"go.uber.org/zap"

	"github.com/pollux-ha/pollux/audit"
	"github.com/pollux-ha/pollux/cluster/access"
	"github.com/pollux-ha/pollux/cluster/config"
	"github.com/pollux-ha/pollux/cluster/consensus"
	"github.com/pollux-ha/pollux/cluster/daemon"
	"github.com/pollux-ha/pollux/cluster/pact"
	"github.com/pollux-ha/pollux/cluster/pki"
	"github.com/pollux-ha/pollux/cluster/wire"
)

const (
	maxRequestBytes = 1 << 20
	maxHeaderBytes  = 16 << 10
	headerTimeout   = 5 * time.Second
	readTimeout     = 30 * time.Second
	writeTimeout    = 30 * time.Second // from when the answer is there
	eventsDefault   = 100
	eventsMax       = 10000
	// The waits of operations that do not say how long.
	startWait      = 60 * time.Second
	switchoverWait = 30 * time.Second
	protectWait    = 10 * time.Minute
	stopWaitBeyond = 20 * time.Second // beyond the time to force
	askTimeout     = time.Second
)

// Listen opens the API's socket. Only its owner may use it: whoever can, can do anything to the guests.
func Listen(path string) (net.Listener, error) {
	if len(path) > 107 {
		return nil, fmt.Errorf("the path of the API's socket is too long for Linux (%s): choose a shorter run_dir", path)
	}
	l, err := net.Listen("unix", path)
	if errors.Is(err, syscall.EADDRINUSE) {
		if c, derr := net.Dial("unix", path); derr == nil {
			c.Close()
			return nil, fmt.Errorf("another daemon runs with this run_dir: it answers on %s", path)
		}
		// Left behind by one that died.
		if rerr := os.Remove(path); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
			return nil, fmt.Errorf("remove the stale socket: %w", rerr)
		}
		l, err = net.Listen("unix", path)
	}
	if err != nil {
		return nil, fmt.Errorf("open the API's socket: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("protect the API's socket: %w", err), l.Close())
	}
	return l, nil
}

// Server answers the API.
type Server struct {
	d     *daemon.Daemon
	log   *zap.Logger
	guard *guard
	http  *http.Server
	wg    sync.WaitGroup
}

// Serve begins to answer on l, which it closes in the end.
func Serve(l net.Listener, d *daemon.Daemon, log *zap.Logger) *Server {
	s := &Server{d: d, log: log, guard: newGuard(d.Who, d.RecordAccess)}
	s.serve(l, s.endpoints())
	return s
}

func (s *Server) serve(l net.Listener, endpoints []endpoint) {
	s.http = &http.Server{
		Handler: s.handler(endpoints), ReadHeaderTimeout: headerTimeout, ReadTimeout: readTimeout, MaxHeaderBytes: maxHeaderBytes,
		ErrorLog: zap.NewStdLog(s.log), ConnContext: withOrigin,
	}
	s.wg.Go(func() { _ = s.http.Serve(l) })
}

// ServeAlso answers on one more listener, that of ListenTLS, and closes it in the end.
func (s *Server) ServeAlso(l net.Listener) {
	s.wg.Go(func() { _ = s.http.Serve(l) })
}

// ready says whether this daemon can do what it is for: it knows what the cluster has decided, and a leader.
func (s *Server) ready(*http.Request) (any, error) {
	st := s.d.Node().Status()
	if !s.d.Node().Current() || st.Leader == "" {
		return nil, Errorf(CodeNoQuorum, "no leader is known, or this daemon has not caught up with the cluster yet")
	}
	return map[string]any{"ready": true, "leader": st.Leader}, nil
}

// Close ends the API; whoever waits for an outcome is cut off.
func (s *Server) Close() error {
	err := s.http.Close()
	s.wg.Wait()
	return err
}

func (s *Server) answer(w http.ResponseWriter, r *http.Request, e endpoint) {
	r.Body = http.MaxBytesReader(w, r.Body, maxRequestBytes)
	v, err := s.guard.answer(r, e)
	status := http.StatusOK
	if err != nil {
		e := explain(err)
		tell := s.log.Info
		if r.Method == http.MethodGet || e.Code == CodeUnauthorized || e.Code == CodeTooMany {
			tell = s.log.Debug // asked again and again by whoever waits for something, or by a stranger
		}
		e.headers(w)
		tell("request failed", zap.String("method", r.Method), zap.String("path", r.URL.Path), zap.String("code", string(e.Code)), zap.String("message", e.Message))
		v, status = e, e.Code.HTTPStatus()
	}
	w.Header().Set("Content-Type", "application/json")
	if fromOutside(r) {
		// An answer may have to be waited for, but who asked has to take it then.
		_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(writeTimeout))
	}
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

// explain gives each error its code.
func explain(err error) *Error {
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	var rpc *wire.RPCError
	code := CodeFailed
	switch {
	case errors.Is(err, consensus.ErrUnknown):
		return Errorf(CodeUnknown, "nobody can say yet whether it was committed; look at the status before you ask again (%v)", err)
	case errors.Is(err, consensus.ErrNoQuorum):
		return Errorf(CodeNoQuorum, "no majority of the voters can be reached, nothing was changed (%v)", err)
	case errors.Is(err, consensus.ErrForbidden), errors.Is(err, daemon.ErrRefused):
		code = CodeRefused
	case errors.Is(err, daemon.ErrNoGuest):
		code = CodeNoSuchGuest
	case errors.Is(err, daemon.ErrExists):
		code = CodeExists
	case errors.Is(err, daemon.ErrUnprotected):
		code = CodeUnprotected
	case errors.Is(err, daemon.ErrTimeout), errors.Is(err, context.DeadlineExceeded):
		code = CodeTimeout
	case errors.As(err, &rpc):
		code = CodeRefused
	case errors.Is(err, daemon.ErrUnreachable), errors.Is(err, wire.ErrNotSent):
		code = CodeUnavailable
	}
	return &Error{Code: code, Message: err.Error()}
}

func read[T any](r *http.Request) (T, error) {
	var v T
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	if err := d.Decode(&v); err != nil && !errors.Is(err, io.EOF) {
		return v, Errorf(CodeInvalid, "the request can't be read: %v", err)
	}
	return v, sign(r, &v)
}

// seconds converts what a caller gave, which may be any number, to at most a month.
func seconds(s float64) time.Duration {
	const most = 31 * 24 * time.Hour
	return time.Duration(min(max(s, -most.Seconds()), most.Seconds()) * float64(time.Second))
}

// wanted reports that the caller wants to wait for the outcome.
func (w Wait) wanted() bool { return w.WaitSeconds >= 0 }

// await waits until the guest's assignment is as done says, for as long as the caller wants: not at all,
// for a time of his own, or for otherwise.
func (s *Server) await(ctx context.Context, w Wait, otherwise time.Duration, name string, done func(pact.Assignment) bool) error {
	if !w.wanted() {
		return nil
	}
	limit := otherwise
	if w.WaitSeconds > 0 {
		limit = seconds(w.WaitSeconds)
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return s.d.Await(ctx, name, done)
}

func (s *Server) create(r *http.Request) (any, error) {
	q, err := read[CreateRequest](r)
	if err != nil {
		return nil, err
	}
	if err := s.d.CheckCreate(q.Name, q.Spec); err != nil {
		if errors.Is(err, daemon.ErrRefused) {
			return nil, &Error{Code: CodeInvalid, Message: err.Error()}
		}
		return nil, err
	}
	if err := s.chooseCPU(&q.Spec); err != nil {
		return nil, err
	}
	if q.DryRun {
		g := asGuest(pact.Assignment{Guest: q.Name, Mode: pact.Stopped, Desired: pact.DesiredStopped, Spec: q.Spec, CurrentDisk: pact.DiskCopy{Host: q.Spec.Hosts[0]}}, nil, nil)
		return g, nil
	}
	if err := s.d.Create(r.Context(), q.Name, q.Spec, q.Start, q.Operator); err != nil {
		return nil, err
	}
	return s.one(r.Context(), q.Name)
}

func (s *Server) start(r *http.Request) (any, error) {
	q, err := read[StartRequest](r)
	if err != nil {
		return nil, err
	}
	name := r.PathValue("name")
	if q.AcceptLoss != "" {
		if err := need(r, access.Administrator, "to accept a loss"); err != nil {
			return nil, err
		}
	}
	o := daemon.StartOptions{Host: q.Host, Loss: q.AcceptLoss, HostsOff: q.HostsOff, Inconsistent: q.AcceptInconsistent, Operator: q.Operator}
	if q.AcceptLoss != "" && o.Host == "" {
		o.Host = s.d.Name()
	}
	if err := s.d.CheckStart(name, o); err != nil {
		return nil, err
	}
	if q.DryRun {
		return s.one(r.Context(), name)
	}
	if q.AcceptLoss != "" && q.Confirm != name {
		return nil, Errorf(CodeNeedsConfirmation, "a start that accepts a loss has to be confirmed with the guest's name")
	}
	before, _ := s.d.Node().Guest(name)
	if err := s.d.Start(r.Context(), name, o); err != nil {
		return nil, err
	}
	err = s.await(r.Context(), q.Wait, startWait, name, func(a pact.Assignment) bool {
		return a.Runs() && !a.IsGone(a.Primary) && (q.AcceptLoss == "" || a.Term > before.Term)
	})
	if err != nil {
		return nil, err
	}
	return s.one(r.Context(), name)
}

func (s *Server) stop(r *http.Request) (any, error) {
	q, err := read[StopRequest](r)
	if err != nil {
		return nil, err
	}
	name := r.PathValue("name")
	if _, err := s.d.Lookup(name); err != nil || q.DryRun {
		if err != nil {
			return nil, err
		}
		return s.one(r.Context(), name)
	}
	after := seconds(q.TimeoutSeconds)
	if err := s.d.Stop(r.Context(), name, q.Force, after, q.Operator); err != nil {
		return nil, err
	}
	limit := stopWaitBeyond
	if !q.Force {
		limit += max(after, 0)
		if after == 0 {
			limit += s.d.StopTime()
		}
	}
	err = s.await(r.Context(), q.Wait, limit, name, func(a pact.Assignment) bool { return a.Mode == pact.Stopped })
	if err != nil {
		return nil, err
	}
	return s.one(r.Context(), name)
}

func (s *Server) delete(r *http.Request) (any, error) {
	q, err := read[DeleteRequest](r)
	if err != nil {
		return nil, err
	}
	name := r.PathValue("name")
	a, err := s.d.CheckDelete(name)
	if err != nil {
		return nil, err
	}
	was := asGuest(a, nil, nil)
	if q.DryRun {
		return was, nil
	}
	if q.Confirm != name {
		return nil, Errorf(CodeNeedsConfirmation, "to delete a guest has to be confirmed with its name")
	}
	return was, s.d.Delete(r.Context(), name, q.Operator)
}

func (s *Server) switchover(r *http.Request) (any, error) {
	q, err := read[SwitchoverRequest](r)
	if err != nil {
		return nil, err
	}
	name := r.PathValue("name")
	before, err := s.d.CheckSwitchover(name)
	if err != nil {
		return nil, err
	}
	if q.DryRun {
		return s.one(r.Context(), name)
	}
	if err := s.d.Switchover(r.Context(), name, q.Operator); err != nil {
		return nil, err
	}
	err = s.await(r.Context(), q.Wait, switchoverWait, name, func(a pact.Assignment) bool { return a.Term > before.Term && a.Primary != before.Primary })
	if err != nil {
		return nil, err
	}
	return s.one(r.Context(), name)
}

func (s *Server) protect(r *http.Request) (any, error) {
	q, err := read[ProtectRequest](r)
	if err != nil {
		return nil, err
	}
	name := r.PathValue("name")
	if _, err := s.d.Lookup(name); err != nil || q.DryRun {
		if err != nil {
			return nil, err
		}
		return s.one(r.Context(), name)
	}
	if err := s.d.Protect(r.Context(), name, q.Operator); err != nil {
		return nil, err
	}
	err = s.await(r.Context(), q.Wait, protectWait, name, func(a pact.Assignment) bool {
		return a.Mode == pact.Protected && len(a.Gone) == 0 || a.Mode == pact.Stopped
	})
	if err != nil {
		return nil, err
	}
	g, err := s.one(r.Context(), name)
	if err == nil && q.Wait.wanted() && g.Mode != pact.Protected {
		return nil, Errorf(CodeUnprotected, "the guest is %s", g.Mode)
	}
	return g, err
}

func (s *Server) token(r *http.Request) (any, error) {
	q, err := read[TokenRequest](r)
	if err != nil {
		return nil, err
	}
	if !config.ValidName(q.Name) {
		return nil, Errorf(CodeInvalid, "name %q: give the machine's name, lower-case letters, digits and hyphens, at most 63", q.Name)
	}
	role := pki.Role(q.Role)
	if !role.Valid() {
		return nil, Errorf(CodeInvalid, "role %q: \"host\" or \"witness\"", q.Role)
	}
	valid := time.Hour
	if q.ValidSeconds != 0 {
		valid = seconds(q.ValidSeconds)
	}
	if valid <= 0 || valid > 7*24*time.Hour {
		return nil, Errorf(CodeInvalid, "valid_seconds %v: more than 0, at most a week", q.ValidSeconds)
	}
	t, expires, err := s.d.Token(r.Context(), q.Name, role, valid, q.Operator)
	if err != nil {
		return nil, err
	}
	return Token{Token: t.String(), Name: q.Name, Role: q.Role, Expires: expires}, nil
}

func (s *Server) removeMember(r *http.Request) (any, error) {
	q, err := read[RemoveMemberRequest](r)
	if err != nil {
		return nil, err
	}
	name := r.PathValue("name")
	m, err := s.d.CheckRemove(name)
	if q.Revoke {
		m, _ = s.d.Node().Member(name)
		err = s.d.CheckRevoke(name)
	}
	if err != nil {
		return nil, err
	}
	was := Member{Name: m.Name, Role: string(m.Role), Address: m.ClusterAddress, Version: m.Version, RaftID: m.RaftID, State: string(s.d.Gossip().State(name))}
	if q.DryRun {
		return was, nil
	}
	if q.Confirm != name {
		return nil, Errorf(CodeNeedsConfirmation, "to remove a member has to be confirmed with its name")
	}
	if q.Revoke {
		return was, s.d.Revoke(r.Context(), name, q.Operator)
	}
	return was, s.d.Remove(r.Context(), name, q.Operator)
}

func (s *Server) events(r *http.Request) (any, error) {
	limit := eventsDefault
	if t := r.URL.Query().Get("limit"); t != "" {
		n, err := strconv.Atoi(t)
		if err != nil || n < 1 || n > eventsMax {
			return nil, Errorf(CodeInvalid, "limit %q: between 1 and %d", t, eventsMax)
		}
		limit = n
	}
	// The newest are wanted: keep the last ones in a ring.
	ring := make([]Event, 0, min(limit, eventsDefault))
	next := 0
	for e, err := range audit.Read(s.d.Config().EventLog(), audit.Filter{Guest: r.URL.Query().Get("guest")}) {
		if err != nil {
			return nil, fmt.Errorf("read the event log: %w", err)
		}
		o := Event{Time: e.Time, Host: e.Host, Kind: string(e.Kind), Guest: e.Guest, Term: pact.Term(e.Term), Actor: e.Actor, Detail: e.Detail}
		if len(ring) < limit {
			ring = append(ring, o)
			continue
		}
		ring[next] = o
		next = (next + 1) % limit
	}
	return append(append([]Event{}, ring[next:]...), ring[:next]...), nil
}
