package main

import (
	"cmp"
	"context"
	"encoding/json"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/pollux-ha/pollux/cluster/agent"
	"github.com/pollux-ha/pollux/cluster/pact"
	"github.com/pollux-ha/pollux/console"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"pollux": main})
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(e *testscript.Env) error {
			// A socket's path has room for 107 bytes, and scripts may work in deep directories.
			dir, err := os.MkdirTemp("", "pollux")
			if err != nil {
				return err
			}
			e.Defer(func() { os.RemoveAll(dir) })
			e.Setenv(socketVariable, filepath.Join(dir, "s"))
			e.Setenv("SUDO_USER", "alice")
			return nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"daemon": serveDaemon,
			"exits":  checkExit,
		},
	})
}

// checkExit is the command `exits CODE COMMAND...`: it runs the command, which must end with that code.
func checkExit(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND [ARG...]")
	}
	err := ts.Exec(args[1], args[2:]...)
	got := "exit status 0"
	if err != nil {
		got = err.Error()
	}
	if !strings.Contains(got, "exit status "+args[0]) {
		ts.Fatalf("%s: %s, wanted exit status %s", strings.Join(args[1:], " "), got, args[0])
	}
}

// serveDaemon is the command `daemon`: from then on a daemon answers as the real one would, from a
// small cluster that never changes. Requests that it takes are told on its log, requests.txt.
func serveDaemon(ts *testscript.TestScript, _ bool, _ []string) {
	l, err := net.Listen("unix", ts.Getenv(socketVariable))
	ts.Check(err)
	log := ts.MkAbs("requests.txt")
	mux := http.NewServeMux()
	answer := func(w http.ResponseWriter, v any) {
		if e, ok := v.(*console.Error); ok {
			w.WriteHeader(e.Code.HTTPStatus())
		}
		json.NewEncoder(w).Encode(v)
	}
	guest := console.Guest{
		Name: "ledger", Desired: pact.DesiredRunning, Mode: pact.Protected, Term: 7, Primary: "a", Replica: "b", State: "protected",
		Spec: pact.Spec{Hosts: []string{"a", "b"}, Kernel: "builtin:ledger", MemoryBytes: 64 << 20, CPUs: 1},
	}
	solo := guest
	solo.Name, solo.State, solo.Mode, solo.Replica, solo.Detail = "lonely", "solo", pact.Solo, "", "waits for host b"
	find := func(r *http.Request) any {
		switch name := r.PathValue("name"); name {
		case "ledger":
			return guest
		case "lonely":
			return solo
		default:
			return console.Errorf(console.CodeNoSuchGuest, "there is no guest %q", name)
		}
	}
	mux.HandleFunc("GET /api/v1/status", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, console.ClusterStatus{
			Host: "a", Role: "host", Cluster: "c1", Leader: "w", Quorum: console.Quorum{Voters: 3, Reachable: 3, Needed: 2, Tolerates: 1, Healthy: true},
			Members: []console.Member{
				{Name: "a", Role: "host", State: "alive", Voter: true, Address: "10.0.0.1:7700"},
				{Name: "b", Role: "host", State: "alive", Voter: true, Address: "10.0.0.2:7700"},
				{Name: "w", Role: "witness", State: "alive", Voter: true, Leader: true, Address: "10.0.0.3:7700"},
			},
			Guests: []console.Guest{guest, solo}, Alarms: []string{"lonely is not protected"},
		})
	})
	mux.HandleFunc("GET /api/v1/guests", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, []console.Guest{guest, solo})
	})
	mux.HandleFunc("GET /api/v1/guests/{name}", func(w http.ResponseWriter, r *http.Request) { answer(w, find(r)) })
	mux.HandleFunc("GET /api/v1/events", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, []console.Event{
			{Time: time.Date(2025, 1, 2, 3, 4, 5, 0, time.UTC), Host: "a", Kind: "start", Guest: "ledger", Term: 1, Actor: "alice"},
			{Time: time.Date(2025, 1, 2, 3, 4, 6, 0, time.UTC), Host: "a", Kind: "protect", Guest: "ledger", Term: 2, Detail: map[string]any{"replica": "b"}},
		})
	})
	note := func(w http.ResponseWriter, r *http.Request) {
		var body map[string]any
		json.NewDecoder(r.Body).Decode(&body)
		b, _ := json.Marshal(body)
		f, err := os.OpenFile(log, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		if err == nil {
			f.WriteString(r.Method + " " + strings.TrimPrefix(r.URL.Path, "/api/v1/") + " " + string(b) + "\n")
			f.Close()
		}
		switch {
		case r.URL.Path == "/api/v1/guests":
			answer(w, guest)
		case r.URL.Path == "/api/v1/users":
			answer(w, console.NewUser{User: console.User{Name: "jane", Role: "operator"}, Token: "secret-token"})
		case r.URL.Path == "/api/v1/certificates/renew":
			answer(w, console.MemberCertificate{Name: "a", CertificateTimes: console.CertificateTimes{Serial: "47", NotAfter: time.Date(2035, 1, 2, 3, 4, 5, 0, time.UTC)}})
		case strings.HasPrefix(r.URL.Path, "/api/v1/members/"):
			answer(w, console.Member{Name: "b", Role: "host"})
		case r.URL.Path == "/api/v1/users/jane":
			answer(w, console.User{Name: "jane", Role: "operator"})
		case r.URL.Path == "/api/v1/tokens":
			answer(w, console.Token{Token: "secret-token", Name: "b", Role: "host"})
		case r.PathValue("verb") == "agent" && r.PathValue("name") == "lonely":
			answer(w, console.Errorf(console.CodeUnavailable, "%v", agent.ErrNone))
		case r.PathValue("verb") == "agent":
			said := map[any]string{"info": `{"id":"debian","pretty-name":"Debian GNU/Linux"}`, "freeze": "3"}[body["command"]]
			answer(w, console.AgentAnswer{Guest: r.PathValue("name"), Command: body["command"].(string), Answer: json.RawMessage(cmp.Or(said, "{}"))})
		case r.PathValue("verb") == "switchover" && r.PathValue("name") == "lonely":
			answer(w, console.Errorf(console.CodeUnprotected, "guest lonely has no replica to switch over to"))
		default:
			answer(w, find(r))
		}
	}
	mux.HandleFunc("POST /api/v1/guests", note)
	mux.HandleFunc("POST /api/v1/tokens", note)
	mux.HandleFunc("GET /api/v1/users", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, []console.User{{Name: "jane", Role: "operator", Created: time.Unix(0, 0)}, {Name: "vera", Role: "viewer", Created: time.Unix(0, 0)}})
	})
	mux.HandleFunc("POST /api/v1/users", note)
	mux.HandleFunc("GET /api/v1/certificates", func(w http.ResponseWriter, _ *http.Request) {
		until := time.Date(2035, 1, 2, 3, 4, 5, 0, time.UTC)
		answer(w, console.Certificates{CA: console.CertificateTimes{Serial: "1", NotAfter: until.AddDate(20, 0, 0)}, Members: []console.MemberCertificate{
			{Name: "a", CertificateTimes: console.CertificateTimes{Serial: "46", NotAfter: until}, Issuer: true},
		}})
	})
	mux.HandleFunc("POST /api/v1/certificates/renew", note)
	mux.HandleFunc("DELETE /api/v1/users/{user}", note)
	mux.HandleFunc("DELETE /api/v1/members/{member}", note)
	mux.HandleFunc("POST /api/v1/guests/{name}/{verb}", note)
	mux.HandleFunc("DELETE /api/v1/guests/{name}", note)
	server := &http.Server{Handler: mux}
	go server.Serve(l)
	ts.Defer(func() { server.Shutdown(context.Background()) })
}
