package replica

import (
	"time"

	"github.com/pollux-ha/pollux/checkpoint"
	"github.com/pollux-ha/pollux/cluster/pact"
)

const (
	// resendEpochs is of how many of the last epochs the frames are kept: the primary may have died
	// before their acknowledgement arrived, and then nobody has sent them yet.
	resendEpochs = 8
	// resendBytes bounds the frames that are kept to be sent again, and those to be received again.
	resendBytes = 4 << 20
)

// Image is the guest as of an epoch, but for its memory, which is in the machine's RAM, and its disks.
type Image struct {
	Epoch  pact.Epoch
	Digest checkpoint.Digest
	State  []byte // for Machine.LoadState
	// Arrived is when the epoch arrived, on the clock of Config.Clock.
	Arrived time.Duration
	// Decided is when it was decided that the image runs, on the same clock. A process that has not run
	// since then for the detection time asks Raft before it lets anything out.
	Decided time.Duration
	// Resend are frames that the primary may not have let out any more, oldest first.
	Resend []checkpoint.Frame
	// Received are frames that the primary's network card took after the epoch, oldest first.
	Received []checkpoint.Frame

	lost                       []uint32 // pages of the memory that are of no use
	resendBytes, receivedBytes int
}

// advance makes the image that of s.
func (i *Image) advance(s *checkpoint.Staged, now time.Duration) {
	i.Epoch, i.Digest, i.State, i.Arrived = s.Number, s.Digest, s.State, now
	i.lost = s.Lost
	for _, f := range s.Frames {
		i.Resend = append(i.Resend, f)
		i.resendBytes += len(f.Data)
	}
	drop := 0
	for drop < len(i.Resend) && (i.Resend[drop].Epoch+resendEpochs <= i.Epoch || i.resendBytes > resendBytes) {
		i.resendBytes -= len(i.Resend[drop].Data)
		drop++
	}
	i.Resend = trim(i.Resend, drop)
	drop = 0
	for drop < len(i.Received) && i.Received[drop].Epoch <= i.Epoch {
		i.receivedBytes -= len(i.Received[drop].Data)
		drop++
	}
	i.Received = trim(i.Received, drop)
}

// received keeps frames for the case of a takeover. Beyond the bound they are dropped, as a network may.
func (i *Image) received(frames []checkpoint.Frame) {
	for _, f := range frames {
		if f.Epoch > i.Epoch && i.receivedBytes+len(f.Data) <= resendBytes {
			i.Received = append(i.Received, f)
			i.receivedBytes += len(f.Data)
		}
	}
}

// trim drops the first n frames without keeping their memory.
func trim(f []checkpoint.Frame, n int) []checkpoint.Frame {
	if n == 0 {
		return f
	}
	kept := copy(f, f[n:])
	clear(f[kept:])
	return f[:kept]
}
