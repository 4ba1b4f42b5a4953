package legacy

import (
	"fmt"

	"github.com/pollux-ha/pollux/vmm/platform"
	"github.com/pollux-ha/pollux/vmm/platform/codec"
)

// Registers of a PC16550D (section 8.0 of its data sheet).
const (
	regData = 0 // RBR and THR; divisor latch LSB while DLAB is set
	regIER  = 1 // divisor latch MSB while DLAB is set
	regIIR  = 2 // FCR when written
	regLCR  = 3
	regMCR  = 4
	regLSR  = 5
	regMSR  = 6
	regSCR  = 7

	ierData    = 0x01
	ierEmpty   = 0x02
	ierMask    = 0x0f
	iirNone    = 0x01
	iirEmpty   = 0x02
	iirData    = 0x04
	iirFIFO    = 0xc0
	fcrEnable  = 0x01
	fcrClearRX = 0x02
	lcrDLAB    = 0x80
	mcrLoop    = 0x10
	mcrMask    = 0x1f
	lsrData    = 0x01
	lsrEmpty   = 0x60 // THRE and TEMT
	msrOnline  = 0xb0 // DCD, DSR and CTS: somebody is there

	serialInput = 64 << 10 // bytes of input that wait for the guest
	loopbackMax = 16       // bytes of the FIFO

	serialDivisor = 12 // 9600 baud
)

// Serial is a 16550A at COM1. Bytes leave through Output.Console at once, so the transmitter is
// always empty; line speed and parity have no effect, and there are no line errors.
type Serial struct {
	p     platform.Platform
	line  bool // the interrupt line
	one   [1]byte
	input []byte // received; the first byte is in RBR

	ier, lcr, mcr, scr, dll, dlm byte
	fifo                         bool
	emptied                      bool // a transmitter-empty interrupt is pending
}

// NewSerial maps COM1. The device lock is held.
func NewSerial(p platform.Platform) (*Serial, error) {
	s := &Serial{p: p, dll: serialDivisor}
	if err := p.Ports().Map(platform.SerialBase, 8, ports{s.read, s.write}); err != nil {
		return nil, fmt.Errorf("map COM1: %w", err)
	}
	return s, nil
}

// Input gives the guest what was typed and says how many bytes were taken; 64 KiB wait for a guest
// that does not read. The device lock is held.
func (s *Serial) Input(p []byte) int {
	n := min(len(p), serialInput-len(s.input))
	s.input = append(s.input, p[:n]...)
	s.update()
	return n
}

func (s *Serial) read(reg int) byte {
	dlab := s.lcr&lcrDLAB != 0
	switch reg {
	case regData:
		if dlab {
			return s.dll
		}
		if len(s.input) == 0 {
			return 0
		}
		v := s.input[0]
		s.input = s.input[:copy(s.input, s.input[1:])]
		s.update()
		return v
	case regIER:
		if dlab {
			return s.dlm
		}
		return s.ier
	case regIIR:
		v := s.pending()
		if v == iirEmpty { // reading it acknowledges this one
			s.emptied = false
			s.update()
		}
		if s.fifo {
			v |= iirFIFO
		}
		return v
	case regLCR:
		return s.lcr
	case regMCR:
		return s.mcr
	case regLSR:
		if len(s.input) > 0 {
			return lsrEmpty | lsrData
		}
		return lsrEmpty
	case regMSR:
		if s.mcr&mcrLoop != 0 { // DTR, RTS, OUT1, OUT2 appear as DSR, CTS, RI, DCD
			return s.mcr&0x01<<5 | s.mcr&0x02<<3 | s.mcr&0x0c<<4
		}
		return msrOnline
	}
	return s.scr
}

func (s *Serial) write(reg int, v byte) {
	dlab := s.lcr&lcrDLAB != 0
	switch reg {
	case regData:
		switch {
		case dlab:
			s.dll = v
			return
		case s.mcr&mcrLoop != 0:
			if len(s.input) < loopbackMax {
				s.input = append(s.input, v)
			}
		default:
			s.one[0] = v
			s.p.Output().Console(s.one[:])
		}
		s.emptied = true
	case regIER:
		if dlab {
			s.dlm = v
			return
		}
		if v&ierEmpty != 0 && s.ier&ierEmpty == 0 {
			s.emptied = true // enabling it while the transmitter is empty raises it
		}
		s.ier = v & ierMask
	case regIIR:
		s.fifo = v&fcrEnable != 0
		if v&fcrClearRX != 0 {
			s.input = s.input[:0]
		}
	case regLCR:
		s.lcr = v
	case regMCR:
		s.mcr = v & mcrMask
	case regSCR:
		s.scr = v
	}
	s.update()
}

// pending is the interrupt of the highest priority, as IIR shows it.
func (s *Serial) pending() byte {
	switch {
	case len(s.input) > 0 && s.ier&ierData != 0:
		return iirData
	case s.emptied && s.ier&ierEmpty != 0:
		return iirEmpty
	}
	return iirNone
}

func (s *Serial) update() {
	if line := s.pending() != iirNone; line != s.line {
		s.line = line
		s.p.SetIRQ(platform.SerialIRQ, line)
	}
}

// Activate implements platform.Activator: the interrupt controller's state does not include the
// levels of its inputs.
func (s *Serial) Activate() error {
	s.line = s.pending() != iirNone
	s.p.SetIRQ(platform.SerialIRQ, s.line)
	return nil
}

// Reset implements platform.Resetter. What was typed for the old guest is not for the new one.
func (s *Serial) Reset() {
	s.input = s.input[:0]
	s.ier, s.lcr, s.mcr, s.scr = 0, 0, 0, 0
	s.dll, s.dlm = serialDivisor, 0
	s.fifo, s.emptied = false, false
	s.update()
}

// StateID implements platform.Stateful.
func (s *Serial) StateID() string { return "serial0" }

// StateVersion implements platform.Stateful.
func (s *Serial) StateVersion() uint16 { return 1 }

// SaveState implements platform.Stateful.
func (s *Serial) SaveState(b []byte) []byte {
	b = append(b, s.ier, s.lcr, s.mcr, s.scr, s.dll, s.dlm)
	b = codec.AppendBool(b, s.fifo)
	b = codec.AppendBool(b, s.emptied)
	return codec.AppendBytes(b, s.input)
}

// RestoreState implements platform.Stateful.
func (s *Serial) RestoreState(_ uint16, b []byte) error {
	r := codec.NewReader(b)
	ier, lcr, mcr, scr, dll, dlm := r.U8(), r.U8(), r.U8(), r.U8(), r.U8(), r.U8()
	fifo, emptied := r.Bool(), r.Bool()
	input := r.Bytes(serialInput)
	if ier&^ierMask != 0 || mcr&^mcrMask != 0 {
		r.Failf("UART registers IER %#x, MCR %#x", ier, mcr)
	}
	if err := r.Done(); err != nil {
		return err
	}
	s.ier, s.lcr, s.mcr, s.scr, s.dll, s.dlm = ier, lcr, mcr, scr, dll, dlm
	s.fifo, s.emptied = fifo, emptied
	s.input = append(s.input[:0], input...)
	return nil
}
