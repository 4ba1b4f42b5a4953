package quorum

import (
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/pollux-ha/pollux/cluster/pact"
)

const (
	roundTime = 4 * time.Second
	rounds    = 2
	hangLimit = 60 * time.Second // no verdict: what takes longer hangs
)

// TestContract: under all faults, the voters agree, nothing that was answered is lost, and the pact's rules hold.
func TestContract(t *testing.T) {
	n, each := rounds, roundTime
	if testing.Short() {
		n, each = 1, time.Second
	}
	applied, unknown := 0, 0
	for i := 0; i < n || i < 10*n && (applied == 0 || unknown == 0); i++ {
		a, u := live(t, rand.Uint64()>>16, each)
		applied, unknown = applied+a, unknown+u
	}
	if applied == 0 || unknown == 0 {
		t.Errorf("%d commands applied, %d unknown outcomes: the test does not go where it should", applied, unknown)
	}
}

// live has a cluster live through d of trouble. It returns how many commands were applied, and of how many
// the outcome was unknown.
func live(t *testing.T, seed uint64, d time.Duration) (applied, unknown int) {
	t.Helper()
	c, err := newCluster(seed, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	clients := []*client{newClient(c, c.voters[0], seed), newClient(c, c.voters[1], seed)}
	for _, cl := range clients {
		wg.Go(func() { cl.run(stop) })
	}
	faults, err := trouble(c, seed, time.Now().Add(d))
	if err != nil {
		t.Fatalf("seed %d: %v", seed, err)
	}
	close(stop)
	wg.Wait()
	c.n.heal()
	for _, v := range c.voters {
		if r, _ := v.up(); r == nil {
			if err := v.start(); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, v := range c.voters {
		if !c.admit(v, hangLimit) {
			t.Fatalf("seed %d: all is well, and %s can't be made a voter", seed, v.name)
		}
	}
	settle(t, c, seed)
	if err := c.r.err(); err != nil {
		t.Fatalf("seed %d: %v", seed, err)
	}
	known := 0
	for _, cl := range clients {
		known, unknown, applied = known+cl.known, unknown+cl.unknown, applied+cl.applied
	}
	t.Logf("seed %d: %v; %d entries, %d verdicts, %d of them applied, %d unknown outcomes; the guest was %v", seed, faults, c.r.newest, known, applied, unknown, c.r.modes)
	return applied, unknown
}

// settle has a last command reach everybody, and compares what they have come to.
func settle(t *testing.T, c *cluster, seed uint64) {
	t.Helper()
	limit := time.Now().Add(hangLimit)
	last := pact.Command{Kind: pact.NoOp, ID: "the last one"}
	b, err := pact.EncodeCommand(last)
	if err != nil {
		t.Fatal(err)
	}
	var index uint64
	for index == 0 {
		if time.Now().After(limit) {
			t.Fatalf("seed %d: all is well, and nothing can be committed", seed)
		}
		for _, v := range c.voters {
			l := c.leader(v)
			if l == nil {
				continue
			}
			if f := l.Apply(b, time.Second); f.Error() == nil {
				index = f.Index()
				break
			}
		}
	}
	var states []string
	for _, v := range c.voters {
		for {
			r, m := v.up()
			if _, at := m.guest(); at >= index {
				s, err := m.state.Snapshot()
				if err != nil {
					t.Fatal(err)
				}
				states = append(states, string(s))
				break
			}
			if time.Now().After(limit) {
				t.Fatalf("seed %d: %s never comes to index %d (%s)", seed, v.name, index, r.Stats())
			}
			time.Sleep(time.Millisecond)
		}
	}
	for i := range states {
		if states[i] != states[0] {
			t.Errorf("seed %d: %s and %s have come to different states:\n%s\n%s", seed, c.voters[0].name, c.voters[i].name, states[0], states[i])
		}
	}
}

// trouble makes faults until the given time, two kinds at once as a rule.
func trouble(c *cluster, seed uint64, until time.Time) (map[string]int, error) {
	rng := rand.New(rand.NewPCG(seed, 3))
	faults := map[string]int{}
	some := func() *voter { return c.voters[rng.IntN(len(c.voters))] }
	for time.Now().Before(until) {
		switch v, o := some(), some(); rng.IntN(8) {
		case 0:
			faults["partition"]++
			for _, o := range c.voters {
				c.n.set(v.addr(), o.addr(), true)
				c.n.set(o.addr(), v.addr(), true)
			}
		case 1, 2:
			faults["one-way cut"]++
			c.n.set(v.addr(), o.addr(), true)
		case 3:
			faults["rough"]++
			c.n.rough(3+rng.IntN(20), 1+rng.IntN(5), time.Duration(rng.IntN(15))*time.Millisecond)
		case 4:
			faults["crash"]++
			if err := v.crash(); err != nil {
				return faults, err
			}
		case 5:
			if rng.IntN(3) == 0 {
				faults["log lost"]++
				c.n.heal()
				if err := revive(c); err != nil {
					return faults, err
				}
				if err := c.replace(v, 2*time.Second); err != nil {
					return faults, err
				}
			}
		default:
			faults["healed"]++
			c.n.heal()
			if err := revive(c); err != nil {
				return faults, err
			}
		}
		time.Sleep(time.Duration(rng.IntN(120)) * time.Millisecond) // as long as the fault lasts
		if err := c.r.err(); err != nil {
			return faults, err
		}
	}
	return faults, nil
}

func revive(c *cluster) error {
	for _, v := range c.voters {
		if r, _ := v.up(); r == nil {
			if err := v.start(); err != nil {
				return err
			}
		}
	}
	return nil
}

// TestFindsDivergence: a voter that does not apply what the others do is found.
func TestFindsDivergence(t *testing.T) {
	c, err := newCluster(1, 15)
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for _, v := range c.voters[:2] {
		cl := newClient(c, v, 1)
		wg.Go(func() { cl.run(stop) })
	}
	limit := time.Now().Add(hangLimit)
	for c.r.err() == nil && time.Now().Before(limit) {
		time.Sleep(time.Millisecond)
	}
	close(stop)
	wg.Wait()
	if c.r.err() == nil {
		t.Error("a voter that forgets commands was not found")
	}
}
