package lockstep

import (
	"github.com/pollux-ha/pollux/checkpoint"
	"github.com/pollux-ha/pollux/cluster/pact"
)

// Release is the policy of output release: what becomes of a frame that the guest emits, and what an
// acknowledgement lets out. Output commit is the only one so far; a comparison of the outputs of two
// running copies would be another.
type Release interface {
	// put takes output of the running epoch. True: the caller emits it at once, else it is kept.
	put(f checkpoint.Frame) (now bool)
	// seal ends the running epoch and returns its held frames for the checkpoint.
	seal(e pact.Epoch) []checkpoint.Frame
	hold()
	open()
	release(upTo pact.Epoch)
	drop()
	// next takes some of what may leave now, in order; none while another emitter is at work.
	next(max int) []checkpoint.Frame
	// done ends the emission of what next returned.
	done()
	waiting() bool // output of the running epoch is held
	counts() (frames, bytes int)
}

// Marks of output in the queue that is not a frame. It waits as frames do, but travels nowhere: who reads
// it reads it on this host.
const (
	agentNIC   = 0xfe // the agent's channel
	consoleNIC = 0xff
)

// outputCommit holds output until its epoch is committed. It is guarded by the Engine's mutex.
type outputCommit struct {
	opened   bool
	current  []checkpoint.Frame // of the running epoch
	sealed   []sealedOutput     // of captured epochs, ascending
	ready    []checkpoint.Frame // may leave
	emitting bool
	bytes    int // held: current and sealed
	limit    int
	dropped  uint64
	slab     []byte
}

type sealedOutput struct {
	epoch pact.Epoch
	items []checkpoint.Frame
}

const slabBytes = 64 << 10

// textBytes is up to how many bytes of text are held as one: a guest writes to its serial port byte by byte, and
// each alone would take many times its size.
const textBytes = 4096

// keep copies p into memory of the outlet's own.
func (o *outputCommit) keep(p []byte) []byte {
	if len(p) > len(o.slab) {
		if len(p) > slabBytes/4 {
			return append([]byte(nil), p...)
		}
		o.slab = make([]byte, slabBytes)
	}
	kept := o.slab[:len(p):len(p)]
	o.slab = o.slab[len(p):]
	copy(kept, p)
	return kept
}

func (o *outputCommit) put(f checkpoint.Frame) bool {
	if o.opened {
		if !o.emitting && len(o.ready) == 0 {
			return true
		}
		f.Data = o.keep(f.Data) // behind what is still on its way
		o.ready = append(o.ready, f)
		return false
	}
	if o.bytes+len(f.Data) > o.limit {
		o.dropped++
		return false
	}
	o.bytes += len(f.Data)
	if last := len(o.current) - 1; last >= 0 && f.NIC >= agentNIC && o.current[last].NIC == f.NIC && len(o.current[last].Data) < textBytes {
		o.current[last].Data = append(o.current[last].Data, f.Data...)
		return false
	}
	f.Data = o.keep(f.Data)
	o.current = append(o.current, f)
	return false
}

func (o *outputCommit) seal(e pact.Epoch) []checkpoint.Frame {
	if len(o.current) == 0 {
		return nil
	}
	items := o.current
	o.current = nil
	o.sealed = append(o.sealed, sealedOutput{e, items})
	frames := items
	for i, f := range items {
		if f.NIC >= agentNIC {
			frames = append([]checkpoint.Frame(nil), items[:i]...)
			for _, f := range items[i:] {
				if f.NIC < agentNIC {
					frames = append(frames, f)
				}
			}
			break
		}
	}
	return frames
}

func (o *outputCommit) hold() { o.opened = false }

func (o *outputCommit) open() {
	o.opened = true
	for _, s := range o.sealed {
		o.ready = append(o.ready, s.items...)
	}
	o.ready = append(o.ready, o.current...)
	o.sealed, o.current, o.bytes = nil, nil, 0
}

func (o *outputCommit) release(upTo pact.Epoch) {
	n := 0
	for _, s := range o.sealed {
		if s.epoch > upTo {
			break
		}
		for _, f := range s.items {
			o.bytes -= len(f.Data)
		}
		o.ready = append(o.ready, s.items...)
		n++
	}
	o.sealed = o.sealed[n:]
}

func (o *outputCommit) drop() {
	o.opened = false
	o.current, o.sealed, o.ready, o.bytes = nil, nil, nil, 0
}

func (o *outputCommit) next(most int) []checkpoint.Frame {
	if o.emitting || len(o.ready) == 0 {
		return nil
	}
	n := min(most, len(o.ready))
	batch := o.ready[:n:n]
	o.ready = o.ready[n:]
	o.emitting = true
	return batch
}

func (o *outputCommit) done() { o.emitting = false }

func (o *outputCommit) waiting() bool { return len(o.current) > 0 }

func (o *outputCommit) counts() (int, int) {
	n := len(o.current)
	for _, s := range o.sealed {
		n += len(s.items)
	}
	return n, o.bytes
}
