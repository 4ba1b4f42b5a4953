package firmware

// What is read in the modes in which that is not the contents repeats itself after so many bytes.
const answerSize = 256

// answer is what reads of the variables get.
type answer struct {
	mode   mode
	status byte // in modeStatus
}

// show makes the view of the variables what the mode says. The guest's memory stays where it is and changes
// its contents: taking a slot away from KVM would make it forget all page tables that it has for the guest.
func (f *Flash) show() {
	a := answer{mode: f.mode}
	if a.mode == modeStatus {
		a.status = f.status
	}
	if a == f.shown {
		return
	}
	f.shown = a
	view := f.view[:VarsSize]
	if a.mode == modeArray {
		copy(view, f.array)
		return
	}
	one := a.bytes()
	for n := copy(view, one[:]); n < len(view); n *= 2 {
		copy(view[n:], view[:n])
	}
}

func (a answer) bytes() (b [answerSize]byte) {
	switch a.mode {
	case modeStatus:
		for i := range b {
			b[i] = a.status
		}
	case modeID:
		b[0], b[1] = idMaker, idDevice
	case modeQuery:
		copy(b[queryBase:], query)
	}
	return b
}

const queryBase = 0x10

// query is the device's answer to the common flash interface's query (JESD68, section 2): its command set
// and geometry.
var query = []byte{
	'Q', 'R', 'Y',
	0x01, 0x00, 0x31, 0x00, // command set 1 (Intel), its own table
	0x00, 0x00, 0x00, 0x00, // no other command set
	0x45, 0x55, 0x00, 0x00, // supply 4.5 to 5.5 V, none for programming
	0x07, 0x00, 0x0a, 0x00, // typical times, as exponents of 2: a byte 128 us, no buffer, a block 1 s, no chip erase
	0x04, 0x00, 0x04, 0x00, // times 16 at most
	22,         // 2^22 bytes
	0x00, 0x00, // x8
	0x00, 0x00, // no buffer
	0x01,                                    // one region of equal blocks
	0xff, 0x03, blockSize >> 8 & 0xff, 0x00, // 1,024 blocks, size in units of 256 bytes
	'P', 'R', 'I', '1', '0', // nothing beyond the basic commands
}
