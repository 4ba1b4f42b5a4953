package main

import (
	"bufio"
	"encoding/json"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Reading is what a client gets for each line that it sends.
type Reading struct {
	MonotonicNs int64 `json:"monotonic_ns"`
	RealtimeNs  int64 `json:"realtime_ns"`
	// Since the program began: how often both clocks were read, how far they stepped back at most, from one
	// reading to the next, and how far ahead.
	Samples         uint64 `json:"samples"`
	MonotonicBackNs int64  `json:"monotonic_back_ns"`
	RealtimeBackNs  int64  `json:"realtime_back_ns"`
	MonotonicJumpNs int64  `json:"monotonic_jump_ns"`
	RealtimeJumpNs  int64  `json:"realtime_jump_ns"`
}

// watch reads the clocks, through the vDSO as programs do, and through the system call.
type watch struct {
	mu         sync.Mutex
	start      time.Time
	mono, real int64
	seen       Reading
}

// burst is how many readings are made between two rests; without a rest a guest with one CPU does nothing else.
const (
	burst = 500
	rest  = 2 * time.Millisecond
)

func (w *watch) loop() {
	for {
		for range burst {
			w.read()
		}
		w.readBySystemCall()
		time.Sleep(rest)
	}
}

// read reads both clocks as Go's runtime does: through the vDSO.
func (w *watch) read() Reading {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	if w.start.IsZero() {
		w.start = now
	}
	w.note(int64(now.Sub(w.start)), now.UnixNano())
	return w.seen
}

// readBySystemCall sees to it that the kernel's own view of its clocks moves the same way: its readings lie between those
// of the vDSO.
func (w *watch) readBySystemCall() {
	w.mu.Lock()
	defer w.mu.Unlock()
	var before, after, real unix.Timespec
	if unix.ClockGettime(unix.CLOCK_MONOTONIC, &before) != nil || unix.ClockGettime(unix.CLOCK_REALTIME, &real) != nil ||
		unix.ClockGettime(unix.CLOCK_MONOTONIC, &after) != nil {
		return
	}
	w.seen.MonotonicBackNs = max(w.seen.MonotonicBackNs, before.Nano()-after.Nano())
	w.seen.RealtimeBackNs = max(w.seen.RealtimeBackNs, w.real-real.Nano())
}

func (w *watch) note(mono, real int64) {
	if s := &w.seen; s.Samples > 0 {
		s.MonotonicBackNs, s.MonotonicJumpNs = max(s.MonotonicBackNs, w.mono-mono), max(s.MonotonicJumpNs, mono-w.mono)
		s.RealtimeBackNs, s.RealtimeJumpNs = max(s.RealtimeBackNs, w.real-real), max(s.RealtimeJumpNs, real-w.real)
	}
	w.mono, w.real = mono, real
	w.seen.Samples++
	w.seen.MonotonicNs, w.seen.RealtimeNs = mono, real
}

func (w *watch) answer(c net.Conn) error {
	out := json.NewEncoder(c)
	for in := bufio.NewScanner(c); in.Scan(); {
		if err := out.Encode(w.read()); err != nil {
			return err
		}
	}
	return nil
}
