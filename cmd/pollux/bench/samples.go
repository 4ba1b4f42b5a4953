package bench

import (
	"math"
	"slices"
	"time"
)

// samples are measured values in one unit.
type samples []float64

func (s *samples) add(v float64) { *s = append(*s, v) }

// addTime adds a duration in milliseconds.
func (s *samples) addTime(d time.Duration) { s.add(milliseconds(d)) }

// quantiles are the order statistics that every figure comes with.
type quantiles struct {
	p50, p90, p99 float64
}

// quantiles takes the nearest rank: every figure is one that was measured. None: all zero.
func (s samples) quantiles() quantiles {
	if len(s) == 0 {
		return quantiles{}
	}
	sorted := slices.Sorted(slices.Values(s))
	at := func(q float64) float64 {
		return sorted[max(int(math.Ceil(q*float64(len(sorted))))-1, 0)]
	}
	return quantiles{p50: at(0.50), p90: at(0.90), p99: at(0.99)}
}

func (s samples) median() float64 { return s.quantiles().p50 }

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// phases collects how long the parts of something took.
type phases map[string]*samples

// add adds a duration to a part.
func (p phases) add(name string, d time.Duration) {
	s := p[name]
	if s == nil {
		s = new(samples)
		p[name] = s
	}
	s.add(float64(d) / float64(time.Microsecond))
}

// summary is what a row tells of them.
func (p phases) summary() map[string]Phase {
	if len(p) == 0 {
		return nil
	}
	m := make(map[string]Phase, len(p))
	for name, s := range p {
		q := s.quantiles()
		m[name] = Phase{Unit: "us", P50: round(q.p50), P90: round(q.p90), P99: round(q.p99), Samples: len(*s)}
	}
	return m
}

// round keeps four digits: more would be noise that hides differences.
func round(v float64) float64 {
	if v == 0 || math.IsInf(v, 0) || math.IsNaN(v) {
		return 0
	}
	scale := math.Pow(10, 3-math.Floor(math.Log10(math.Abs(v))))
	return math.Round(v*scale) / scale
}
