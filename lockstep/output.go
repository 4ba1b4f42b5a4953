package lockstep

import (
	"github.com/pollux-ha/pollux/checkpoint"
	"github.com/pollux-ha/pollux/cluster/pact"
	"github.com/pollux-ha/pollux/vmm/platform"
)

var _ platform.Output = (*Engine)(nil)

// Transmit takes a frame that the guest sends. The device lock is held.
func (e *Engine) Transmit(nic int, frame []byte) {
	if len(frame) > checkpoint.MaxFrameBytes || nic < 0 || nic >= agentNIC {
		return // no wire would take it
	}
	e.output(checkpoint.Frame{NIC: uint8(nic), Data: frame})
}

// Console takes what the guest writes to its console. The device lock is held.
func (e *Engine) Console(p []byte) { e.output(checkpoint.Frame{NIC: consoleNIC, Data: p}) }

// Agent takes what the guest's agent writes to its channel. The device lock is held.
func (e *Engine) Agent(p []byte) { e.output(checkpoint.Frame{NIC: agentNIC, Data: p}) }

func (e *Engine) output(f checkpoint.Frame) {
	e.mu.Lock()
	f.Epoch = e.core.Captured() + 1
	e.gap() // closes the gate where this process has just come back from a standstill
	now := e.out.put(f)
	if now {
		e.stats.framesReleased++
	}
	e.kick()
	later := e.later
	e.later = nil
	e.mu.Unlock()
	if now {
		// Nobody else can emit before this returns: frames come one at a time, under the device
		// lock, and a frame that is queued meanwhile waits behind no other.
		e.emit(f)
	}
	for _, fn := range later {
		fn()
	}
}

// DiskWritten notes a write that has landed in the local disk. The device lock is held.
func (e *Engine) DiskWritten(disk int, offset int64, data []byte) {
	e.diskChanged(checkpoint.DiskWrite{Disk: uint8(disk), Offset: offset, Data: data})
}

// DiskZeroed notes a range that has become zero in the local disk. The device lock is held.
func (e *Engine) DiskZeroed(disk int, offset, n int64, unmap bool) {
	e.diskChanged(checkpoint.DiskWrite{Disk: uint8(disk), Offset: offset, Zeros: n, Unmap: unmap})
}

// zeroCost is what a zeroed range counts as a disk write, in bytes: about what the replica could write
// in the time that it takes.
const zeroCost = 4096

// writeCost is what every other disk write counts beside its bytes, as the replica counts it too.
const writeCost = 64

func (e *Engine) diskChanged(w checkpoint.DiskWrite) {
	e.mu.Lock()
	defer e.mu.Unlock()
	disk, n := int(w.Disk), w.Len()
	if disk < len(e.written) {
		e.written[disk].newer.add(w.Offset, n)
	}
	if !e.run.mirroring {
		return
	}
	if !joined(e.run.writes, &w) {
		e.run.writes = append(e.run.writes, w)
		if w.Zeros > 0 {
			e.run.writeBytes += zeroCost
		} else {
			e.run.writeBytes += len(w.Data) + writeCost
		}
	}
	if s := e.stream; s != nil && s.fill != nil {
		s.fill.mirrored(disk, w.Offset, n)
	}
	if e.stream == nil && e.run.writeBytes > 4*e.cfg.WriteBytes {
		e.forgetImage() // nobody comes back for all this
	}
	e.kick()
}

// joined makes w part of the last of writes where it goes on zeroing there, as the copy of a sparse disk does.
func joined(writes []checkpoint.DiskWrite, w *checkpoint.DiskWrite) bool {
	if w.Zeros == 0 || len(writes) == 0 {
		return false
	}
	last := &writes[len(writes)-1]
	if last.Zeros == 0 || last.Disk != w.Disk || last.Unmap != w.Unmap || last.Offset+last.Zeros != w.Offset {
		return false
	}
	last.Zeros += w.Zeros
	return true
}

// noteDurable forgets the blocks whose writes the replica has made durable.
func (e *Engine) noteDurable(d pact.Epoch) {
	if d <= e.durable {
		return
	}
	e.durable = d
	for i := range e.written {
		w := &e.written[i]
		if d >= w.mark {
			w.older, w.newer = w.newer, w.older
			clear(w.newer)
			w.mark = e.core.Captured() + 1 // what was written so far travels in that epoch at the latest
		}
	}
}

// receivedLimit bounds what waits to be forwarded, in bytes.
const receivedLimit = 1 << 20

// received takes a frame that the guest's card got from the wire: the one place that all of them
// pass, in order, also while the guest stands still. The device lock is held.
func (e *Engine) received(nic int, frame []byte) {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := e.stream
	if s == nil || !s.up || !e.core.Gated() || e.run.recvBytes+len(frame) > receivedLimit || len(frame) > checkpoint.MaxFrameBytes {
		return
	}
	epoch := e.core.Captured() + 1
	if e.staying {
		// The guest gets it when it goes on, and it may be captured once more before that. Where it is
		// not, a takeover may give it the frame twice, as a network may.
		epoch++
	}
	e.run.received = append(e.run.received, checkpoint.Frame{
		Epoch: epoch, NIC: uint8(nic), Data: append([]byte(nil), frame...),
	})
	e.run.recvBytes += len(frame)
	s.poke()
}

// takeReceived returns what waits to be forwarded. e.mu is held.
func (e *Engine) takeReceived() []checkpoint.Frame {
	frames := e.run.received
	e.run.received, e.run.recvBytes = nil, 0
	return frames
}
