package legacy

import (
	"fmt"

	"github.com/pollux-ha/pollux/vmm/platform"
	"github.com/pollux-ha/pollux/vmm/platform/codec"
)

const (
	portKeyboardData   = 0x60
	portSystemControl  = 0x61 // speaker gate, PIT channel 2
	portKeyboardStatus = 0x64
	portFastReset      = 0x92

	keyboardOutputFull = 0x01
	keyboardSystem     = 0x04
	keyboardResend     = 0xfe // what an absent keyboard's controller answers for it
	keyboardAuxData    = 0x20

	controlWritable = 0x0f
	controlRefresh  = 0x10 // toggles with memory refresh
	controlOut2     = 0x20
)

// Keyboard is what is left of the 8042 keyboard controller: no keyboard, no mouse, no interrupts, but
// enough for a driver to find that out at once, and the reset line, which is what it is still used
// for. It has the ports beside it as well: 0x61, and 0x92 with its fast reset.
type Keyboard struct {
	p platform.Platform

	command byte // the controller command whose data byte is awaited, or 0
	config  byte // the controller's command byte
	output  byte // what port 0x60 reads
	status  byte // keyboardOutputFull and keyboardAuxData
	control byte // port 0x61
	fast    byte // port 0x92

	absent bool // the controller does not show itself
}

// Hide makes the controller's own ports read as if nothing were there. Firmware would wait for an absent keyboard to
// answer, seconds at a time; an absent controller it recognizes at once. The reset line stays. It is part of the
// machine's configuration.
func (k *Keyboard) Hide() { k.absent = true }

// NewKeyboard maps the ports. The device lock is held.
func NewKeyboard(p platform.Platform) (*Keyboard, error) {
	k := &Keyboard{p: p}
	for _, w := range []struct {
		port uint64
		h    ports
	}{
		{portKeyboardData, ports{func(int) byte { return k.readData() }, func(_ int, v byte) { k.writeData(v) }}},
		{portKeyboardStatus, ports{func(int) byte { return k.readStatus() }, func(_ int, v byte) { k.writeCommand(v) }}},
		{portSystemControl, ports{func(int) byte { return k.readControl() }, func(_ int, v byte) { k.control = v & controlWritable }}},
		{portFastReset, ports{func(int) byte { return k.fast }, func(_ int, v byte) { k.writeFast(v) }}},
	} {
		if err := p.Ports().Map(w.port, 1, w.h); err != nil {
			return nil, fmt.Errorf("map port %#x: %w", w.port, err)
		}
	}
	return k, nil
}

func (k *Keyboard) answer(v, status byte) { k.output, k.status = v, keyboardOutputFull|status }

func (k *Keyboard) readStatus() byte {
	if k.absent {
		return 0xff
	}
	return k.status | keyboardSystem
}

func (k *Keyboard) readData() byte {
	if k.absent {
		return 0xff
	}
	k.status = 0
	return k.output
}

func (k *Keyboard) writeData(v byte) {
	command := k.command
	k.command = 0
	switch command {
	case 0x60:
		k.config = v
	case 0xd1: // output port: bit 0 low is reset
		if v&1 == 0 {
			k.p.PowerEvent(platform.Reset)
		}
	case 0xd2:
		k.answer(v, 0)
	case 0xd3:
		k.answer(v, keyboardAuxData)
	case 0xd4: // for the mouse, which is not there
		k.answer(keyboardResend, keyboardAuxData)
	default: // for the keyboard, which is not there
		k.answer(keyboardResend, 0)
	}
}

func (k *Keyboard) writeCommand(v byte) {
	k.command = 0
	switch {
	case v == 0x20:
		k.answer(k.config, 0)
	case v == 0x60 || v >= 0xd1 && v <= 0xd4:
		k.command = v
	case v == 0xaa: // self-test passed
		k.answer(0x55, 0)
	case v == 0xa9 || v == 0xab: // interface tests passed
		k.answer(0, 0)
	case v == 0xd0: // output port: reset line high, A20 on
		k.answer(0x03, 0)
	case v >= 0xf0 && v&1 == 0: // pulses of the output port's bits that are 0 here
		k.p.PowerEvent(platform.Reset)
	}
}

// readControl is port 0x61 where KVM's PIT does not answer for it: memory refresh is seen to toggle,
// and PIT channel 2 has always run out, so that nobody waits for it.
func (k *Keyboard) readControl() byte {
	k.control ^= controlRefresh
	return k.control | controlOut2
}

func (k *Keyboard) writeFast(v byte) {
	if v&1 != 0 && k.fast&1 == 0 {
		k.p.PowerEvent(platform.Reset)
	}
	k.fast = v & 3
}

// Reset implements platform.Resetter.
func (k *Keyboard) Reset() {
	k.command, k.config, k.output, k.status, k.control, k.fast = 0, 0, 0, 0, 0, 0
}

// StateID implements platform.Stateful.
func (k *Keyboard) StateID() string { return "i8042" }

// StateVersion implements platform.Stateful.
func (k *Keyboard) StateVersion() uint16 { return 1 }

// SaveState implements platform.Stateful.
func (k *Keyboard) SaveState(b []byte) []byte {
	return append(b, k.command, k.config, k.output, k.status, k.control, k.fast)
}

// RestoreState implements platform.Stateful.
func (k *Keyboard) RestoreState(_ uint16, b []byte) error {
	r := codec.NewReader(b)
	command, config, output, status, control, fast := r.U8(), r.U8(), r.U8(), r.U8(), r.U8(), r.U8()
	if status&^(keyboardOutputFull|keyboardAuxData) != 0 || control&^(controlWritable|controlRefresh) != 0 || fast&^3 != 0 {
		r.Failf("keyboard controller status %#x, port 0x61 %#x, port 0x92 %#x", status, control, fast)
	}
	if err := r.Done(); err != nil {
		return err
	}
	k.command, k.config, k.output, k.status, k.control, k.fast = command, config, output, status, control, fast
	return nil
}
