package shim

import (
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"slices"
)

func sum(b []byte) [sha256.Size]byte { return sha256.Sum256(b) }

// plain is a Loss that treats all of a kind alike.
type plain struct{ name, size, data bool }

func (p plain) Name(int) bool        { return p.name }
func (p plain) Size(int) bool        { return p.size }
func (p plain) Sector(int, int) bool { return p.data }

// but is another Loss with one operation treated otherwise.
type but struct {
	Loss
	op   int
	kept bool
}

func (b but) Name(i int) bool {
	if i == b.op {
		return b.kept
	}
	return b.Loss.Name(i)
}

func (b but) Size(i int) bool {
	if i == b.op {
		return b.kept
	}
	return b.Loss.Size(i)
}

func (b but) Sector(i, n int) bool {
	if i == b.op {
		return b.kept
	}
	return b.Loss.Sector(i, n)
}

// torn keeps everything, of one write only the sectors before or from a cut.
type torn struct {
	plain
	op, cut int
	tail    bool
}

func (t torn) Sector(i, n int) bool { return i != t.op || (n >= t.cut) == t.tail }

// odds keeps everything with a chance of its own for each image.
type odds struct {
	r                *rand.Rand
	name, size, data float64
}

func (o odds) Name(int) bool        { return o.r.Float64() < o.name }
func (o odds) Size(int) bool        { return o.r.Float64() < o.size }
func (o odds) Sector(int, int) bool { return o.r.Float64() < o.data }

// Case is one thing that a loss of power may do.
type Case struct {
	Title string
	Loss  Loss
}

// Cases are what is tried where the power goes after the first n operations: everything kept and
// everything lost, by kinds; every single operation lost, or the only one kept, among the newest window;
// the newest writes torn at every sector; and so many more by chance.
func (t Tape) Cases(n, window, chances int, r *rand.Rand) []Case {
	all := plain{true, true, true}
	none := plain{}
	out := []Case{
		{"all kept", all}, {"all lost", none}, {"names without sizes and data", plain{name: true}},
		{"names and sizes without data", plain{name: true, size: true}}, {"sizes and data without names", plain{size: true, data: true}},
		{"data without sizes", plain{name: true, data: true}},
	}
	var open []int
	for i, d := range t.Durable(n) {
		if !d {
			open = append(open, i)
		}
	}
	for _, i := range open[max(0, len(open)-window):] {
		out = append(out, Case{fmt.Sprintf("operation %d lost", i), but{all, i, false}}, Case{fmt.Sprintf("only operation %d kept", i), but{none, i, true}})
		if t[i].Kind != Write {
			continue
		}
		first, last := t[i].Off/Sector, (t[i].Off+int64(len(t[i].Data))-1)/Sector
		for cut := 1; cut <= min(int(last-first), 8); cut++ {
			out = append(out, Case{fmt.Sprintf("operation %d torn before its sector %d", i, cut), torn{all, i, cut, false}},
				Case{fmt.Sprintf("operation %d torn behind its sector %d", i, cut), torn{all, i, cut, true}})
		}
	}
	if len(open) > 0 {
		for range chances {
			out = append(out, Case{"by chance", odds{r, r.Float64(), r.Float64(), r.Float64()}})
		}
	}
	return slices.Clip(out)
}
