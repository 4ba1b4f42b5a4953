package vmm

import (
	"encoding/binary"
	"fmt"
)

// asm assembles the few instructions that test guests need.
type asm struct {
	b      []byte
	labels map[string]int
	fixes  []fix
}

type fix struct {
	at int
	to string
}

func newAsm() *asm { return &asm{labels: map[string]int{}} }

func (a *asm) raw(b ...byte) *asm { a.b = append(a.b, b...); return a }

func (a *asm) label(l string) *asm { a.labels[l] = len(a.b); return a }

// short emits a jump's opcode with an 8-bit displacement.
func (a *asm) short(op byte, to string) *asm {
	a.b = append(a.b, op, 0)
	a.fixes = append(a.fixes, fix{len(a.b) - 1, to})
	return a
}

func (a *asm) jmp(to string) *asm { return a.short(0xeb, to) }
func (a *asm) je(to string) *asm  { return a.short(0x74, to) }

func (a *asm) imm32(op []byte, v uint32) *asm {
	a.b = append(a.b, op...)
	a.b = binary.LittleEndian.AppendUint32(a.b, v)
	return a
}

// Loads of a 32-bit value, zero-extended.
func (a *asm) eax(v uint32) *asm { return a.imm32([]byte{0xb8}, v) }
func (a *asm) edx(v uint32) *asm { return a.imm32([]byte{0xba}, v) }
func (a *asm) ebx(v uint32) *asm { return a.imm32([]byte{0xbb}, v) }
func (a *asm) esi(v uint32) *asm { return a.imm32([]byte{0xbe}, v) }

// store32 is mov dword [address], v, by way of rax.
func (a *asm) store32(address, v uint32) *asm { return a.eax(address).imm32([]byte{0xc7, 0x00}, v) }

func (a *asm) bytes() []byte {
	for _, f := range a.fixes {
		to, ok := a.labels[f.to]
		d := to - f.at - 1
		if !ok || d < -128 || d > 127 {
			panic(fmt.Sprintf("jump to %q", f.to))
		}
		a.b[f.at] = byte(d)
	}
	return a.b
}
