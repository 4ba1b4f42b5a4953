package checkpoint

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"reflect"
	"testing"

	"github.com/pollux-ha/pollux/cluster/pact"
)

// image is a memory image of some pages.
type image []byte

func newImage(pages int) image    { return make(image, pages*PageSize) }
func (m image) Pages() int        { return len(m) / PageSize }
func (m image) Page(i int) []byte { return m[i*PageSize : (i+1)*PageSize] }
func (m image) capture(e *Epoch)  { e.Data = gather(m, e.Pages) }

func gather(m image, pages []uint32) []byte {
	var data []byte
	for _, p := range pages {
		data = append(data, m.Page(int(p))...)
	}
	return data
}

// guest makes epochs the way a guest would: hot pages that change a little, others that change
// altogether, pages that become zero, pages that are written with what they held.
type guest struct {
	rnd   *rand.Rand
	image image
	epoch pact.Epoch
	state []byte
}

func newGuest(seed uint64, pages int) *guest {
	return &guest{rnd: rand.New(rand.NewPCG(seed, 1)), image: newImage(pages), state: make([]byte, 1024)}
}

func (g *guest) run() *Epoch {
	g.epoch++
	e := &Epoch{Number: g.epoch, Term: 3}
	for p := range g.image.Pages() {
		page := g.image.Page(p)
		switch g.rnd.IntN(12) {
		case 0, 1, 2: // a few words
			for range 1 + g.rnd.IntN(20) {
				page[g.rnd.IntN(PageSize)] = byte(g.rnd.Uint32())
			}
		case 3:
			for i := range page {
				page[i] = byte(g.rnd.Uint32())
			}
		case 4:
			clear(page)
			if g.rnd.IntN(2) == 0 {
				if g.rnd.IntN(3) == 0 {
					e.Background = append(e.Background, Page{uint32(p), bytes.Repeat([]byte{byte(p)}, PageSize)})
				}
				e.Zero = append(e.Zero, uint32(p))
				continue
			}
		case 5: // written with the same bytes
		default:
			if g.rnd.IntN(4) == 0 {
				e.Background = append(e.Background, Page{uint32(p), bytes.Clone(page)})
			}
			continue
		}
		if g.rnd.IntN(3) == 0 {
			e.Background = append(e.Background, Page{uint32(p), bytes.Repeat([]byte{byte(p)}, PageSize)})
		}
		e.Pages = append(e.Pages, uint32(p))
	}
	g.image.capture(e)
	if g.rnd.IntN(5) == 0 {
		g.state = make([]byte, 64*(1+g.rnd.IntN(60)))
	}
	g.state[g.rnd.IntN(len(g.state))]++
	e.State = bytes.Clone(g.state)
	for range g.rnd.IntN(4) {
		e.Writes = append(e.Writes, DiskWrite{Disk: uint8(g.rnd.IntN(2)), Offset: g.rnd.Int64N(1 << 40), Data: randomBytes(g.rnd, 1+g.rnd.IntN(9000))})
		if g.rnd.IntN(2) == 0 {
			e.Writes = append(e.Writes, DiskWrite{Disk: 1, Offset: g.rnd.Int64N(1 << 40), Zeros: 1 + g.rnd.Int64N(1<<40), Unmap: g.rnd.IntN(2) == 0})
		}
		e.Frames = append(e.Frames, Frame{Epoch: e.Number, NIC: 1, Data: randomBytes(g.rnd, g.rnd.IntN(1500))})
	}
	return e
}

func randomBytes(r *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32()) & 0x3f
	}
	return b
}

// sameWrites compares what two lists of writes do, however they are split.
func sameWrites(a, b []DiskWrite) bool {
	join := func(ws []DiskWrite) (out []DiskWrite) {
		for _, w := range ws {
			if n := len(out); n > 0 && w.Zeros == 0 && out[n-1].Zeros == 0 && out[n-1].Disk == w.Disk && out[n-1].Offset+int64(len(out[n-1].Data)) == w.Offset {
				out[n-1].Data = append(bytes.Clone(out[n-1].Data), w.Data...)
				continue
			}
			out = append(out, w)
		}
		return out
	}
	return reflect.DeepEqual(join(a), join(b))
}

// A replica that applies what it is sent holds the primary's memory after every epoch, also where the
// cache is far smaller than the dirty set.
func TestImageFollows(t *testing.T) {
	for _, cache := range []int{0, 1, 7, 64, 1000} {
		for seed := range uint64(8) {
			g := newGuest(seed, 150)
			replica := newImage(150)
			var wire bytes.Buffer
			enc, w, r := NewEncoder(EncoderConfig{cache}), NewWriter(&wire), NewReader(&wire, replica, DefaultLimits())
			for range 12 {
				e := g.run()
				st, err := enc.Encode(w, e)
				if err != nil {
					t.Fatal(err)
				}
				m, err := r.Next()
				if err != nil {
					t.Fatalf("cache %d, seed %d, epoch %d: %v", cache, seed, e.Number, err)
				}
				s := m.(*Staged)
				s.Apply(replica)
				for _, p := range e.Pages {
					if !bytes.Equal(replica.Page(int(p)), g.image.Page(int(p))) {
						t.Fatalf("cache %d, seed %d, epoch %d: page %d differs", cache, seed, e.Number, p)
					}
				}
				if s.Number != e.Number || s.Term != 3 || s.Digest != st.Digest || !bytes.Equal(s.State, e.State) ||
					!sameWrites(s.Writes, e.Writes) || !sameFrames(s.Frames, e.Frames) {
					t.Fatalf("cache %d, seed %d, epoch %d: came out otherwise than it went in", cache, seed, e.Number)
				}
				// What background pages overwrote on the replica alone is of no interest here.
				copy(replica, g.image)
				s.Release()
			}
		}
	}
}

func sameFrames(a, b []Frame) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i].Epoch != b[i].Epoch || a[i].NIC != b[i].NIC || !bytes.Equal(a[i].Data, b[i].Data) {
			return false
		}
	}
	return true
}

func TestMessages(t *testing.T) {
	a, b := pact.Party{Host: "a", Incarnation: 1 << 63}, pact.Party{Host: "b", Incarnation: 7}
	messages := []Message{
		&Hello{Version: 1, Guest: "ledger", Term: 9, Primary: a, Replica: b, Stream: 77, RAMPages: 65536, DiskSizes: []uint64{1 << 30, 512}, Resume: true, Boot: BootDigest([]byte("kernel"), nil)},
		&Welcome{Version: 1, Stream: 77, Party: b, LastEpoch: 4, LastDigest: Digest{1, 2}, Refused: "term 3 is over"},
		&Ack{Epoch: 5, Digest: Digest{15: 1}},
		&Durable{Epoch: 5},
		&Heartbeat{Term: 9, Sequence: 1 << 40},
		&HigherTerm{Term: 10},
		&DiskDigests{Disk: 1, ChunkBytes: 65536, First: 3, Zeros: 1 << 33, Digests: []Digest{{1}, {2}}, Last: true},
		&Received{Frames: []Frame{{Epoch: 5, NIC: 0, Data: []byte("frame")}, {Epoch: 6, NIC: 1, Data: []byte("another")}}},
		&Goodbye{Reason: "powered off"},
		&PagesWanted{Epoch: 7, Pages: []uint32{0, 5, 1 << 31}},
		&PageCopy{Page: 5, Epoch: 8, Data: bytes.Repeat([]byte{3}, PageSize)},
		&PageCopy{Page: 6, Epoch: 8},
		&PagesLost{Pages: []uint32{1, 2}, Differs: true},
		&PageSums{Epoch: 9, Pages: []uint32{4, 9}, Sums: []uint64{1, ZeroPageSum}},
	}
	var wire bytes.Buffer
	w := NewWriter(&wire)
	for _, m := range messages {
		if err := w.Write(m); err != nil {
			t.Fatal(err)
		}
	}
	r := NewReader(&wire, nil, DefaultLimits())
	for _, want := range messages {
		got, err := r.Next()
		if err != nil {
			t.Fatalf("%T: %v", want, err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v, want %+v", got, want)
		}
	}
	if _, err := r.Next(); err != io.EOF {
		t.Errorf("at the end: %v, want io.EOF", err)
	}
}

// recorded is a valid stream of some epochs with messages between, as bytes.
func recorded(t testing.TB, pages, epochs int) []byte {
	t.Helper()
	g := newGuest(42, pages)
	var wire bytes.Buffer
	enc, w := NewEncoder(EncoderConfig{64}), NewWriter(&wire)
	for range epochs {
		if _, err := enc.Encode(w, g.run()); err != nil {
			t.Fatal(err)
		}
		if err := w.Write(&Heartbeat{Term: 3}); err != nil {
			t.Fatal(err)
		}
	}
	return wire.Bytes()
}

// drain applies all whole epochs of a stream and returns the error that ended it.
func drain(b []byte, pages int) (epochs int, err error) {
	m := newImage(pages)
	r := NewReader(bytes.NewReader(b), m, DefaultLimits())
	defer r.Close()
	for {
		got, err := r.Next()
		if err != nil {
			return epochs, err
		}
		if s, ok := got.(*Staged); ok {
			s.Apply(m)
			s.Release()
			epochs++
		}
	}
}

func TestEveryTruncationIsNoticed(t *testing.T) {
	b := recorded(t, 8, 2)
	whole, err := drain(b, 8)
	if whole != 2 || err != io.EOF {
		t.Fatalf("untouched: %d epochs, %v", whole, err)
	}
	for n := range len(b) {
		if epochs, err := drain(b[:n], 8); err == nil || epochs > whole {
			t.Fatalf("cut at %d: %d epochs, %v", n, epochs, err)
		}
	}
}

func TestEveryFlippedBitIsNoticed(t *testing.T) {
	b := recorded(t, 4, 1)
	rnd := rand.New(rand.NewPCG(7, 7))
	for i := range b {
		c := bytes.Clone(b)
		c[i] ^= 1 << rnd.IntN(8)
		if _, err := drain(c, 4); err == nil || err == io.EOF {
			t.Fatalf("a flipped bit in byte %d went unnoticed", i)
		}
	}
}

func TestReplayedFramesAreNoticed(t *testing.T) {
	b := recorded(t, 4, 1)
	if _, err := drain(append(bytes.Clone(b), b...), 4); !errors.Is(err, ErrSequence) {
		t.Errorf("replayed stream: %v, want ErrSequence", err)
	}
}

func TestChain(t *testing.T) {
	g := newGuest(1, 16)
	e1, e2, e3 := g.run(), g.run(), g.run()
	send := func(previous Digest, es ...*Epoch) (*bytes.Buffer, []Digest) {
		var wire bytes.Buffer
		enc, w := NewEncoder(EncoderConfig{64}), NewWriter(&wire)
		enc.Reset(previous)
		var ds []Digest
		for _, e := range es {
			st, err := enc.Encode(w, e)
			if err != nil {
				t.Fatal(err)
			}
			ds = append(ds, st.Digest)
		}
		return &wire, ds
	}
	image := newImage(16)
	wire, ds := send(Digest{}, e1)
	r := NewReader(wire, image, DefaultLimits())
	m, err := r.Next()
	if err != nil {
		t.Fatal(err)
	}
	m.(*Staged).Apply(image)

	// A resumed stream goes on from the digest that the replica holds, without deltas.
	wire, _ = send(ds[0], e2, e3)
	r = NewReader(wire, image, DefaultLimits())
	r.Expect(1, ds[0])
	for range 2 {
		if m, err = r.Next(); err != nil {
			t.Fatal(err)
		}
		m.(*Staged).Apply(image)
	}
	if !bytes.Equal(gather(image, e3.Pages), e3.Data) {
		t.Error("image after a resumed stream differs")
	}

	for name, tc := range map[string]struct {
		previous Digest
		epochs   []*Epoch
		last     pact.Epoch
	}{
		"a gap":                 {ds[0], []*Epoch{e3}, 1},
		"an epoch again":        {ds[0], []*Epoch{e1}, 1},
		"another predecessor":   {Digest{9}, []*Epoch{e2}, 1},
		"a gap inside a stream": {ds[0], []*Epoch{e2, e2}, 1},
	} {
		wire, _ := send(tc.previous, tc.epochs...)
		r := NewReader(wire, newImage(16), DefaultLimits())
		r.Expect(tc.last, ds[0])
		for err = nil; err == nil; {
			_, err = r.Next()
		}
		if !errors.Is(err, ErrSequence) {
			t.Errorf("%s: %v, want ErrSequence", name, err)
		}
	}
}

// A replica whose image is not what the primary believes must notice before it acknowledges.
func TestDivergedImageIsNoticed(t *testing.T) {
	image := newImage(4)
	page := bytes.Repeat([]byte{7}, PageSize)
	var wire bytes.Buffer
	enc, w, r := NewEncoder(EncoderConfig{4}), NewWriter(&wire), NewReader(&wire, image, DefaultLimits())
	for n := range pact.Epoch(2) {
		page[100]++
		if _, err := enc.Encode(w, &Epoch{Number: n + 1, Pages: []uint32{2}, Data: page, State: []byte{}}); err != nil {
			t.Fatal(err)
		}
	}
	m, err := r.Next()
	if err != nil {
		t.Fatal(err)
	}
	m.(*Staged).Apply(image)
	image.Page(2)[4000] ^= 1
	if _, err := r.Next(); !errors.Is(err, ErrCorrupt) {
		t.Errorf("%v, want ErrCorrupt", err)
	}
}

func TestLimits(t *testing.T) {
	encode := func(e *Epoch) *bytes.Buffer {
		var wire bytes.Buffer
		if _, err := NewEncoder(EncoderConfig{4}).Encode(NewWriter(&wire), e); err != nil {
			t.Fatal(err)
		}
		return &wire
	}
	limits := Limits{StateBytes: 100, WriteBytes: 100, OutputBytes: 100}
	big := make([]byte, 200)
	for name, e := range map[string]*Epoch{
		"state":  {State: big},
		"writes": {State: []byte{}, Writes: []DiskWrite{{Data: big}}},
		"frames": {State: []byte{}, Frames: []Frame{{Data: big}}},
	} {
		if _, err := NewReader(encode(e), newImage(4), limits).Next(); !errors.Is(err, ErrLimit) {
			t.Errorf("%s: %v, want ErrLimit", name, err)
		}
	}
	for name, w := range map[string]DiskWrite{
		"zeros beyond any disk": {Offset: 1 << 62, Zeros: 1 << 62},
		"zeros before it":       {Offset: -1, Zeros: 512},
	} {
		e := &Epoch{State: []byte{}, Writes: []DiskWrite{w}}
		if _, err := NewReader(encode(e), newImage(4), DefaultLimits()).Next(); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v, want ErrCorrupt", name, err)
		}
	}
	many := &Epoch{State: []byte{}}
	for range 10 {
		many.Writes = append(many.Writes, DiskWrite{Zeros: 512})
	}
	if _, err := NewReader(encode(many), newImage(4), Limits{StateBytes: 100, WriteBytes: 500, OutputBytes: 100}).Next(); !errors.Is(err, ErrLimit) {
		t.Errorf("many small writes: %v, want ErrLimit", err)
	}
	outside := &Epoch{State: []byte{}, Pages: []uint32{4}, Data: make([]byte, PageSize)}
	if _, err := NewReader(encode(outside), newImage(4), limits).Next(); !errors.Is(err, ErrCorrupt) {
		t.Errorf("page outside of RAM: %v, want ErrCorrupt", err)
	}
	if _, err := NewReader(encode(outside), nil, limits).Next(); !errors.Is(err, ErrCorrupt) {
		t.Errorf("epoch on the primary's side: %v, want ErrCorrupt", err)
	}
}

func TestUnchangedPagesAreNotSent(t *testing.T) {
	enc, w := NewEncoder(EncoderConfig{16}), NewWriter(io.Discard)
	page := bytes.Repeat([]byte("Pollux! "), PageSize/8)
	e := &Epoch{Pages: []uint32{1}, Data: page, State: []byte{}}
	if st, err := enc.Encode(w, e); err != nil || st.Raw != 1 {
		t.Fatalf("first time: %+v, %v", st, err)
	}
	if st, err := enc.Encode(w, e); err != nil || st.Unchanged != 1 {
		t.Fatalf("second time: %+v, %v", st, err)
	}
	enc.Reset(Digest{})
	if st, err := enc.Encode(w, e); err != nil || st.Raw != 1 {
		t.Fatalf("in a new stream: %+v, %v", st, err)
	}
}

// short is a stream with one of everything, small enough for a fuzzer to make headway.
func short(t testing.TB) []byte {
	t.Helper()
	var wire bytes.Buffer
	enc, w := NewEncoder(EncoderConfig{4}), NewWriter(&wire)
	page := bytes.Repeat([]byte{1}, PageSize)
	for n := range pact.Epoch(2) {
		page[8] = byte(n)
		_, err := enc.Encode(w, &Epoch{Number: n, Pages: []uint32{1, 2}, Data: append(bytes.Clone(page), make([]byte, PageSize)...),
			Background: []Page{{3, make([]byte, PageSize)}}, State: make([]byte, 64),
			Writes: []DiskWrite{{Offset: 512, Data: []byte("sector")}, {Disk: 1, Offset: 1024, Zeros: 1 << 20, Unmap: true}, {Zeros: 512}}, Frames: []Frame{{n, 0, []byte("frame")}}})
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Write(&Ack{Epoch: 1}); err != nil {
		t.Fatal(err)
	}
	return wire.Bytes()
}

func FuzzReader(f *testing.F) {
	b := short(f)
	f.Add(b)
	f.Add(b[:len(b)/2])
	f.Fuzz(func(t *testing.T, b []byte) { _, _ = drain(b, 4) })
}

// FuzzParts hands the parts of an epoch to the decoder without the checksums that would stop nearly
// every mutation before it gets there.
func FuzzParts(f *testing.F) {
	frames := &frameReader{r: bytes.NewReader(short(f))}
	var seed []byte
	for {
		k, p, err := frames.next()
		if err != nil {
			break
		}
		seed = append(append(append(seed, byte(k)), byte(len(p)), byte(len(p)>>8), byte(len(p)>>16)), p...)
	}
	f.Add(seed)
	for _, m := range []Message{
		&PagesWanted{Epoch: 7, Pages: []uint32{0, 5}}, &PageCopy{Page: 5, Epoch: 8, Data: make([]byte, PageSize)},
		&PagesLost{Pages: []uint32{1, 2}, Differs: true}, &PageSums{Epoch: 9, Pages: []uint32{4}, Sums: []uint64{1}},
	} {
		p, err := appendMessage(nil, m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(append([]byte{byte(m.kind()), byte(len(p)), byte(len(p) >> 8), 0}, p...))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m := newImage(6)
		r := NewReader(nil, m, Limits{1 << 16, 1 << 16, 1 << 16})
		for len(b) >= 4 {
			k, n := frameKind(b[0]), int(b[1])|int(b[2])<<8|int(b[3])<<16
			b = b[4:]
			n = min(n, len(b))
			p := b[:n]
			b = b[n:]
			if !k.ofEpoch() {
				_, _ = parseMessage(k, p)
				continue
			}
			if k == kindEpochEnd && r.epoch != nil {
				d := r.hash.Sum128().Bytes()
				p = d[:]
			}
			s, err := r.part(k, p)
			if err != nil {
				return
			}
			if s != nil {
				s.Apply(m)
				s.Release()
			}
		}
		r.Close()
	})
}
