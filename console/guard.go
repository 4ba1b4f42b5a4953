package console

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/pollux-ha/pollux/cluster/access"
	"github.com/pollux-ha/pollux/cluster/throttle"
)

// userPrefix begins the names of users in the event log, so that nobody at a Unix socket can call himself one
// by accident.
const userPrefix = "user:"

const (
	// What one address may ask in all, with a good token or without, and how often it may show a bad one before
	// it is not even looked at. A good token is good all the same: nobody is kept out by his neighbour's failures.
	addressPerSecond, addressBurst = 50, 200
	failurePerSecond, failureBurst = 0.5, 10
	// What one user may ask, and have under way at once: orders may be waited for.
	userPerSecond, userBurst = 20, 100
	userBusyMax              = 16
	// How many refusals go into the event log; the others are counted there.
	recordPerSecond, recordBurst = 0.1, 20
	addressesMax                 = 4096
	usersMax                     = 512
)

// guard tells who sends a request, and whether it is to be answered.
type guard struct {
	who    func(token string) (access.User, error) // ErrToken: nobody's
	record func(actor string, detail map[string]any)
	now    func() time.Time

	addresses, failures, users, records *throttle.Limiter

	mu     sync.Mutex
	busy   map[string]int // requests under way, by user
	unsaid int            // refusals that are not in the event log
}

func newGuard(who func(string) (access.User, error), record func(string, map[string]any)) *guard {
	return &guard{
		who: who, record: record, now: time.Now, busy: map[string]int{},
		addresses: throttle.New(addressPerSecond, addressBurst, addressesMax),
		failures:  throttle.New(failurePerSecond, failureBurst, addressesMax),
		users:     throttle.New(userPerSecond, userBurst, usersMax),
		records:   throttle.New(recordPerSecond, recordBurst, 1),
	}
}

type (
	originKey struct{}
	callerKey struct{}
)

// withOrigin notes where a connection comes from. What is neither the Unix socket nor the gate is nobody's.
func withOrigin(ctx context.Context, c net.Conn) context.Context {
	switch c.(type) {
	case *net.UnixConn, *visitor:
		return context.WithValue(ctx, originKey{}, c)
	}
	return ctx
}

func fromOutside(r *http.Request) bool {
	_, yes := r.Context().Value(originKey{}).(*visitor)
	return yes
}

// answer answers a request, where its caller may ask it.
func (g *guard) answer(r *http.Request, e endpoint) (any, error) {
	r, done, err := g.let(r, e)
	if err != nil {
		return nil, err
	}
	defer done()
	return e.answer(r)
}

// let says whether a request is to be answered. Where it is, the request that is returned knows its caller, and
// done has to be called in the end.
func (g *guard) let(r *http.Request, e endpoint) (_ *http.Request, done func(), err error) {
	nothing := func() {}
	var v *visitor
	switch c := r.Context().Value(originKey{}).(type) {
	case *net.UnixConn:
		return r, nothing, nil
	case *visitor:
		v = c
	default:
		return nil, nil, Errorf(CodeUnauthorized, "the connection is nobody's")
	}
	from := throttle.Address(v.RemoteAddr())
	if wait := g.addresses.Take(from, g.now()); wait > 0 {
		return nil, nil, tooMany(wait, "requests from %s", from)
	}
	if e.open {
		return r, nothing, nil
	}
	token, ok := bearer(r)
	if !ok {
		return nil, nil, Errorf(CodeUnauthorized, "show a user's token: Authorization: Bearer TOKEN")
	}
	u, err := g.who(token)
	if err != nil && !errors.Is(err, access.ErrToken) {
		return nil, nil, err
	}
	if err != nil {
		if wait := g.failures.Take(from, g.now()); wait > 0 {
			return nil, nil, tooMany(wait, "wrong tokens from %s", from)
		}
		g.note("stranger", r, from, "a wrong token")
		return nil, nil, Errorf(CodeUnauthorized, "the token is not good: the user was removed, or the token is another cluster's, or changed")
	}
	if !v.admit(u.Name) {
		return nil, nil, tooMany(time.Second, "connections of user %s", u.Name)
	}
	if wait := g.users.Take(u.Name, g.now()); wait > 0 {
		return nil, nil, tooMany(wait, "requests of user %s", u.Name)
	}
	if !slices.Contains(e.allow, u.Role) {
		g.note(userPrefix+u.Name, r, from, fmt.Sprintf("not for the role %s", u.Role))
		return nil, nil, Errorf(CodeForbidden, "%s is a %s; %s", u.Name, u.Role, whose(e.allow))
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.busy[u.Name] >= userBusyMax {
		return nil, nil, tooMany(time.Second, "requests of user %s under way", u.Name)
	}
	g.busy[u.Name]++
	return r.WithContext(context.WithValue(r.Context(), callerKey{}, u)), func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.busy[u.Name]--; g.busy[u.Name] == 0 {
			delete(g.busy, u.Name)
		}
	}, nil
}

// note has a refusal written into the event log, unless there were many.
func (g *guard) note(actor string, r *http.Request, from, reason string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.records.Take("", g.now()) > 0 {
		g.unsaid++
		return
	}
	path := r.URL.Path
	if len(path) > 200 {
		path = path[:200]
	}
	g.record(actor, map[string]any{"from": from, "what": r.Method + " " + path, "reason": reason, "not_mentioned_before": g.unsaid})
	g.unsaid = 0
}

func whose(allow []access.Role) string {
	if len(allow) == 0 {
		return "this can be asked at the Unix socket of a member alone"
	}
	names := make([]string, len(allow))
	for i, r := range allow {
		names[i] = string(r)
	}
	return "this is for: " + strings.Join(names, ", ")
}

// bearer is the one token that a request shows (RFC 6750, section 2.1).
func bearer(r *http.Request) (string, bool) {
	all := r.Header.Values("Authorization")
	if len(all) != 1 {
		return "", false
	}
	scheme, token, ok := strings.Cut(all[0], " ")
	return strings.TrimSpace(token), ok && strings.EqualFold(scheme, "Bearer")
}

func tooMany(wait time.Duration, format string, a ...any) *Error {
	e := Errorf(CodeTooMany, "too many %s; again in %v", fmt.Sprintf(format, a...), wait.Round(time.Millisecond))
	e.retryAfter = wait
	return e
}

// headers are what HTTP wants to go with some errors.
func (e *Error) headers(w http.ResponseWriter) {
	switch e.Code {
	case CodeUnauthorized:
		w.Header().Set("WWW-Authenticate", `Bearer realm="pollux"`)
	case CodeTooMany:
		w.Header().Set("Retry-After", strconv.Itoa(int((e.retryAfter+time.Second-1)/time.Second)))
	}
}

// need says that one thing of what an endpoint does is for a role.
func need(r *http.Request, role access.Role, what string) error {
	if u, ok := r.Context().Value(callerKey{}).(access.User); ok && u.Role != role {
		return Errorf(CodeForbidden, "%s is a %s; %s is for: %s", u.Name, u.Role, what, role)
	}
	return nil
}

// sign puts a user's name into his request, whatever he says there. Who comes through the Unix socket says
// himself who he is, but he is no user.
func sign(r *http.Request, request any) error {
	u, isUser := r.Context().Value(callerKey{}).(access.User)
	f := reflect.ValueOf(request).Elem()
	if f.Kind() == reflect.Struct {
		f = f.FieldByName("Operator")
	}
	if f.Kind() != reflect.String {
		if isUser {
			return Errorf(CodeFailed, "%T does not say who asks", request)
		}
		return nil
	}
	if isUser {
		f.SetString(userPrefix + u.Name)
	} else if strings.HasPrefix(f.String(), userPrefix) {
		return Errorf(CodeInvalid, "operator %q: names that begin with %q are those of users with a token", f.String(), userPrefix)
	}
	return nil
}
