package console

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/pollux-ha/pollux/cluster/access"
	"github.com/pollux-ha/pollux/cluster/pki"
)

// patience bounds what must come about; its length decides no verdict.
const patience = time.Minute

// booth is an API whose answers are the names of its endpoints, open over TLS and at a Unix socket.
type booth struct {
	t      *testing.T
	at     string // NAME@ADDRESS
	socket string
	pool   *x509.CertPool
	id     *pki.Identity
	gate   *gate
	server *Server

	mu       sync.Mutex
	table    access.Table
	clock    time.Time
	recorded []map[string]any
	requests []string           // "operator endpoint"
	hold     chan chan struct{} // where set, an answer waits for its channel to be closed
}

type signed struct {
	Operator string `json:"operator"`
}

func openBooth(t *testing.T) *booth {
	t.Helper()
	dir := t.TempDir()
	if _, _, err := pki.Found(dir, "a"); err != nil {
		t.Fatal(err)
	}
	id, err := pki.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	b := &booth{t: t, id: id, pool: x509.NewCertPool(), socket: filepath.Join(t.TempDir(), "s"), clock: time.Unix(1e9, 0)}
	b.pool.AppendCertsFromPEM(ca)
	b.server = &Server{log: zap.NewNop(), guard: newGuard(b.who, b.record)}
	b.server.guard.now = func() time.Time { b.mu.Lock(); defer b.mu.Unlock(); return b.clock }
	endpoints := b.server.endpoints()
	for i, e := range endpoints {
		endpoints[i].answer = func(r *http.Request) (any, error) {
			q, err := read[signed](r)
			if err != nil {
				return nil, err
			}
			b.mu.Lock()
			b.requests = append(b.requests, q.Operator+" "+e.pattern)
			hold := b.hold
			b.mu.Unlock()
			if hold != nil {
				c := make(chan struct{})
				hold <- c
				<-c
			}
			return e.pattern, nil
		}
	}
	local, err := Listen(b.socket)
	if err != nil {
		t.Fatal(err)
	}
	remote, err := ListenTLS("127.0.0.1:0", id, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	b.gate = remote.(*gate)
	b.at = "a@" + remote.Addr().String()
	b.server.serve(local, endpoints)
	b.server.ServeAlso(remote)
	t.Cleanup(func() {
		if err := b.server.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

func (b *booth) who(text string) (access.User, error) {
	t, err := access.ParseToken(text)
	if err != nil {
		return access.User{}, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if u, ok := b.table.Who(t); ok {
		return u, nil
	}
	return access.User{}, access.ErrToken
}

func (b *booth) record(actor string, detail map[string]any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	detail["actor"] = actor
	b.recorded = append(b.recorded, detail)
}

func (b *booth) user(name string, role access.Role) string {
	b.t.Helper()
	token, u := access.NewToken(b.id.CAFingerprint(), name, role, 0)
	b.mu.Lock()
	defer b.mu.Unlock()
	if why := b.table.Apply(access.Change{Add: &u}); why != "" {
		b.t.Fatal(why)
	}
	return token.String()
}

func (b *booth) later(d time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.clock = b.clock.Add(d)
}

func (b *booth) address() string { return b.gate.Addr().String() }

// tls is how a program that is not ours connects.
func (b *booth) tls() *tls.Config {
	return &tls.Config{RootCAs: b.pool, ServerName: "a", MinVersion: tls.VersionTLS12}
}

// client keeps one connection for all that it asks.
func (b *booth) client() *http.Client {
	tr := &http.Transport{TLSClientConfig: b.tls()}
	b.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: patience}
}

// ask asks, and returns the status and what was answered.
func (b *booth) ask(c *http.Client, token, method, path, body string) (int, string) {
	b.t.Helper()
	resp, text := b.response(c, token, method, path, body)
	return resp.StatusCode, text
}

func (b *booth) response(c *http.Client, token, method, path, body string) (*http.Response, string) {
	b.t.Helper()
	r, err := http.NewRequestWithContext(b.t.Context(), method, "https://"+b.address()+path, strings.NewReader(body))
	if err != nil {
		b.t.Fatal(err)
	}
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := c.Do(r)
	if err != nil {
		b.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	return resp, string(text)
}

// Every endpoint, asked by a user of every role, by a stranger, and at the Unix socket.
func TestRolesOverTLS(t *testing.T) {
	b := openBooth(t)
	tokens := map[string]string{}
	for _, r := range access.Roles {
		tokens[string(r)] = b.user(string(r), r)
	}
	unix := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", b.socket)
	}}}
	defer unix.CloseIdleConnections()
	clients := map[string]*http.Client{}
	for name := range tokens {
		clients[name] = b.client()
	}
	for pattern, want := range allowed {
		method, path, ok := strings.Cut(strings.ReplaceAll(pattern, "{name}", "x"), " ")
		if !ok {
			method, path = "PUT", "/whatever"
		}
		for name, token := range tokens {
			b.later(time.Minute)
			status, text := b.ask(clients[name], token, method, path, `{"operator":"somebody else"}`)
			may := want == "anybody" || slices.Contains(strings.Fields(want), name)
			if may != (status == http.StatusOK) || !may && status != http.StatusForbidden || may && !strings.Contains(text, pattern) {
				t.Errorf("%s by %s: %d %s", pattern, name, status, text)
			}
			b.mu.Lock()
			last := ""
			if len(b.requests) > 0 {
				last = b.requests[len(b.requests)-1]
			}
			b.mu.Unlock()
			if may && want != "anybody" && last != "user:"+name+" "+pattern {
				t.Errorf("%s by %s is known as %q", pattern, name, last)
			}
		}
		b.later(time.Minute)
		status, _ := b.ask(b.client(), "", method, path, "")
		if (want == "anybody") != (status == http.StatusOK) || want != "anybody" && status != http.StatusUnauthorized {
			t.Errorf("%s by a stranger: %d", pattern, status)
		}
		r, err := http.NewRequestWithContext(t.Context(), method, "http://pollux"+path, strings.NewReader(`{"operator":"root"}`))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := unix.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			t.Errorf("%s at the Unix socket: %d", pattern, resp.StatusCode)
		}
	}
}

func TestWhoIsLetIn(t *testing.T) {
	b := openBooth(t)
	token := b.user("jane", access.Viewer)
	other, _ := access.NewToken(b.id.CAFingerprint(), "jane", access.Viewer, 0)
	nobody, _ := access.NewToken(b.id.CAFingerprint(), "joe", access.Viewer, 0)
	for name, header := range map[string][]string{
		"no token":       nil,
		"two tokens":     {"Bearer " + token, "Bearer " + token},
		"another scheme": {"Basic " + token},
		"a bare token":   {token},
		"no secret":      {"Bearer"},
		"another's":      {"Bearer " + other.String()},
		"nobody's":       {"Bearer " + nobody.String()},
		"cut off":        {"Bearer " + token[:len(token)-4]},
		"very long":      {"Bearer " + strings.Repeat("x", 8<<10)},
	} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+b.address()+"/api/v1/status", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header["Authorization"] = header
		resp, err := b.client().Do(r)
		if err != nil {
			t.Fatal(err)
		}
		var e Error
		if err := json.NewDecoder(resp.Body).Decode(&e); err != nil || e.Code != CodeUnauthorized {
			t.Errorf("%s: %+v %v", name, e, err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusUnauthorized || !strings.HasPrefix(resp.Header.Get("WWW-Authenticate"), "Bearer") {
			t.Errorf("%s: %s %v", name, resp.Status, resp.Header)
		}
	}
	c := b.client()
	if status, text := b.ask(c, token, "GET", "/api/v1/status", ""); status != http.StatusOK {
		t.Errorf("%d %s", status, text)
	}
	// A token that was taken back is not good any more, on the connection on which it was, too.
	b.mu.Lock()
	u := b.table.Users["jane"]
	b.table.Apply(access.Change{Remove: &u})
	b.mu.Unlock()
	if status, _ := b.ask(c, token, "GET", "/api/v1/status", ""); status != http.StatusUnauthorized {
		t.Errorf("a removed user: %d", status)
	}
	// The refusals are recorded, without any token.
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.recorded) == 0 || strings.Contains(fmt.Sprint(b.recorded), token) {
		t.Errorf("recorded: %v", b.recorded)
	}
}

// A connection that is one user's does not become another's.
func TestOneUserAConnection(t *testing.T) {
	b := openBooth(t)
	jane, joe := b.user("jane", access.Viewer), b.user("joe", access.Viewer)
	c := b.client()
	if status, _ := b.ask(c, jane, "GET", "/api/v1/status", ""); status != http.StatusOK {
		t.Fatal(status)
	}
	if status, _ := b.ask(c, joe, "GET", "/api/v1/status", ""); status != http.StatusTooManyRequests {
		t.Errorf("%d", status)
	}
}

func TestOurClient(t *testing.T) {
	b := openBooth(t)
	token := b.user("jane", access.Viewer)
	c, err := NewUserClient(b.at, token)
	if err != nil {
		t.Fatal(err)
	}
	// The answer is none that can be read, but it came.
	if _, err := c.Status(t.Context()); !errors.Is(err, &Error{Code: CodeFailed}) || !strings.Contains(err.Error(), "can't be read") {
		t.Errorf("%v", err)
	}
	if _, err := c.Users(t.Context()); !errors.Is(err, &Error{Code: CodeForbidden}) || !strings.Contains(err.Error(), "auditor, administrator") {
		t.Errorf("%v", err)
	}
	b.mu.Lock()
	before := len(b.requests)
	b.mu.Unlock()
	other := openBooth(t)
	foreign, _ := access.NewToken(other.id.CAFingerprint(), "jane", access.Viewer, 0)
	for name, wrong := range map[string]struct{ at, token string }{
		"another member of the name's": {"b@" + b.address(), token},
		"another cluster's token":      {b.at, foreign.String()},
		"a token at another cluster":   {other.at, token},
		"nobody there":                 {"a@127.0.0.1:1", token},
	} {
		c, err := NewUserClient(wrong.at, wrong.token)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Status(t.Context()); !errors.Is(err, &Error{Code: CodeUnavailable}) {
			t.Errorf("%s: %v", name, err)
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.requests) != before || len(other.recorded) != 0 {
		t.Error("a token was shown to whom it is not for")
	}
	for _, bad := range []string{"", "a", "a@", "a@host", "10.0.0.1:7702", "../x@10.0.0.1:1"} {
		if _, err := NewUserClient(bad, token); !errors.Is(err, &Error{Code: CodeInvalid}) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if _, err := NewUserClient(b.at, "pollux1.x"); !errors.Is(err, &Error{Code: CodeInvalid}) {
		t.Errorf("a join token: %v", err)
	}
}

func TestOnlyTLS13(t *testing.T) {
	b := openBooth(t)
	for _, version := range []uint16{tls.VersionTLS10, tls.VersionTLS11, tls.VersionTLS12} {
		c := b.tls()
		c.MinVersion, c.MaxVersion = tls.VersionTLS10, version
		if conn, err := tls.Dial("tcp", b.address(), c); err == nil {
			conn.Close()
			t.Errorf("%s is spoken", tls.VersionName(version))
		}
	}
	c := b.tls()
	c.NextProtos = []string{"h2"}
	if conn, err := tls.Dial("tcp", b.address(), c); err == nil {
		conn.Close()
		t.Error("HTTP/2 is spoken")
	}
	conn, err := tls.Dial("tcp", b.address(), b.tls())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if v := conn.ConnectionState().Version; v != tls.VersionTLS13 {
		t.Errorf("%s", tls.VersionName(v))
	}
	// Plain HTTP gets no answer of the API's.
	raw, err := net.Dial("tcp", b.address())
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	fmt.Fprint(raw, "GET /livez HTTP/1.1\r\nHost: a\r\n\r\n")
	if err := raw.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if said, _ := io.ReadAll(raw); strings.Contains(string(said), "HTTP/1.1 200") {
		t.Errorf("%q", said)
	}
}

// What was recorded of a user's connection gets nothing when it is played again.
func TestAReplayedConnection(t *testing.T) {
	b := openBooth(t)
	token := b.user("jane", access.Administrator)
	raw, err := net.Dial("tcp", b.address())
	if err != nil {
		t.Fatal(err)
	}
	tape := &tape{Conn: raw}
	conn := tls.Client(tape, b.tls())
	fmt.Fprintf(conn, "POST /api/v1/users HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer %s\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}", token)
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%+v %v", resp, err)
	}
	resp.Body.Close()
	conn.Close()
	b.mu.Lock()
	before := len(b.requests)
	b.mu.Unlock()
	again, err := net.Dial("tcp", b.address())
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if err := again.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := again.Write(tape.said); err != nil {
		t.Log("cut off while it was played:", err)
	}
	_, _ = io.Copy(io.Discard, again) // until the gate closes it
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.requests) != before {
		t.Errorf("the replay was taken: %v", b.requests)
	}
}

// tape keeps what is sent.
type tape struct {
	net.Conn
	said []byte
}

func (t *tape) Write(p []byte) (int, error) {
	t.said = append(t.said, p...)
	return t.Conn.Write(p)
}
