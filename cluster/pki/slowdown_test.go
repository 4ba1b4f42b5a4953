package pki

import (
	"errors"
	"net"
	"os"
	"strings"
	"testing"
	"time"
)

func TestGuessingIsSlow(t *testing.T) {
	var s slowdown
	now := time.Unix(1e9, 0)
	at := func(a string) net.Addr { return &net.TCPAddr{IP: net.ParseIP(a), Port: 7} }
	for i := range wrongBurst {
		if d := s.delay(at("10.0.0.1"), now); d != 0 {
			t.Errorf("wrong token %d waits %v", i, d)
		}
	}
	if d := s.delay(at("10.0.0.1"), now); d < time.Second || d > wrongWaitMax {
		t.Errorf("one more waits %v", d)
	}
	if d := s.delay(at("10.0.0.2"), now); d != 0 {
		t.Errorf("another address waits %v", d)
	}
	if d := s.delay(at("10.0.0.1"), now.Add(time.Minute)); d != 0 {
		t.Errorf("after a minute: %v", d)
	}
}

// held is a connection that notes how long its reader is ready to wait, and ends that wait at once.
type held struct {
	net.Conn
	until time.Time
	read  error
}

func (h *held) RemoteAddr() net.Addr              { return &net.TCPAddr{IP: net.IPv4(10, 0, 0, 1)} }
func (h *held) SetReadDeadline(t time.Time) error { h.until = t; return nil }
func (h *held) Read([]byte) (int, error)          { return 0, h.read }

func TestOnlyWrongTokensWait(t *testing.T) {
	var s slowdown
	waits := func(refused, read error) (bool, error) {
		h := &held{read: read}
		err := s.wait(h, refused)
		return !h.until.IsZero(), err
	}
	for range wrongBurst {
		if waited, err := waits(ErrToken, net.ErrClosed); waited || err != nil {
			t.Errorf("within the burst: %v %v", waited, err)
		}
	}
	if waited, err := waits(ErrToken, os.ErrDeadlineExceeded); !waited || err != nil {
		t.Errorf("beyond the burst: %v %v", waited, err)
	}
	if waited, err := waits(ErrToken, net.ErrClosed); !waited || !errors.Is(err, net.ErrClosed) {
		t.Errorf("cut off meanwhile: %v %v", waited, err)
	}
	if waited, err := waits(errors.New("the event log can't be written"), net.ErrClosed); waited || err != nil {
		t.Errorf("another refusal: %v %v", waited, err)
	}
}

// Who was not let in is told of, with his address and the name that he gave, but not without end; his token is not.
func TestTheRefusedAreToldOf(t *testing.T) {
	s := found(t, "a")
	told := make(chan string, 2*toldBurst)
	s.issuer.Refused = func(from, name string, err error, before int) { told <- from + " " + name + " " + err.Error() }
	token := s.token(t, "b", RoleHost, time.Minute)
	forged := Token{CAFingerprint: s.id.CAFingerprint(), Address: s.address, Secret: make([]byte, secretBytes)}
	if _, _, err := Join(t.Context(), t.TempDir(), "b", forged.String()); err == nil {
		t.Fatal("let in with a forged token")
	}
	if got := <-told; !strings.HasPrefix(got, "127.0.0.1 b ") || strings.Contains(got, forged.String()) {
		t.Errorf("%q", got)
	}
	for range 3 * toldBurst {
		s.issuer.refused(&net.TCPAddr{IP: net.IPv4(10, 0, 0, 1)}, "x", ErrToken)
	}
	if n := len(told); n < toldBurst-2 || n > toldBurst+10 {
		t.Errorf("told %d times", n)
	}
	// The good token is good still, and at once.
	if _, _, err := Join(t.Context(), t.TempDir(), "b", token); err != nil {
		t.Error(err)
	}
}
