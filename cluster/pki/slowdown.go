package pki

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"github.com/pollux-ha/pollux/cluster/throttle"
)

// What an address may try at once, and in the long run, before it has to wait for its answer; how long it waits at
// most. Nobody waits for the failures of others: a good token is answered at once, wherever it comes from.
const (
	wrongPerSecond, wrongBurst = 0.2, 5
	wrongWaitMax               = 8 * time.Second
	wrongAddresses             = 1024
	// How many of the refused are told about.
	toldPerSecond, toldBurst = 0.1, 20
)

// slowdown holds back the answers to wrong tokens. Its zero value is usable.
type slowdown struct {
	once   sync.Once
	wrong  *throttle.Limiter // by address
	told   *throttle.Limiter
	mu     sync.Mutex
	untold int
}

func (s *slowdown) init() {
	s.once.Do(func() {
		s.wrong = throttle.New(wrongPerSecond, wrongBurst, wrongAddresses)
		s.told = throttle.New(toldPerSecond, toldBurst, 1)
	})
}

// delay is how long the answer to a wrong token has to wait.
func (s *slowdown) delay(from net.Addr, now time.Time) time.Duration {
	s.init()
	return min(s.wrong.Take(throttle.Address(from), now), wrongWaitMax)
}

// wait holds back an answer. It ends early, with an error, where the other side says more or goes away: so that a
// connection that has to make room for others does not keep it.
func (s *slowdown) wait(conn net.Conn, refused error) error {
	if !errors.Is(refused, ErrToken) {
		return nil
	}
	now := time.Now()
	d := s.delay(conn.RemoteAddr(), now)
	if d <= 0 {
		return nil
	}
	if err := conn.SetReadDeadline(now.Add(d)); err != nil {
		return err
	}
	var one [1]byte
	if _, err := conn.Read(one[:]); !errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("it did not wait for its answer: %w", err)
	}
	return nil
}

func (i *Issuer) refused(from net.Addr, name string, err error) {
	if i.Refused == nil {
		return
	}
	s := &i.wrong
	s.init()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.told.Take("", time.Now()) > 0 {
		s.untold++
		return
	}
	if len(name) > 63 {
		name = name[:63]
	}
	i.Refused(throttle.Address(from), name, err, s.untold)
	s.untold = 0
}
