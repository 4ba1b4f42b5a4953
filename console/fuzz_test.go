package console

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"

	"go.uber.org/zap"

	"github.com/pollux-ha/pollux/cluster/access"
	"github.com/pollux-ha/pollux/cluster/pact"
)

// requests are all that can be asked with a body.
func requests() map[string]func(*http.Request) (any, error) {
	return map[string]func(*http.Request) (any, error){
		"create": decode[CreateRequest], "start": decode[StartRequest], "stop": decode[StopRequest], "delete": decode[DeleteRequest],
		"switchover": decode[SwitchoverRequest], "protect": decode[ProtectRequest], "reset": decode[ResetRequest], "fault": decode[FaultRequest], "dump": decode[DumpRequest],
		"agent": decode[AgentRequest], "balloon": decode[BalloonRequest], "cpu": decode[SetCPURequest], "token": decode[TokenRequest],
		"remove": decode[RemoveMemberRequest], "user": decode[AddUserRequest], "remove user": decode[RemoveUserRequest], "renew": decode[RenewRequest],
	}
}

func decode[T any](r *http.Request) (any, error) { return read[T](r) }

// A user's request says that it is his, whatever it says; what can't be read is refused as such; what can is said
// again in the same words.
func FuzzRequest(f *testing.F) {
	f.Add([]byte(`{"name":"g","spec":{"hosts":["a","b"],"kernel":"k","memory_bytes":4096,"cpus":1,"disks":[{"size_bytes":512}],"nets":[{"mac":"52:54:00:12:34:56","bridge":"lan"}]},"start":true}`))
	f.Add([]byte(`{"host":"b","accept_loss":"all","hosts_off":["a"],"confirm":"g","operator":"root","wait_seconds":-1}`))
	f.Add([]byte(`{"force":true,"timeout_seconds":1e300,"wait_seconds":0.5,"dry_run":true}`))
	f.Add([]byte(`{"name":"jane","role":"operator","operator":"user:joe"}`))
	f.Add([]byte(`{"OPERATOR":"x","Operator":"y","operator":null}`))
	f.Add([]byte(`{"memory_bytes":18446744073709551616}`))
	f.Add([]byte(`[]`))
	f.Add([]byte(nil))
	f.Fuzz(func(t *testing.T, body []byte) {
		for name, decode := range requests() {
			ask := func(caller any, body []byte) (any, error) {
				ctx := t.Context()
				if caller != nil {
					ctx = context.WithValue(ctx, callerKey{}, caller)
				}
				r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://x/", bytes.NewReader(body))
				if err != nil {
					t.Fatal(err)
				}
				return decode(r)
			}
			v, err := ask(access.User{Name: "jane", Role: access.Operator}, body)
			if err != nil {
				if !errors.Is(err, &Error{Code: CodeInvalid}) {
					t.Fatalf("%s: %v", name, err)
				}
				continue
			}
			if got := reflect.ValueOf(v).FieldByName("Operator").String(); got != "user:jane" {
				t.Fatalf("%s by %q", name, got)
			}
			if local, err := ask(nil, body); err == nil && strings.HasPrefix(reflect.ValueOf(local).FieldByName("Operator").String(), userPrefix) {
				t.Fatalf("%s: somebody plays a user: %+v", name, local)
			}
			again, err := json.Marshal(v)
			if err != nil {
				t.Fatal(err)
			}
			w, err := ask(access.User{Name: "jane"}, again)
			if err != nil {
				t.Fatalf("%s: %s: %v", name, again, err)
			}
			if twice, _ := json.Marshal(w); !bytes.Equal(again, twice) {
				t.Fatalf("%s: %s, then %s", name, again, twice)
			}
			// What is looked at before anything is done must not fail in its own way.
			switch q := v.(type) {
			case CreateRequest:
				_, _ = q.Spec.Validate(), pact.ValidGuestName(q.Name)
			case StopRequest:
				if d := seconds(q.TimeoutSeconds); (d < 0) != (q.TimeoutSeconds <= -1e-9) {
					t.Fatalf("%v seconds are %v", q.TimeoutSeconds, d)
				}
			}
		}
	})
}

// from is a connection from somewhere.
type from struct{ net.Conn }

func (from) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 7} }

// FuzzStranger: whatever somebody without a token sends, he learns that the daemon lives, and nothing else, and nothing
// is done.
func FuzzStranger(f *testing.F) {
	token, _ := access.NewToken(strings.Repeat("ab", 32), "jane", access.Administrator, 0)
	for _, s := range []string{
		"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n",
		"GET /api/v1/status HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer " + token.String() + "\r\n\r\n",
		"POST /api/v1/guests/../users HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}",
		"DELETE //api/v1/guests/%2e%2e HTTP/1.0\r\nAuthorization: Bearer\r\nAuthorization: Bearer x\r\n\r\n",
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", "CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(raw)))
		if err != nil {
			return
		}
		s := &Server{log: zap.NewNop(), guard: newGuard(
			func(string) (access.User, error) { return access.User{}, access.ErrToken }, func(string, map[string]any) {})}
		endpoints := s.endpoints()
		for i, e := range endpoints {
			if !e.open {
				endpoints[i].answer = func(*http.Request) (any, error) {
					t.Fatalf("%s was asked by a stranger: %q", e.pattern, raw)
					return nil, nil
				}
			}
		}
		w := httptest.NewRecorder()
		v := &visitor{Conn: from{}, leave: func() {}}
		s.handler(endpoints).ServeHTTP(w, r.WithContext(withOrigin(t.Context(), v)))
		if w.Code == http.StatusOK && strings.TrimSpace(w.Body.String()) != `{"live":true}` {
			t.Fatalf("%d %s", w.Code, w.Body)
		}
	})
}
