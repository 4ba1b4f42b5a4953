package core

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/pollux-ha/pollux/cluster/pact"
)

var (
	seedFlag = flag.Uint64("seed", 0, "run this one seed of TestRandomSchedules")
	runs     = flag.Int("schedules", 3000, "number of random schedules")
)

// TestRandomSchedules runs the core against a small primary, a small Raft and a network that delays,
// duplicates and breaks, and checks what must always hold with eyes that know nothing of the core.
func TestRandomSchedules(t *testing.T) {
	if *seedFlag != 0 {
		if _, err := schedule(*seedFlag, t.Logf); err != nil {
			t.Fatal(err)
		}
		return
	}
	var sum tally
	for seed := uint64(1); seed <= uint64(*runs); seed++ {
		got, err := schedule(seed, nil)
		if err != nil {
			t.Fatalf("seed %d: %v\nrepeat with: go test ./replica/core -run RandomSchedules -v -seed %d", seed, err, seed)
		}
		sum.protects += got.protects
		sum.takeovers += got.takeovers
		sum.switchovers += got.switchovers
		sum.solos += got.solos
		sum.refusals += got.refusals
		sum.takes += got.takes
	}
	t.Logf("%d schedules: %+v", *runs, sum)
	if sum.protects == 0 || sum.takeovers == 0 || sum.switchovers == 0 || sum.solos == 0 || sum.refusals == 0 || sum.takes == 0 {
		t.Errorf("the schedules do not reach everything: %+v", sum)
	}
}

type tally struct{ protects, takeovers, switchovers, solos, refusals, takes int }

// world is a primary A (a model), the core under test as B, and Raft between them.
type world struct {
	r   *rand.Rand
	log func(string, ...any)
	tally

	// Raft: entries applied by everybody in order, but not at once.
	committed []pact.Assignment
	appliedA  int
	appliedB  int
	proposals []pact.Command // under way to Raft; each may arrive more than once, or never
	answers   []Answered     // under way to B

	// A.
	a struct {
		term               pact.Term
		mode               pact.Mode
		running, switching bool
		conn               Conn
		opened             bool
		next               pact.Epoch // to capture
		acked              pact.Epoch
		whole              pact.Epoch // the first epoch with which B holds everything
		syncLeft           int
		released           pact.Epoch
		asked              *pact.Command
		holding            bool
	}
	conns Conn
	toB   []Event      // on the stream, in order
	toA   []pact.Epoch // acks, in order

	// B.
	b       *Core
	kept    bool
	lost    bool // pages of B's memory are damaged
	without bool // even with the epoch that came last
	image   bool // there is something in B's memory
	asked   bool // a Promote of B is not settled
	bActive pact.Term
	bFrom   pact.Epoch
}

var partyA, partyB = pact.Party{Host: "a", Incarnation: 1}, pact.Party{Host: "b", Incarnation: 2}

func schedule(seed uint64, logf func(string, ...any)) (tally, error) {
	if logf == nil {
		logf = func(string, ...any) {}
	}
	w := &world{r: rand.New(rand.NewPCG(seed, 1)), log: logf, b: New("g", partyB)}
	w.commit(pact.Assignment{Guest: "g", Term: 1, Mode: pact.Solo, Primary: partyA, CurrentDisk: pact.DiskCopy{Host: "a", Term: 1}})
	w.a.next, w.a.running = 1, true
	for i := 0; i < 400; i++ {
		if err := w.step(); err != nil {
			return w.tally, fmt.Errorf("step %d: %w", i, err)
		}
		if w.bActive != 0 && w.appliedA == len(w.committed) {
			break
		}
	}
	return w.tally, nil
}

func (w *world) head() pact.Assignment { return w.committed[len(w.committed)-1] }

func (w *world) commit(a pact.Assignment) {
	w.log("commit %+v", a)
	w.committed = append(w.committed, a)
}

func (w *world) step() error {
	switch w.r.IntN(15) {
	case 0, 1:
		w.raft()
	case 2, 3:
		if w.appliedB < len(w.committed) {
			w.appliedB++
			// A daemon may skip what has been overtaken.
			if w.r.IntN(4) == 0 {
				w.appliedB = len(w.committed)
			}
			return w.give(Applied{w.committed[w.appliedB-1]})
		}
	case 4, 5:
		if w.appliedA < len(w.committed) {
			w.appliedA++
			return w.primaryApplied(w.committed[w.appliedA-1])
		}
	case 6, 7, 8:
		return w.deliverB()
	case 9, 10:
		return w.deliverA()
	case 11:
		if len(w.answers) > 0 {
			e := w.answers[0]
			w.answers = w.answers[1:]
			return w.give(e)
		}
	case 12:
		return w.trouble()
	default:
		w.primary()
	}
	return nil
}

// raft lets one proposal arrive: now, again later, or never.
func (w *world) raft() {
	if len(w.proposals) == 0 {
		return
	}
	i := w.r.IntN(len(w.proposals))
	c := w.proposals[i]
	switch w.r.IntN(4) {
	case 0: // and once more
	case 1:
		w.proposals = append(w.proposals[:i], w.proposals[i+1:]...)
		if w.r.IntN(2) == 0 {
			if c.By == partyB {
				w.answers = append(w.answers, Answered{ID: c.ID, Unknown: true})
			}
			return // lost
		}
	default:
		w.proposals = append(w.proposals[:i], w.proposals[i+1:]...)
	}
	v := w.apply(c)
	if c.By == partyB && w.r.IntN(3) > 0 {
		w.answers = append(w.answers, Answered{ID: c.ID, Verdict: v})
	}
}

// apply is the pact in small.
func (w *world) apply(c pact.Command) pact.Verdict {
	a := w.head()
	v := pact.Verdict{Assignment: a}
	if c.Term != a.Term || w.r.IntN(12) == 0 { // now and then a refusal for no reason that B could know
		v.Reason = "refused"
		w.refusals++
		return v
	}
	n := a
	n.Term++
	ok := false
	switch c.Kind {
	case pact.Protect:
		ok = a.Mode == pact.Solo && c.By == a.Primary
		n.Mode, n.Replica, n.Base, n.BaseTerm = pact.Protected, c.Other, c.Epoch, a.Term
	case pact.Promote:
		ok = a.Mode == pact.Protected && c.By == a.Replica && c.Epoch >= a.Base
		n.Mode, n.Primary, n.Replica, n.Base, n.BaseTerm = pact.Solo, c.By, pact.Party{}, c.Epoch, a.Term
	case pact.GoSolo:
		ok = c.By == a.Primary && a.Mode != pact.Stopped
		n.Mode, n.Replica = pact.Solo, pact.Party{}
	case pact.Switchover:
		ok = a.Mode == pact.Protected && c.By == a.Primary
		n.Primary, n.Replica, n.Base, n.BaseTerm = a.Replica, a.Primary, c.Epoch, a.Term
	case pact.Cancel:
		ok = a.Mode == pact.Protected && c.By == a.Primary
	case pact.Confirm, pact.Mark:
		ok = c.By == a.Primary
		n.Term--
		if c.Kind == pact.Mark {
			n.CurrentDisk = pact.DiskCopy{Host: c.By.Host, Term: c.Term}
		}
	}
	if !ok {
		w.refusals++
		v.Reason = "not in this state"
		return v
	}
	switch c.Kind {
	case pact.Protect:
		w.protects++
	case pact.Promote:
		w.takeovers++
	case pact.Switchover:
		w.switchovers++
	case pact.GoSolo:
		w.solos++
	}
	w.commit(n)
	return pact.Verdict{Applied: true, Assignment: n, Index: uint64(len(w.committed))}
}

// primary is what A does on its own.
func (w *world) primary() {
	a := &w.a
	if !a.running && !a.switching || a.term == 0 {
		return
	}
	propose := func(k pact.Kind, e pact.Epoch) {
		c := pact.Command{Kind: k, Guest: "g", ID: fmt.Sprintf("a%d", w.r.Uint32()), Term: a.term, By: partyA, Other: partyB, Epoch: e}
		a.asked = &c
		w.log("A asks %s %d in term %d", k, e, a.term)
		w.proposals = append(w.proposals, c)
	}
	switch {
	case a.asked != nil && a.conn == 0 && a.asked.Kind != pact.GoSolo:
		propose(pact.GoSolo, 0) // whatever was asked before dies of it
	case a.asked != nil:
		if w.r.IntN(4) == 0 {
			w.proposals = append(w.proposals, *a.asked)
		}
		fallthrough
	default:
		switch {
		case a.conn == 0 && a.mode == pact.Solo && a.asked == nil:
			w.conns++
			a.conn, a.opened, a.acked, a.syncLeft, a.holding = w.conns, false, a.next-1, 1+w.r.IntN(3), false
			w.toB = append(w.toB, Opened{Conn: a.conn, Host: "a", Term: a.term, Primary: partyA, Replica: partyB})
		case a.conn == 0 && a.mode == pact.Protected && a.asked == nil:
			propose(pact.GoSolo, 0)
		case a.switching && a.acked == a.next-1 && a.asked == nil:
			propose([]pact.Kind{pact.Switchover, pact.Switchover, pact.Cancel, pact.GoSolo}[w.r.IntN(4)], a.next-1)
		case a.switching && a.asked != nil && a.asked.Kind == pact.Switchover && w.r.IntN(6) == 0:
			propose(pact.Cancel, 0)
		case a.conn != 0 && a.opened && a.running && a.next <= a.acked+4:
			e := Staged{Conn: a.conn, Epoch: a.next, Term: a.term, Syncing: a.syncLeft > 0 && a.mode == pact.Solo}
			if a.syncLeft > 0 {
				a.syncLeft--
			}
			if !e.Syncing && !a.holding {
				a.whole, a.holding = a.next, true // holding of output starts with the first whole epoch
			}
			if a.mode == pact.Protected && w.r.IntN(10) == 0 {
				e.Final, a.running, a.switching = true, false, true
			}
			a.next++
			w.toB = append(w.toB, e)
		case a.mode == pact.Solo && a.conn == 0:
			a.next++
		}
		if a.mode == pact.Solo && !a.holding && a.asked == nil {
			a.released = a.next - 1
		}
		if a.conn != 0 && a.mode == pact.Solo && a.holding && a.asked == nil && a.acked >= a.whole {
			propose(pact.Protect, a.whole)
		}
	}
}

func (w *world) primaryApplied(n pact.Assignment) error {
	a := &w.a
	if n.Term <= a.term {
		return nil
	}
	a.term, a.mode, a.asked = n.Term, n.Mode, nil
	if n.Primary != partyA {
		a.running, a.switching = false, false
		w.breakConn("loser")
		return nil
	}
	if n.Mode == pact.Solo {
		w.breakConn("gone solo")
		a.holding = false
	}
	if a.switching {
		a.switching, a.running = false, true
	}
	return w.check()
}

// deliverB gives B what is next on the stream.
func (w *world) deliverB() error {
	if len(w.toB) == 0 || w.kept {
		return nil
	}
	e := w.toB[0]
	w.toB = w.toB[1:]
	if s, ok := e.(Staged); ok {
		// A damaged page comes again with one of the next epochs, or another is found damaged.
		s.Lost = w.lost && w.r.IntN(3) > 0
		return w.give(s)
	}
	return w.give(e)
}

func (w *world) deliverA() error {
	if len(w.toA) == 0 {
		return nil
	}
	e := w.toA[0]
	w.toA = w.toA[1:]
	if w.a.conn != 0 && e > w.a.acked {
		w.a.acked = e
		if w.a.mode == pact.Protected && (w.a.running || w.a.switching) {
			w.a.released = max(w.a.released, e)
			return w.check()
		}
	}
	return nil
}

func (w *world) breakConn(why string) {
	if w.a.conn == 0 {
		return
	}
	w.log("connection %d breaks: %s", w.a.conn, why)
	// What was sent may still arrive in part.
	if len(w.toB) > 0 {
		w.toB = w.toB[:w.r.IntN(len(w.toB)+1)]
	}
	w.toB = append(w.toB, Lost{Conn: w.a.conn, Why: why, Alive: w.r.IntN(5) == 0})
	w.a.conn, w.a.opened = 0, false
	w.toA = nil
}

func (w *world) trouble() error {
	switch w.r.IntN(9) {
	case 8:
		return w.give(PagesLost{})
	case 0, 1:
		w.breakConn("reset")
	case 2:
		return w.give(Silent{})
	case 3:
		return w.give(Gap{})
	case 4:
		return w.give(Again{})
	case 5:
		if w.a.mode == pact.Protected && w.r.IntN(2) == 0 { // A dies
			w.breakConn("died")
			w.a.running, w.a.switching = false, false
		}
	case 6:
		return w.give(HeardTerm{w.head().Term})
	case 7:
		if w.appliedB > 0 { // a daemon that came back tells an old assignment first
			return w.give(Applied{w.committed[w.r.IntN(w.appliedB)]})
		}
	}
	return nil
}

// give lets B take an event, does what it says, and judges it.
func (w *world) give(e Event) error {
	switch e := e.(type) {
	case Applied:
		if head := w.committed[w.appliedB-1]; e.Assignment.Term == head.Term && e.Assignment.Term > 0 {
			w.asked = w.asked && w.asking(e.Assignment.Term)
		}
	case Answered:
		if !e.Unknown && !e.Verdict.Applied {
			w.asked = false
		}
	case Lost:
		w.kept = false
	case PagesLost:
		w.lost = w.image
		w.without = true
	case Staged:
		w.without = e.Lost
	}
	acts := w.b.Step(e)
	w.log("B %T%+v -> %v %+v", e, e, w.b.State(), acts)
	for _, x := range acts {
		switch x := x.(type) {
		case Prepare:
			w.image, w.lost = true, false // all of it is going to be overwritten
			if err := w.give(Prepared{Conn: x.Conn}); err != nil {
				return err
			}
		case Welcome:
			if x.Conn == w.a.conn {
				w.a.opened = true
			}
		case Refuse:
			if x.Conn == w.a.conn {
				w.breakConn("refused")
			}
		case Close:
			if x.Conn == w.a.conn {
				w.breakConn("closed by B")
			}
		case Take:
			w.kept = false
			if w.asked || w.bActive != 0 {
				return fmt.Errorf("epoch %d taken beside a promotion", x.Epoch)
			}
			w.takes++
		case Ack:
			w.kept = false
			if w.without {
				return fmt.Errorf("epoch %d acknowledged with pages missing", x.Epoch)
			}
			w.lost = false
			if w.asked {
				return fmt.Errorf("epoch %d acknowledged while a promotion is not settled", x.Epoch)
			}
			if w.bActive != 0 {
				return fmt.Errorf("epoch %d acknowledged after the activation", x.Epoch)
			}
			if x.Conn == w.a.conn {
				w.toA = append(w.toA, x.Epoch)
			}
		case Keep:
			w.kept = true
		case Drop:
			w.kept = false
		case Propose:
			if x.Command.Kind == pact.Promote {
				w.asked = true
				if w.lost {
					return fmt.Errorf("asks to promote with pages missing")
				}
			}
			w.proposals = append(w.proposals, x.Command)
		case Activate:
			if w.bActive != 0 {
				return fmt.Errorf("activated twice")
			}
			if w.lost {
				return fmt.Errorf("activated with pages missing")
			}
			w.bActive, w.bFrom = x.Assignment.Term, x.From
			if !w.appliedPrimaryB(x.Assignment) {
				return fmt.Errorf("activated by %+v, which the own log has not applied", x.Assignment)
			}
			if x.From < x.Assignment.Base {
				return fmt.Errorf("activated from %d before the base %d", x.From, x.Assignment.Base)
			}
			if err := w.give(Activated{}); err != nil {
				return err
			}
		case ColdStart:
			return fmt.Errorf("a cold start of a guest that was never given")
		}
	}
	return w.check()
}

func (w *world) asking(t pact.Term) bool {
	c, ok := w.b.Asking()
	return ok && c.Term >= t
}

func (w *world) appliedPrimaryB(a pact.Assignment) bool {
	for _, c := range w.committed[:w.appliedB] {
		if c.Term == a.Term && c.Primary == partyB {
			return true
		}
	}
	return false
}

// check judges: nothing that A let out may be missing in what B goes on from.
func (w *world) check() error {
	if w.bActive != 0 && w.a.released > w.bFrom {
		return fmt.Errorf("A released epoch %d, B goes on from %d", w.a.released, w.bFrom)
	}
	return nil
}
