package boot

import (
	"encoding/binary"
	"strings"
)

// ACPI machine language, as much of it as the DSDT needs (ACPI specification 6.3, chapter 20). Each
// function returns the encoding of one term.

// AML opcodes.
const (
	amlName             = 0x08
	amlBytePrefix       = 0x0a
	amlWordPrefix       = 0x0b
	amlDWordPrefix      = 0x0c
	amlStringPrefix     = 0x0d
	amlScope            = 0x10
	amlBuffer           = 0x11
	amlPackage          = 0x12
	amlMethod           = 0x14
	amlDualNamePrefix   = 0x2e
	amlExtPrefix        = 0x5b
	amlDevice           = 0x82 // after amlExtPrefix
	amlArg0             = 0x68
	amlArg3             = 0x6b
	amlAnd              = 0x7b
	amlOr               = 0x7d
	amlCreateDWordField = 0x8a
	amlNotify           = 0x86
	amlEqual            = 0x93
	amlIf               = 0xa0
	amlElse             = 0xa1
	amlReturn           = 0xa4

	amlSerialized = 1 << 3 // method flag
)

func concat(terms ...[]byte) []byte {
	var b []byte
	for _, t := range terms {
		b = append(b, t...)
	}
	return b
}

func op(code byte, terms ...[]byte) []byte { return append([]byte{code}, concat(terms...)...) }

// pkg prefixes a body with its PkgLength, which counts itself (20.2.4).
func pkg(code []byte, terms ...[]byte) []byte {
	body := concat(terms...)
	var length []byte
	if n := len(body) + 1; n < 1<<6 {
		length = []byte{byte(n)}
	} else if n := len(body) + 2; n < 1<<12 {
		length = []byte{1<<6 | byte(n&0xf), byte(n >> 4)}
	} else {
		n := len(body) + 3
		length = []byte{2<<6 | byte(n&0xf), byte(n >> 4), byte(n >> 12)}
	}
	return concat(code, length, body)
}

// nameString encodes a path of one or two segments, with the root prefix where it starts with a backslash
// (20.2.2).
func nameString(name string) []byte {
	path := strings.TrimPrefix(name, `\`)
	b := []byte(name[:len(name)-len(path)])
	first, second, dual := strings.Cut(path, ".")
	if dual {
		b = append(b, amlDualNamePrefix)
	}
	b = append(b, (first + "____")[:4]...)
	if dual {
		b = append(b, (second + "____")[:4]...)
	}
	return b
}

func integer(v uint32) []byte {
	switch {
	case v <= 1:
		return []byte{byte(v)} // ZeroOp, OneOp
	case v <= 0xff:
		return []byte{amlBytePrefix, byte(v)}
	case v <= 0xffff:
		return binary.LittleEndian.AppendUint16([]byte{amlWordPrefix}, uint16(v))
	}
	return binary.LittleEndian.AppendUint32([]byte{amlDWordPrefix}, v)
}

func text(s string) []byte { return append(append([]byte{amlStringPrefix}, s...), 0) }

func named(name string, value []byte) []byte { return op(amlName, nameString(name), value) }

func scope(name string, terms ...[]byte) []byte {
	return pkg([]byte{amlScope}, append([][]byte{nameString(name)}, terms...)...)
}

func device(name string, terms ...[]byte) []byte {
	return pkg([]byte{amlExtPrefix, amlDevice}, append([][]byte{nameString(name)}, terms...)...)
}

func method(name string, args int, terms ...[]byte) []byte {
	return pkg([]byte{amlMethod}, append([][]byte{nameString(name), {byte(args) | amlSerialized}}, terms...)...)
}

func packageOf(elements ...[]byte) []byte {
	return pkg([]byte{amlPackage}, append([][]byte{{byte(len(elements))}}, elements...)...)
}

func buffer(b []byte) []byte { return pkg([]byte{amlBuffer}, integer(uint32(len(b))), b) }

// eisaID packs an ID such as "PNP0A08" (19.3.4): three letters of five bits and four digits.
func eisaID(id string) []byte {
	v := uint32(id[0]-'@')<<26 | uint32(id[1]-'@')<<21 | uint32(id[2]-'@')<<16
	for i, c := range []byte(id[3:7]) {
		v |= uint32(strings.IndexByte("0123456789ABCDEF", c)) << (12 - 4*i)
	}
	return binary.BigEndian.AppendUint32([]byte{amlDWordPrefix}, v)
}

// resources wraps resource descriptors (6.4) into the buffer that _CRS holds.
func resources(descriptors ...[]byte) []byte {
	return buffer(append(concat(descriptors...), 0x79, 0)) // end tag, no checksum
}

// Flags of address space descriptors (6.4.3.5).
const (
	spaceMemory, spaceIO, spaceBus = 0, 1, 2

	spaceFixed       = 1<<2 | 1<<3 // both ends are fixed
	spaceEntireRange = 3           // I/O: ISA and other addresses
	spaceWritable    = 1           // memory: not cached
)

// wordSpace is a stretch of bus numbers or ports that a bridge hands down.
func wordSpace(kind, flags byte, first, last uint16) []byte {
	b := []byte{0x88, 13, 0, kind, spaceFixed, flags}
	for _, v := range []uint16{0, first, last, 0, last - first + 1} {
		b = binary.LittleEndian.AppendUint16(b, v)
	}
	return b
}

// dwordMemory is a stretch of memory that a bridge hands down.
func dwordMemory(first, last uint32) []byte {
	b := []byte{0x87, 23, 0, spaceMemory, spaceFixed, spaceWritable}
	for _, v := range []uint32{0, first, last, 0, last - first + 1} {
		b = binary.LittleEndian.AppendUint32(b, v)
	}
	return b
}

// qwordMemory is the same above 4 GiB.
func qwordMemory(first, last uint64) []byte {
	b := []byte{0x8a, 43, 0, spaceMemory, spaceFixed, spaceWritable}
	for _, v := range []uint64{0, first, last, 0, last - first + 1} {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	return b
}

// ports is a device's own I/O range, decoded in 16 bits.
func ports(first uint16, n byte) []byte {
	b := []byte{0x47, 1}
	b = binary.LittleEndian.AppendUint16(b, first)
	b = binary.LittleEndian.AppendUint16(b, first)
	return append(b, 1, n)
}

// memory32 is a device's own memory.
func memory32(base, size uint32) []byte {
	b := []byte{0x86, 9, 0, 1}
	b = binary.LittleEndian.AppendUint32(b, base)
	return binary.LittleEndian.AppendUint32(b, size)
}

// irq is an ISA interrupt, edge-triggered.
func irq(n int) []byte {
	return binary.LittleEndian.AppendUint16([]byte{0x22}, 1<<n)
}
