package vmm

import (
	"fmt"

	"go.uber.org/zap"
)

// strangers are the guest's accesses to addresses at which there is nothing: the way to see what a firmware
// or a driver misses. Each address is logged once, at debug level; without that level nothing is kept. The
// device lock guards it.
type strangers struct {
	log  *zap.Logger // nil: the level is off
	seen map[stranger]bool
}

type stranger struct {
	space string
	addr  uint64
	write bool
}

// strangersMax bounds what is kept and logged: a guest may try all addresses.
const strangersMax = 1024

func newStrangers(log *zap.Logger) strangers {
	if !log.Core().Enabled(zap.DebugLevel) {
		return strangers{}
	}
	return strangers{log: log, seen: map[stranger]bool{}}
}

func (s *strangers) note(space string, addr uint64, write bool, size int) {
	if s.log == nil || len(s.seen) >= strangersMax {
		return
	}
	who := stranger{space, addr, write}
	if !s.seen[who] {
		s.seen[who] = true
		s.log.Debug("the guest looks for a device that is not there", zap.String("space", space),
			zap.String("address", fmt.Sprintf("%#x", addr)), zap.Bool("write", write), zap.Int("bytes", size))
	}
}
