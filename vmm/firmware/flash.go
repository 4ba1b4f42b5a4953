package firmware

import (
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"

	"github.com/pollux-ha/pollux/vmm/platform"
)

// Sizes of the flash memory's two parts, in bytes, as OVMF's build with 4 MiB has them.
const (
	VarsSize = 0x8_4000 // variables, from platform.FlashBase on
	CodeSize = platform.FlashSize - VarsSize
)

// Commands, status bits and identifiers (28F640J3, tables 5 and 7; the device is 8 bits wide).
const (
	cmdReadArray    = 0xff
	cmdReadID       = 0x90
	cmdQuery        = 0x98
	cmdReadStatus   = 0x70
	cmdClearStatus  = 0x50
	cmdErase        = 0x20
	cmdEraseConfirm = 0xd0
	cmdProgram      = 0x40
	cmdProgramAlt   = 0x10

	statusReady        = 1 << 7
	statusEraseError   = 1 << 5
	statusProgramError = 1 << 4

	idMaker  = 0x89
	idDevice = 0x18

	blockSize = 4096 // what an erasure erases: OVMF's idea of it, and that of its variable store
)

// mode is what the flash memory answers a read with.
type mode uint8

const (
	modeArray mode = iota
	modeStatus
	modeID
	modeQuery
	modes
)

// BlockFile is where the flash memory's contents live: a mirrored disk of platform.FlashSize bytes.
type BlockFile interface {
	io.ReaderAt
	io.WriterAt
	Sync() error
	Size() int64
}

// FlashConfig describes the flash memory.
type FlashConfig struct {
	File BlockFile
	Disk int // its number, as in Output.DiskWritten
	// Failed hears of each access to the file that fails: "write" or "flush", and which bytes of it. The
	// guest is told by its status register, which firmware does not look at. The device lock is held.
	Failed func(op string, offset, bytes int64, err error)
}

// Flash is the flash memory below 4 GiB: variables, which the guest can write, and firmware code, which it
// can't. All of it is memory that the guest reads and runs without an exit; what it writes comes here.
//
// What the guest programs reaches the file when it turns to something else, at the latest when it goes
// back to reading, and is durable then. Until then up to blockSize bytes are part of the device's state.
type Flash struct {
	p      platform.Platform
	file   BlockFile
	disk   int
	failed func(op string, offset, bytes int64, err error)

	view  []byte // what the guest reads: array, or in other modes the answer, over and over
	array []byte // the contents

	mode    mode
	status  byte
	pending byte // the first half of a command of two bytes, or 0

	at     uint32 // where the bytes that are programmed and not in the file begin
	bytes  []byte
	unsafe bool // something in the file is not durable

	shown answer // what the view of the variables holds
}

// NewFlash makes the flash memory. It is empty until Activate.
func NewFlash(p platform.Platform, c FlashConfig) (*Flash, error) {
	if size := c.File.Size(); size != platform.FlashSize {
		return nil, fmt.Errorf("the firmware's file has %d bytes, flash memory has %d", size, platform.FlashSize)
	}
	if c.Failed == nil {
		c.Failed = func(string, int64, int64, error) {}
	}
	view, err := unix.Mmap(-1, 0, platform.FlashSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("map %d bytes of flash memory: %w", platform.FlashSize, err)
	}
	f := &Flash{p: p, file: c.File, disk: c.Disk, failed: c.Failed, view: view, array: make([]byte, platform.FlashSize)}
	if err := p.MMIO().Map(platform.FlashBase, platform.FlashSize, (*flashBus)(f)); err != nil {
		return nil, errors.Join(fmt.Errorf("map the flash memory: %w", err), f.Close())
	}
	return f, nil
}

// Memory is what the guest finds at platform.FlashBase. It must not be able to write there without an exit.
func (f *Flash) Memory() []byte { return f.view }

// Close frees the memory. No machine has it mapped any more.
func (f *Flash) Close() error {
	if f.view == nil {
		return nil
	}
	err := unix.Munmap(f.view)
	f.view = nil
	return err
}

// Activate implements platform.Activator: the contents are what the file holds and what had not reached it.
func (f *Flash) Activate() error {
	if _, err := f.file.ReadAt(f.array, 0); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read the firmware and its variables: %w", err)
	}
	copy(f.array[f.at:], f.bytes)
	copy(f.view, f.array)
	f.shown = answer{}
	f.show()
	return nil
}

// Reset implements platform.Resetter. What has been programmed stays, as in any flash memory.
func (f *Flash) Reset() {
	f.settle()
	f.mode, f.pending, f.status = modeArray, 0, statusReady
	f.show()
}

// flashBus takes the guest's accesses. Reads come here only by way of an instruction that KVM emulates.
type flashBus Flash

func (b *flashBus) Read(off uint64, data []byte) { copy(data, b.view[off:]) }

func (b *flashBus) Write(off uint64, data []byte) {
	f := (*Flash)(b)
	for i, v := range data { // a device of 8 bits on the bus
		if at := uint32(off) + uint32(i); at < VarsSize {
			f.write(at, v)
		}
	}
}

func (f *Flash) write(at uint32, v byte) {
	first := f.pending
	f.pending = 0
	switch {
	case first == cmdProgram:
		f.program(at, v)
	case first == cmdErase && v == cmdEraseConfirm:
		f.erase(at)
	case first == cmdErase:
		f.status |= statusEraseError | statusProgramError
	default:
		f.command(v)
	}
	f.show()
}

func (f *Flash) command(v byte) {
	switch v {
	case cmdProgram, cmdProgramAlt:
		f.pending, f.mode = cmdProgram, modeStatus
		return
	case cmdErase:
		f.pending, f.mode = cmdErase, modeStatus
	case cmdReadStatus:
		f.mode = modeStatus
	case cmdClearStatus:
		// A real device keeps its ready bit. QEMU's does not, and OVMF knows flash memory by that.
		f.mode, f.status = modeArray, 0
	case cmdReadID:
		f.mode = modeID
	case cmdQuery:
		f.mode = modeQuery
	default: // cmdReadArray, and whatever is no command
		f.mode = modeArray
		f.settle()
	}
	f.flush()
}

// program clears the bits of one byte that v has clear. A real device would not set any, firmware
// erases before it programs; QEMU's sets them, and what runs on that must run here.
func (f *Flash) program(at uint32, v byte) {
	if n := uint32(len(f.bytes)); n == blockSize || n > 0 && at != f.at+n {
		f.flush()
	}
	if len(f.bytes) == 0 {
		f.at = at
	}
	f.bytes = append(f.bytes, v)
	f.array[at] = v
	f.status |= statusReady
}

// erase sets all bits of a block.
func (f *Flash) erase(at uint32) {
	f.flush()
	at &^= blockSize - 1
	block := f.array[at : at+blockSize]
	for i := range block {
		block[i] = 0xff
	}
	f.store(at, block)
	f.status |= statusReady
}

// flush takes what has been programmed to the file.
func (f *Flash) flush() {
	if len(f.bytes) > 0 {
		f.store(f.at, f.bytes)
		f.at, f.bytes = 0, f.bytes[:0]
	}
}

// store writes to the file and reports it. What a broken disk does not take is reported all the same: the
// twin's copy is to have what the guest sees.
func (f *Flash) store(at uint32, data []byte) {
	if _, err := f.file.WriteAt(data, int64(at)); err != nil {
		f.status |= statusProgramError
		f.failed("write", int64(at), int64(len(data)), err)
	}
	f.unsafe = true
	f.p.Output().DiskWritten(f.disk, int64(at), append([]byte(nil), data...))
}

// settle makes durable all that the guest has written.
func (f *Flash) settle() {
	f.flush()
	if !f.unsafe {
		return
	}
	f.unsafe = false
	if err := f.file.Sync(); err != nil {
		f.status |= statusProgramError
		f.failed("flush", 0, 0, err)
	}
}

// copyPiece is what CopyRange reports at once, in bytes.
const copyPiece = 256 << 10

// CopyRange reports n bytes at offset through Output.DiskWritten, in order with the guest's own writes.
// The device lock is held.
func (f *Flash) CopyRange(offset, n int64) error {
	if size := int64(platform.FlashSize); offset < 0 || n < 0 || offset > size || n > size-offset {
		return fmt.Errorf("copy %d bytes at %d of the firmware, which has %d", n, offset, size)
	}
	f.flush()
	for end := offset + n; offset < end; {
		piece := min(copyPiece, end-offset)
		f.p.Output().DiskWritten(f.disk, offset, append([]byte(nil), f.array[offset:offset+piece]...))
		offset += piece
	}
	return nil
}
