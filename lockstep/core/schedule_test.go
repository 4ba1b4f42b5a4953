package core

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/pollux-ha/pollux/cluster/pact"
)

var (
	seedFlag  = flag.Uint64("seed", 0, "run this one schedule and print it")
	schedules = flag.Int("schedules", 4000, "number of random schedules")
)

// TestSchedules drives the core through random schedules against the real pact, a small model of the rest of Raft, of a replica
// and of a network that loses, delays, repeats and reorders. What must hold is checked against what
// the model knows, never against what the core says of itself.
func TestSchedules(t *testing.T) {
	if *seedFlag != 0 {
		w := newWorld(*seedFlag)
		err := w.run()
		t.Log(strings.Join(w.trace, "\n"))
		if err != nil {
			t.Fatal(err)
		}
		return
	}
	base := rand.Uint64()
	n := *schedules
	if testing.Short() {
		n /= 10
	}
	ends, mended := map[string]int{}, 0
	for i := range n {
		seed := base + uint64(i)
		w := newWorld(seed)
		if err := w.run(); err != nil {
			t.Fatalf("seed %d: %v\nrepeat with: go test -run TestSchedules -seed %d -v\n%s", seed, err, seed,
				strings.Join(w.trace[max(0, len(w.trace)-60):], "\n"))
		}
		ends[w.ending()]++
		mended += w.mended
	}
	t.Logf("%d schedules from seed %d ended: %v, %d pages mended", n, base, ends, mended)
	if mended == 0 && n >= 1000 {
		t.Error("no page was mended: the test does not go where it should")
	}
	for _, want := range []string{"lost", "exchanged", "stopped", "failed", "running protected"} {
		if ends[want] == 0 && n >= 1000 {
			t.Errorf("no schedule ended %q: the test does not go where it should", want)
		}
	}
}

// world is all that exists in a schedule: one primary ("a") with its driver, a replica, Raft.
type world struct {
	rng   *rand.Rand
	trace []string
	c     *Core

	// Raft, with the real pact.
	state    *pact.State
	index    uint64
	history  []pact.Assignment // all that was ever committed; the last is the truth
	inFlight []pact.Command
	answers  []Answered
	// What the primary's own log has delivered, as an index into history.
	delivered int

	// The primary's driver and guest.
	running   bool
	gateOpen  bool
	finish    bool
	epoch     pact.Epoch // being run
	dirty     bool       // the guest ran since the last capture
	held      []pact.Epoch
	filled    bool
	captured  []pact.Epoch // kept until acknowledged
	capturedN pact.Epoch
	acked     pact.Epoch
	markers   []pact.Term
	outcome   Outcome
	streamID  uint64
	streamOn  bool // the primary believes in a stream
	wire      bool // it works
	toReplica []pact.Epoch
	fetches   []Fetch
	toPrimary []Event
	// Pages that can't be read: the epoch whose content is to be put back, 0 where it is nowhere.
	damaged map[uint32]pact.Epoch

	// The replica.
	r replicaModel

	// What is checked.
	maxReleased pact.Epoch // newest epoch of which output has left
	promoted    bool
	promotedAt  pact.Epoch
	surrendered bool            // the promotion is a surrender's
	told        pact.Term       // highest term that anybody told the primary
	toldOther   bool            // and no assignment has said since that it goes on
	finalTerm   pact.Term       // in which a final epoch was captured; the guest must stand still in it
	gapIDs      map[string]bool // Confirms asked after the last gap or word
	doubtOpen   bool
	mended      int
}

type replicaModel struct {
	party    pact.Party
	seen     int // index into history
	holds    pact.Epoch
	complete bool
	whole    pact.Epoch // first epoch with which it was complete
	asked    pact.Term  // in which Promote was asked
	stream   uint64
}

func newWorld(seed uint64) *world {
	w := &world{rng: rand.New(rand.NewPCG(seed, 1)), running: true, c: New(Config{Guest: "g", Self: parties["a"]}), gapIDs: map[string]bool{}, damaged: map[uint32]pact.Epoch{}}
	w.r.party = parties["b"]
	w.state = pact.NewState()
	spec := pact.Spec{Hosts: []string{"a", "b", "c"}, Kernel: "builtin:ledger", MemoryBytes: 64 << 20, CPUs: 1}
	w.state.Apply(pact.Command{Kind: pact.Create, Guest: "g", ID: "create", Spec: &spec}, 1)
	if v := w.state.Apply(pact.Command{Kind: pact.Start, Guest: "g", ID: "start", By: parties["a"]}, 2); !v.Applied {
		panic(v.Reason)
	}
	w.index = 2
	first, _ := w.state.Guest("g")
	w.history = []pact.Assignment{first}
	w.epoch = 1
	w.told = first.Term
	return w
}

func (w *world) truth() pact.Assignment { return w.history[len(w.history)-1] }
func (w *world) maybe(n int) bool       { return w.rng.IntN(n) == 0 }
func (w *world) logf(f string, a ...any) {
	w.trace = append(w.trace, fmt.Sprintf(f, a...))
}

func (w *world) ending() string {
	if w.outcome != 0 {
		return w.outcome.String()
	}
	return "running " + string(w.truth().Mode)
}

func (w *world) run() error {
	if err := w.step(Begin{Assignment: w.history[0]}); err != nil {
		return err
	}
	for range 50 + w.rng.IntN(300) {
		if err := w.random(); err != nil {
			return err
		}
		if err := w.check(); err != nil {
			return err
		}
		if w.outcome != 0 && w.maybe(10) {
			break
		}
	}
	return w.settle()
}

// random lets one thing happen.
func (w *world) random() error {
	switch w.rng.IntN(24) {
	case 0, 1, 2, 3:
		w.guestRuns()
	case 4, 5, 6:
		return w.capture()
	case 7, 8, 9:
		return w.network()
	case 10, 11:
		w.raft()
	case 12:
		return w.deliverAssignment(w.delivered + w.rng.IntN(len(w.history)-w.delivered))
	case 13:
		return w.deliverAnswer()
	case 14:
		if len(w.markers) > 0 {
			m := w.markers[0]
			w.markers = w.markers[1:]
			return w.step(MarkerDurable{m})
		}
	case 15:
		return w.dial()
	case 16:
		w.replicaActs()
	case 17:
		return w.step(Retry{})
	case 18:
		if w.wire && w.maybe(3) {
			w.cut()
		}
		if w.streamOn && !w.wire && w.maybe(2) {
			w.streamOn = false
			return w.step(StreamDown{w.streamID, "cut"})
		}
	case 19:
		if w.maybe(3) {
			w.doubtOpen, w.gapIDs = true, map[string]bool{}
			return w.step(OwnGap{})
		}
	case 20:
		if w.truth().Mode == pact.Protected && w.maybe(2) {
			return w.step(SwitchoverOrdered{})
		}
		if w.maybe(8) {
			return w.step(SwitchoverExpired{})
		}
	case 22:
		if w.maybe(6) {
			return w.damage()
		}
	case 23:
		return w.copyPage()
	case 21:
		switch w.rng.IntN(200) {
		case 0:
			return w.step(Faulty{"fault"})
		case 1:
			w.running = false
			return w.step(PoweredOff{})
		case 2:
			return w.step(Killed{})
		case 3:
			w.forcedStart()
		case 4:
			// A word can come from anywhere, at any time after the commit.
			return w.word()
		case 5:
			w.logf("replica dies")
			w.cut()
			w.r = replicaModel{party: pact.Party{Host: "b", Incarnation: w.r.party.Incarnation + 1}, seen: w.r.seen}
		}
	}
	return nil
}

// damage makes a page unreadable, or has somebody meet one.
func (w *world) damage() error {
	page := uint32(w.rng.IntN(100))
	ev := Damaged{Page: page, Dirty: w.dirty && w.maybe(6), Needed: !w.maybe(3)}
	at, known := w.damaged[page]
	switch {
	case known:
		ev.Dirty = at == 0 // nobody has written it since
	case ev.Dirty:
		w.damaged[page] = 0
	case w.capturedN != 0:
		w.damaged[page] = w.capturedN
	default:
		return nil
	}
	return w.step(ev)
}

// copyPage lets the replica answer the oldest request, once it has what was sent before it. It may have lost
// its copy too.
func (w *world) copyPage() error {
	if !w.wire || len(w.fetches) == 0 {
		return nil
	}
	f := w.fetches[0]
	for _, e := range w.toReplica {
		if e <= f.Epoch {
			return nil
		}
	}
	w.fetches = w.fetches[1:]
	w.toPrimary = append(w.toPrimary, Copied{Stream: f.Stream, Page: f.Page, Epoch: w.r.holds, Good: w.r.complete && !w.maybe(10)})
	if w.maybe(8) {
		w.toPrimary = append(w.toPrimary, w.toPrimary[len(w.toPrimary)-1])
	}
	return nil
}

func (w *world) word() error {
	t := w.truth().Term
	if t > w.c.Term() {
		w.doubtOpen, w.gapIDs = true, map[string]bool{}
		w.told = max(w.told, t)
	}
	return w.step(Word{t})
}

// guestRuns emits output of the epoch under way.
func (w *world) guestRuns() {
	if !w.running || w.outcome != 0 {
		return
	}
	w.dirty = true
	if w.maybe(2) {
		return
	}
	if w.gateOpen {
		w.release(w.epoch)
	} else {
		w.held = append(w.held, w.epoch)
	}
}

func (w *world) release(e pact.Epoch) {
	w.maxReleased = max(w.maxReleased, e)
}

func (w *world) capture() error {
	if !w.streamOn || w.outcome != 0 || !w.running && !w.finish || len(w.captured) >= 4 {
		return nil
	}
	if !w.filled && w.maybe(3) {
		w.filled = true
	}
	e := w.epoch
	final := w.finish
	w.finish = false
	w.captured = append(w.captured, e)
	w.capturedN = e
	w.epoch++
	w.dirty = false
	if final {
		w.finalTerm = w.c.Term()
	}
	if w.wire {
		w.toReplica = append(w.toReplica, e)
	}
	if w.filled && w.r.whole == 0 && w.wire {
		w.r.whole = e // in the model the sender's knowledge is the truth
	}
	wasRunning := w.running
	if err := w.step(Captured{Epoch: e, Complete: w.filled, Final: final}); err != nil {
		return err
	}
	if final && w.running && wasRunning && w.c.Term() == w.finalTerm && w.truthAt(w.delivered).Mode == pact.Protected {
		return fmt.Errorf("the guest goes on after final epoch %d in term %d", e, w.finalTerm)
	}
	return nil
}

func (w *world) truthAt(i int) pact.Assignment { return w.history[i] }

// network moves something between the two.
func (w *world) network() error {
	if !w.wire {
		return nil
	}
	if len(w.toReplica) > 0 && w.maybe(2) {
		e := w.toReplica[0]
		w.toReplica = w.toReplica[1:]
		if view := w.history[w.r.seen]; view.Primary != parties["a"] || w.r.asked != 0 && w.r.asked >= view.Term {
			w.cut() // it has asked to promote: acknowledges nothing any more
			return nil
		}
		w.r.holds = e
		if w.surrendered {
			// Raft's entry names no epoch: until the replica applies it, what it acknowledges counts.
			w.promotedAt = e
		}
		if w.r.whole != 0 && e >= w.r.whole {
			w.r.complete = true
		}
		w.toPrimary = append(w.toPrimary, Acked{w.r.stream, e})
		return nil
	}
	if len(w.toPrimary) > 0 {
		ev := w.toPrimary[0]
		w.toPrimary = w.toPrimary[1:]
		if a, ok := ev.(Acked); ok && w.streamOn && a.Stream == w.streamID {
			w.acked = a.Epoch
			w.captured = slices.DeleteFunc(w.captured, func(e pact.Epoch) bool { return e <= a.Epoch })
		}
		return w.step(ev)
	}
	return nil
}

func (w *world) cut() {
	w.wire = false
	w.toReplica, w.toPrimary, w.fetches = nil, nil, nil
}

// dial makes a stream, as the driver would.
func (w *world) dial() error {
	if w.streamOn || w.outcome != 0 {
		return nil
	}
	if w.maybe(6) {
		return w.step(StreamDown{0, "no answer"})
	}
	hello, view := w.c.Term(), w.history[w.r.seen]
	if view.Term > hello {
		w.doubtOpen, w.gapIDs = true, map[string]bool{}
		w.told = max(w.told, view.Term)
		return w.step(Word{view.Term})
	}
	if w.r.asked != 0 && w.r.asked >= hello {
		return nil // it wants to promote, and takes no stream in that term
	}
	// Resume where the replica holds what the captured epochs follow.
	kept := w.acked
	resume := w.r.complete && w.r.holds >= kept && w.r.holds <= w.capturedN && w.r.holds != 0 && w.filled
	if !resume && !w.c.MayFill() {
		return nil
	}
	w.streamID++
	w.streamOn, w.wire = true, true
	w.r.stream = w.streamID
	up := StreamUp{Stream: w.streamID, Party: w.r.party, Resumed: resume, Last: w.r.holds}
	if resume {
		w.acked = w.r.holds
		w.captured = slices.DeleteFunc(w.captured, func(e pact.Epoch) bool { return e <= w.r.holds })
		w.toReplica = slices.Clone(w.captured)
	} else {
		if view.Mode == pact.Protected && view.Replica == w.r.party && view.Term == hello {
			return fmt.Errorf("an entitled replica is told to forget its image in term %d", hello)
		}
		w.filled = false
		w.captured = nil
		w.acked = 0
		w.r.holds, w.r.complete, w.r.whole = 0, false, 0
	}
	return w.step(up)
}

// replicaActs lets the replica's log move, and lets it ask to promote whenever it may.
func (w *world) replicaActs() {
	w.r.seen += w.rng.IntN(len(w.history) - w.r.seen)
	view := w.history[w.r.seen]
	if view.Term > w.c.Term() && w.wire && w.maybe(2) {
		w.toPrimary = append(w.toPrimary, Word{view.Term})
	}
	if view.Mode == pact.Protected && view.Replica == w.r.party && w.r.complete && w.r.holds >= view.Base && w.r.asked < view.Term && w.maybe(4) {
		w.r.asked = view.Term
		w.inFlight = append(w.inFlight, w.promote(view.Term))
		w.logf("replica asks to promote from %d in term %d", w.r.holds, view.Term)
	}
}

func (w *world) promote(t pact.Term) pact.Command {
	return pact.Command{Kind: pact.Promote, Guest: "g", ID: fmt.Sprintf("%s-promote-%d", w.r.party.Host, t), Term: t, By: w.r.party, Epoch: w.r.holds}
}

// raft lets something happen to a question: committed, lost, repeated; its answer known or not.
func (w *world) raft() {
	if len(w.inFlight) == 0 {
		return
	}
	i := w.rng.IntN(len(w.inFlight))
	q := w.inFlight[i]
	if !w.maybe(4) {
		w.inFlight = slices.Delete(w.inFlight, i, i+1)
	}
	switch w.rng.IntN(6) {
	case 0:
		w.logf("lost: %s %s", q.Kind, q.ID)
		return
	case 1:
		w.answers = append(w.answers, Answered{ID: q.ID})
		return
	}
	v := w.apply(q)
	if q.By == parties["a"] && !w.maybe(4) {
		w.answers = append(w.answers, Answered{ID: q.ID, Verdict: &v})
	}
}

// apply commits a question. Now and then it is refused for a reason that the asker can't foresee.
func (w *world) apply(q pact.Command) pact.Verdict {
	before := w.truth()
	if (q.Kind == pact.Protect || q.Kind == pact.Cancel || q.Kind == pact.Switchover) && q.Term == before.Term && w.maybe(8) {
		w.logf("refused at will: %s %s", q.Kind, q.ID)
		return pact.Verdict{Reason: "some other reason", Assignment: before}
	}
	w.index++
	v := w.state.Apply(q, w.index)
	after, _ := w.state.Guest("g")
	if reflect.DeepEqual(before, after) {
		return v
	}
	w.history = append(w.history, after)
	w.logf("committed: %s %s -> term %d %s primary %s", q.Kind, q.ID, after.Term, after.Mode, after.Primary.Host)
	if after.Primary == before.Primary || before.Replica != w.r.party {
		// Nobody new, or one that is dead: then both have failed, and the guest is lost whatever is done.
		return v
	}
	switch q.Kind {
	case pact.Promote, pact.Switchover:
		w.promoted, w.promotedAt = true, q.Epoch
	case pact.Surrender:
		w.promoted, w.promotedAt, w.surrendered = true, w.r.holds, true
	}
	return v
}

// forcedStart is an operator's order to start the guest elsewhere, on his word that this host is off.
func (w *world) forcedStart() {
	a := w.truth()
	for _, p := range []pact.Party{a.Primary, a.Replica} {
		if !p.IsZero() {
			w.apply(pact.Command{Kind: pact.Disclaim, Guest: "g", Term: a.Term, By: p, Operator: "op"})
		}
	}
	w.apply(pact.Command{Kind: pact.Start, Guest: "g", Term: a.Term, ID: "forced", By: parties["c"], AcceptLoss: "all of it", Operator: "op"})
}

func (w *world) deliverAssignment(to int) error {
	if to < w.delivered {
		return nil
	}
	if w.maybe(10) {
		to = w.rng.IntN(to + 1) // an old one again
	}
	a := w.history[to]
	if to > w.delivered {
		w.delivered = to
	}
	w.told = max(w.told, a.Term)
	return w.step(Assigned{a})
}

func (w *world) deliverAnswer() error {
	if len(w.answers) == 0 {
		return nil
	}
	i := w.rng.IntN(len(w.answers))
	a := w.answers[i]
	w.answers = slices.Delete(w.answers, i, i+1)
	if a.Verdict != nil && a.Verdict.Assignment.Primary != parties["a"] {
		w.told = max(w.told, a.Verdict.Assignment.Term)
	}
	return w.step(a)
}

// step gives the core an event, follows its actions and checks them.
func (w *world) step(ev Event) error {
	w.logf("> %T%+v", ev, ev)
	if a, ok := ev.(Answered); ok && a.Verdict != nil && a.Verdict.Applied && w.gapIDs[a.ID] && a.Verdict.Assignment.Term == w.c.Term() {
		w.doubtOpen = false
	}
	before := w.c.Term()
	actions := w.c.Step(ev)
	if a, ok := ev.(Assigned); ok && w.c.Term() > before && a.Assignment.Primary == parties["a"] {
		w.toldOther = false
	}
	for _, a := range actions {
		w.logf("    %s", a)
		switch a := a.(type) {
		case Hold:
			w.gateOpen = false
		case Open:
			w.gateOpen = true
			for _, e := range w.held {
				w.release(e)
			}
			w.held = nil
		case Release:
			kept := w.held[:0]
			for _, e := range w.held {
				if e <= a.UpTo {
					w.release(e)
				} else {
					kept = append(kept, e)
				}
			}
			w.held = kept
		case Drop:
			w.held = nil
		case Pause:
			w.running, w.finish = false, false
		case Finish:
			w.finish = true
		case Resume:
			w.running, w.finish = true, false
			if w.finalTerm == w.c.Term() {
				return fmt.Errorf("resumed in term %d, in which the final epoch was captured", w.finalTerm)
			}
		case Fetch:
			if a.Stream == w.streamID && w.wire {
				w.fetches = append(w.fetches, a)
			}
		case Mend:
			copied, ok := ev.(Copied)
			if at, known := w.damaged[a.Page]; !ok || !known || at == 0 || copied.Epoch < at || copied.Page != a.Page || !copied.Good {
				return fmt.Errorf("page %d, of epoch %d, is mended with %+v", a.Page, at, ev)
			}
			delete(w.damaged, a.Page)
			w.mended++
		case GiveUp:
			if w.c.fault == "" {
				return fmt.Errorf("pages are given up by a primary without a fault")
			}
		case WriteMarker:
			w.markers = append(w.markers, a.Term)
		case CloseStream:
			if a.Stream == w.streamID {
				w.cut()
				w.streamOn = false
			}
		case Propose:
			w.inFlight = append(w.inFlight, a.Command)
			if a.Command.Kind == pact.Confirm && w.doubtOpen {
				w.gapIDs[a.Command.ID] = true
			}
			if a.Command.Kind == pact.GoSolo && w.c.fault != "" {
				return fmt.Errorf("a faulty primary asks to go solo")
			}
		case End:
			w.outcome = a.Outcome
			w.running = false
			w.cut()
			w.streamOn = false
			if a.Outcome == Exchanged && w.dirty {
				return fmt.Errorf("exchanged, but the guest has run since the final epoch")
			}
		}
	}
	return nil
}

// check compares what has left the host with what Raft has committed.
func (w *world) check() error {
	truth := w.truth()
	if w.promoted && w.maxReleased > w.promotedAt {
		return fmt.Errorf("output of epoch %d has left, but the guest goes on elsewhere from %d", w.maxReleased, w.promotedAt)
	}
	if truth.Mode == pact.Protected && truth.Primary == parties["a"] && truth.Replica == w.r.party && w.maxReleased > w.r.holds {
		return fmt.Errorf("protected: output of epoch %d has left, the replica holds %d", w.maxReleased, w.r.holds)
	}
	if truth.Mode == pact.Protected && truth.Primary == parties["a"] && w.gateOpen {
		return fmt.Errorf("the gate is open while the committed assignment says protected")
	}
	if w.told > w.c.Term() && (w.gateOpen || w.running) && w.outcome == 0 {
		return fmt.Errorf("told of term %d, but in term %d the gate is open %t, the guest runs %t", w.told, w.c.Term(), w.gateOpen, w.running)
	}
	if w.doubtOpen && w.gateOpen && w.outcome == 0 {
		if w.told <= w.c.Term() && !w.c.gap {
			return nil // a word of a term that has been adopted since
		}
		return fmt.Errorf("the gate is open with a doubt that no Confirm has settled")
	}
	if w.outcome != 0 && (w.gateOpen || w.running || len(w.held) > 0) {
		return fmt.Errorf("over, but gate open %t, running %t, held %d", w.gateOpen, w.running, len(w.held))
	}
	if w.c.fault != "" && w.running {
		return fmt.Errorf("faulty and running")
	}
	return nil
}

// settle heals the network and lets Raft answer everything: nobody may be stuck.
func (w *world) settle() error {
	w.logf("--- healing")
	for range 60 {
		if w.outcome != 0 {
			return w.check()
		}
		if err := w.step(Retry{}); err != nil {
			return err
		}
		if t := w.truth(); w.r.asked == t.Term && t.Replica == w.r.party {
			w.inFlight = append(w.inFlight, w.promote(t.Term)) // it goes on asking, too
		}
		for len(w.inFlight) > 0 {
			q := w.inFlight[0]
			w.inFlight = w.inFlight[1:]
			v := w.apply(q)
			if q.By == parties["a"] {
				w.answers = append(w.answers, Answered{ID: q.ID, Verdict: &v})
			}
		}
		for len(w.answers) > 0 {
			if err := w.deliverAnswer(); err != nil {
				return err
			}
		}
		for w.delivered < len(w.history)-1 {
			if err := w.deliverAssignment(w.delivered + 1); err != nil {
				return err
			}
		}
		if err := w.step(Assigned{w.truth()}); err != nil {
			return err
		}
		for len(w.markers) > 0 {
			m := w.markers[0]
			w.markers = w.markers[1:]
			if err := w.step(MarkerDurable{m}); err != nil {
				return err
			}
		}
		w.r.seen = len(w.history) - 1
		if w.streamOn && !w.wire {
			w.streamOn = false
			if err := w.step(StreamDown{w.streamID, "cut"}); err != nil {
				return err
			}
		}
		if !w.streamOn {
			if err := w.dial(); err != nil {
				return err
			}
		}
		for range 6 {
			w.guestRuns()
			if err := w.capture(); err != nil {
				return err
			}
			for range 12 {
				if err := w.network(); err != nil {
					return err
				}
				if err := w.copyPage(); err != nil {
					return err
				}
			}
		}
		if err := w.check(); err != nil {
			return err
		}
	}
	if w.outcome != 0 {
		return nil
	}
	if len(w.c.pages) > 0 && w.c.fault == "" {
		return fmt.Errorf("damaged pages wait for ever: %v", w.c.pages)
	}
	if !w.running {
		return fmt.Errorf("the guest stands still for ever: %s (%s)", w.c.Mode(), w.c.Detail())
	}
	if w.c.Mode() != "protected" {
		return fmt.Errorf("everything works, but the mode is %s (%s)", w.c.Mode(), w.c.Detail())
	}
	return nil
}
