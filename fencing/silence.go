package fencing

import (
	"sync"
	"time"
)

// Silence notices that nothing has been heard for a while. It is told of every sign of life and asked
// now and then; where it was not asked for a while itself, the process did not run, what has arrived
// meanwhile was not read yet, and the peer gets its time again.
type Silence struct {
	mu      sync.Mutex
	limit   time.Duration
	armed   bool
	heard   time.Duration // last sign of life, or when it was armed
	asked   time.Duration // last Check
	stretch time.Duration // added to limit, once
}

// NewSilence makes a detector. It is not armed.
func NewSilence() *Silence { return &Silence{} }

// Arm starts the detector: it fires after limit without a sign of life. For the first one the peer has
// limit+grace from now.
func (s *Silence) Arm(now, limit, grace time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.limit = limit
	s.armed, s.heard, s.asked, s.stretch = true, now, now, grace
}

// Disarm stops it.
func (s *Silence) Disarm() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.armed = false
}

// Heard notes a sign of life.
func (s *Silence) Heard(now time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.heard = max(s.heard, now)
	s.stretch = 0
}

// Check reports that the peer has been silent for too long; it does so once, and disarms itself. It is
// meant to be called several times within limit.
func (s *Silence) Check(now time.Duration) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.armed {
		return false
	}
	late := now - s.asked
	s.asked = now
	if late > s.limit {
		s.heard = max(s.heard, now)
		return false
	}
	if now-s.heard <= s.limit+s.stretch {
		return false
	}
	s.armed = false
	return true
}

// Since is how long ago the last sign of life was.
func (s *Silence) Since(now time.Duration) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return now - s.heard
}
