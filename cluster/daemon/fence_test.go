package daemon

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pollux-ha/pollux/cluster/config"
	"github.com/pollux-ha/pollux/cluster/pact"
)

// scene is what happens around a fencer, and its record.
type scene struct {
	mu  sync.Mutex
	log []string

	silent     bool // the loser's daemon does not answer
	falters    bool // its daemon answers every other time
	asked      int
	stopsAfter time.Duration // it answers, and has stopped by then; 0: never
	refuse     int           // how often the cluster refuses
	cut        error
	begun      time.Time
	wg         sync.WaitGroup
}

func (s *scene) did(format string, a ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.log = append(s.log, fmt.Sprintf(format, a...))
}

func (s *scene) holdouts(_ context.Context, _ string, losers []loser) (string, error) {
	s.asked++
	switch {
	case s.silent, s.falters && s.asked%2 == 0:
		return "", errors.New("no route")
	case s.stopsAfter == 0 || time.Since(s.begun) < s.stopsAfter:
		return losers[0].guest, nil
	}
	return "", nil
}

func (s *scene) permit(_ context.Context, host, _ string) (string, error) {
	if s.refuse > 0 {
		s.refuse--
		return host + " is needed", nil
	}
	s.did("permit %s", host)
	return "", nil
}

func (s *scene) release(_ context.Context, host string) error { s.did("release %s", host); return nil }

func (s *scene) fenced(host string, stage fenceStage, l loser, _ string) {
	s.did("%s %s %s after %v", host, stage, l.guest, time.Since(s.begun))
}

func (s *scene) Cut(context.Context) error { s.did("cut"); return s.cut }
func (s *scene) Cycle(context.Context) (bool, error) {
	s.did("cycle")
	return s.cut == nil, s.cut
}

func (s *scene) begin(f func()) bool { s.wg.Go(f); return true }

// play has guests of host a taken over, and returns what the fencer has done in the end.
func (s *scene) play(t *testing.T, when config.FenceWhen, reboot bool) string {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s.begun = time.Now()
		f := newFencer(s, when, 5*time.Second, map[string]fenceDevice{"a": {s, reboot}}, s.begin)
		f.lost(t.Context(), loser{"g", 5, pact.Party{Host: "a", Incarnation: 1}})
		f.lost(t.Context(), loser{"h", 7, pact.Party{Host: "a", Incarnation: 2}})
		f.lost(t.Context(), loser{"i", 7, pact.Party{Host: "c", Incarnation: 3}}) // no device
		s.wg.Wait()
		if len(f.active) > 0 {
			t.Errorf("still active: %v", f.active)
		}
	})
	return strings.Join(s.log, ", ")
}

func TestFencer(t *testing.T) {
	for name, c := range map[string]struct {
		s      *scene
		when   config.FenceWhen
		reboot bool
		want   string
	}{
		"a host that is silent": {
			s:    &scene{silent: true},
			want: "a waiting g after 0s, permit a, a fencing g after 5s, cut, a off g after 5s, release a",
		},
		"a host that hangs on to its guest": {
			s:    &scene{},
			want: "a waiting g after 0s, permit a, a fencing g after 35s, cut, a off g after 35s, release a",
		},
		"a loser that stops by itself": {
			s:    &scene{stopsAfter: 3 * time.Second},
			want: "a waiting g after 0s, a not-needed g after 3s",
		},
		"a daemon that is hard to hear": {
			s:    &scene{falters: true, stopsAfter: 20 * time.Second},
			want: "a waiting g after 0s, a not-needed g after 20s",
		},
		"permission is given late": {
			s:    &scene{silent: true, refuse: 4},
			want: "a waiting g after 0s, permit a, a fencing g after 7s, cut, a off g after 7s, release a",
		},
		"permission is never given": {
			s:    &scene{silent: true, refuse: 1 << 30},
			want: "a waiting g after 0s, a refused g after 1m5s",
		},
		"an agent that fails": {
			s:    &scene{silent: true, cut: errors.New("broken")},
			want: "a waiting g after 0s, permit a, a fencing g after 5s, cut, a failed g after 5s, release a",
		},
		"reboot": {
			s: &scene{silent: true}, reboot: true,
			want: "a waiting g after 0s, permit a, a fencing g after 5s, cycle, a off g after 5s, release a",
		},
		"off": {s: &scene{silent: true}, when: config.FenceOff, want: ""},
	} {
		t.Run(name, func(t *testing.T) {
			if c.when == "" {
				c.when = config.FenceAfterDecision
			}
			if got := c.s.play(t, c.when, c.reboot); got != c.want {
				t.Errorf("%s\nexpected %s", got, c.want)
			}
		})
	}
}

// The end of the daemon ends a fencing before its shot.
func TestFencerEndsWithTheDaemon(t *testing.T) {
	s := &scene{silent: true}
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		f := newFencer(s, config.FenceAfterDecision, time.Hour, map[string]fenceDevice{"a": {s, false}}, s.begin)
		f.lost(ctx, loser{"g", 5, pact.Party{Host: "a", Incarnation: 1}})
		time.Sleep(time.Minute)
		cancel()
		s.wg.Wait()
	})
	if got := strings.Join(s.log, ", "); strings.Contains(got, "cut") || strings.Contains(got, "permit") {
		t.Error(got)
	}
}
