// Package throttle limits how often something may happen: a bucket for each key, which fills at a steady rate and
// holds a burst. It has no clock: callers say what time it is.
package throttle

import (
	"math"
	"net"
	"net/netip"
	"sync"
	"time"
)

// Limiter limits by key. It is safe for concurrent use.
type Limiter struct {
	perSecond, burst float64
	keysMax          int

	mu      sync.Mutex
	buckets map[string]bucket
}

type bucket struct {
	left float64
	at   time.Time
}

// New makes a limiter: perSecond in the long run, burst at once, for at most keysMax keys at a time. Where more
// are busy at once, the one that has been quiet for longest is forgotten.
func New(perSecond, burst float64, keysMax int) *Limiter {
	return &Limiter{perSecond: perSecond, burst: burst, keysMax: keysMax, buckets: map[string]bucket{}}
}

// Take takes one from a key's bucket and returns 0, or how long it will be until there is one.
func (l *Limiter) Take(key string, now time.Time) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	b, ok := l.buckets[key]
	if !ok {
		l.room(now)
		b = bucket{left: l.burst, at: now}
	}
	b = l.filled(b, now)
	wait := time.Duration(0)
	if b.left >= 1 {
		b.left--
	} else {
		wait = max(time.Duration(math.Ceil((1-b.left)/l.perSecond*float64(time.Second))), 1)
	}
	l.buckets[key] = b
	return wait
}

// filled is a bucket as of now. A clock that went back fills nothing.
func (l *Limiter) filled(b bucket, now time.Time) bucket {
	if d := now.Sub(b.at); d > 0 {
		b.left, b.at = min(l.burst, b.left+d.Seconds()*l.perSecond), now
	}
	return b
}

// room makes room for one more key: full buckets say nothing that a new one doesn't.
func (l *Limiter) room(now time.Time) {
	if len(l.buckets) < l.keysMax {
		return
	}
	oldest, since := "", now
	for k, b := range l.buckets {
		if l.filled(b, now).left >= l.burst {
			delete(l.buckets, k)
			continue
		}
		if oldest == "" || b.at.Before(since) {
			oldest, since = k, b.at
		}
	}
	if len(l.buckets) >= l.keysMax {
		delete(l.buckets, oldest)
	}
}

// Address is the key of a remote address: an IPv4 address, or an IPv6 network of 64 bits, of which one machine
// may use every address.
func Address(a net.Addr) string {
	if a == nil {
		return ""
	}
	text := a.String()
	p, err := netip.ParseAddrPort(text)
	if err != nil {
		return text
	}
	ip := p.Addr().Unmap().WithZone("")
	if ip.Is4() {
		return ip.String()
	}
	network, err := ip.Prefix(64)
	if err != nil {
		return ip.String()
	}
	return network.String()
}
