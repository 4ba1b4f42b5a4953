package console

import (
	"crypto/tls"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pollux-ha/pollux/cluster/access"
)

// Guessing is slowed down, and recorded within bounds; who has a good token does not suffer for his neighbour.
func TestWrongTokens(t *testing.T) {
	b := openBooth(t)
	good := b.user("jane", access.Viewer)
	wrong, _ := access.NewToken(b.id.CAFingerprint(), "jane", access.Viewer, 0)
	c := b.client()
	for i := range failureBurst {
		if status, _ := b.ask(c, wrong.String(), "GET", "/api/v1/status", ""); status != http.StatusUnauthorized {
			t.Fatalf("wrong token %d: %d", i, status)
		}
	}
	resp, text := b.response(c, wrong.String(), "GET", "/api/v1/status", "")
	after, err := strconv.Atoi(resp.Header.Get("Retry-After"))
	if resp.StatusCode != http.StatusTooManyRequests || err != nil || after < 1 || !strings.Contains(text, "too_many_requests") {
		t.Errorf("one more: %d %v %s", resp.StatusCode, resp.Header, text)
	}
	if status, text := b.ask(b.client(), good, "GET", "/api/v1/status", ""); status != http.StatusOK {
		t.Errorf("a good token from the same address: %d %s", status, text)
	}
	b.later(time.Duration(after) * time.Second)
	if status, _ := b.ask(c, wrong.String(), "GET", "/api/v1/status", ""); status != http.StatusUnauthorized {
		t.Errorf("after the time that was told: %d", status)
	}
	// However often somebody tries, the event log stays readable, and nothing is left out in silence.
	for range 3 * recordBurst {
		b.later(2 * time.Second)
		b.ask(c, wrong.String(), "GET", "/api/v1/status", "")
	}
	b.later(time.Minute)
	b.ask(c, wrong.String(), "GET", "/api/v1/status", "")
	b.mu.Lock()
	defer b.mu.Unlock()
	mentioned, counted := len(b.recorded), 0
	for _, r := range b.recorded {
		counted += r["not_mentioned_before"].(int)
		if r["actor"] != "stranger" || r["from"] != "127.0.0.1" || r["reason"] == "" || r["what"] != "GET /api/v1/status" {
			t.Errorf("recorded: %v", r)
		}
	}
	if want := failureBurst + 1 + 3*recordBurst + 1; mentioned+counted != want || mentioned > recordBurst+20 {
		t.Errorf("%d recorded and %d counted of %d", mentioned, counted, want)
	}
}

func TestRates(t *testing.T) {
	b := openBooth(t)
	token := b.user("jane", access.Operator)
	c := b.client()
	count := func(token, path string) (n int) {
		for {
			status, text := b.ask(c, token, "GET", path, "")
			if status == http.StatusTooManyRequests {
				return n
			}
			if n++; status != http.StatusOK || n > 10*addressBurst {
				t.Fatalf("after %d: %d %s", n, status, text)
			}
		}
	}
	if n := count(token, "/api/v1/status"); n != userBurst {
		t.Errorf("a user asks %d times at once", n)
	}
	// The address has asked once more than was answered. Nobody needs a token to have used it up.
	if n := count("", "/livez"); n != addressBurst-userBurst-1 {
		t.Errorf("an address asks %d times more", n)
	}
	b.later(time.Hour)
	if n := count("", "/livez"); n != addressBurst {
		t.Errorf("an address asks %d times at once", n)
	}
	// At the Unix socket nobody counts.
	local := NewClient(b.socket)
	for range addressBurst + 1 {
		if _, err := call[string](t.Context(), local, http.MethodGet, "/status", nil); err != nil {
			t.Fatal(err)
		}
	}
}

// One user has so much under way at once, and no more; what ends makes room.
func TestRequestsUnderWay(t *testing.T) {
	b := openBooth(t)
	token := b.user("jane", access.Operator)
	b.hold = make(chan chan struct{})
	statuses := make(chan int)
	for range userBusyMax {
		c := b.client()
		go func() {
			status, _ := b.ask(c, token, "POST", "/api/v1/guests/x/protect", "")
			statuses <- status
		}()
	}
	var held []chan struct{}
	for range userBusyMax {
		held = append(held, <-b.hold)
	}
	c := b.client()
	if status, text := b.ask(c, token, "POST", "/api/v1/guests/x/protect", ""); status != http.StatusTooManyRequests || !strings.Contains(text, "under way") {
		t.Errorf("one more: %d %s", status, text)
	}
	// Another user is not concerned.
	go func() {
		status, _ := b.ask(b.client(), b.user("joe", access.Operator), "POST", "/api/v1/guests/x/protect", "")
		statuses <- status
	}()
	held = append(held, <-b.hold)
	for _, h := range held {
		close(h)
	}
	for range held {
		if status := <-statuses; status != http.StatusOK {
			t.Errorf("%d", status)
		}
	}
	b.server.guard.mu.Lock()
	defer b.server.guard.mu.Unlock()
	if len(b.server.guard.busy) != 0 {
		t.Errorf("still under way: %v", b.server.guard.busy)
	}
}

func TestConnectionsOfAUser(t *testing.T) {
	b := openBooth(t)
	token := b.user("jane", access.Viewer)
	for i := range userConnsMax {
		b.later(time.Second)
		if status, text := b.ask(b.client(), token, "GET", "/api/v1/status", ""); status != http.StatusOK {
			t.Fatalf("connection %d: %d %s", i, status, text)
		}
	}
	if status, _ := b.ask(b.client(), token, "GET", "/api/v1/status", ""); status != http.StatusTooManyRequests {
		t.Errorf("one more: %d", status)
	}
}

// Strangers who hold connections keep no user out, whether they say nothing or ask without a token.
func TestStrangersKeepNobodyOut(t *testing.T) {
	b := openBooth(t)
	token := b.user("jane", access.Viewer)
	mine := b.client()
	if status, _ := b.ask(mine, token, "GET", "/api/v1/status", ""); status != http.StatusOK {
		t.Fatal(status)
	}
	for range 2 * strangersMax {
		c, err := tls.Dial("tcp", b.address(), b.tls())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	for i, c := range []*http.Client{mine, b.client()} {
		if status, text := b.ask(c, token, "GET", "/api/v1/status", ""); status != http.StatusOK {
			t.Errorf("connection %d of a user: %d %s", i, status, text)
		}
	}
}

func TestBounds(t *testing.T) {
	b := openBooth(t)
	token := b.user("jane", access.Administrator)
	c := b.client()
	if status, text := b.ask(c, token, "POST", "/api/v1/users", `{"operator":"`+strings.Repeat("x", maxRequestBytes)+`"}`); status != http.StatusBadRequest || !strings.Contains(text, "too large") {
		t.Errorf("a long body: %d %s", status, text)
	}
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+b.address()+"/livez", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("X", strings.Repeat("x", 2*maxHeaderBytes))
	if resp, err := b.client().Do(r); err == nil {
		resp.Body.Close()
		if resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
			t.Errorf("a long header: %s", resp.Status)
		}
	}
	if h := b.server.http; h.ReadHeaderTimeout <= 0 || h.ReadTimeout <= 0 || h.MaxHeaderBytes != maxHeaderBytes {
		t.Errorf("a request may take %v, its header %v and %d bytes", h.ReadTimeout, h.ReadHeaderTimeout, h.MaxHeaderBytes)
	}
}

func TestSeconds(t *testing.T) {
	const most = 31 * 24 * time.Hour
	for in, want := range map[float64]time.Duration{0.5: time.Second / 2, -1: -time.Second, 1e300: most, -1e300: -most, 0: 0} {
		if got := seconds(in); got != want {
			t.Errorf("%v is %v", in, got)
		}
	}
}

// Who comes through the Unix socket says who he is, but he can't be a user.
func TestNobodyPlaysAUser(t *testing.T) {
	b := openBooth(t)
	c := NewClient(b.socket)
	if _, err := call[string](t.Context(), c, http.MethodPost, "/users", signed{Operator: "user:jane"}); err == nil || !strings.Contains(err.Error(), "users with a token") {
		t.Errorf("%v", err)
	}
	if _, err := call[string](t.Context(), c, http.MethodPost, "/users", signed{Operator: "root"}); err != nil {
		t.Error(err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.requests) != 1 || b.requests[0] != "root POST /api/v1/users" {
		t.Errorf("%v", b.requests)
	}
}
