package boot

import "encoding/binary"

// ACPISet is a machine's ACPI tables before anybody has decided where in RAM they lie. Firmware patches
// them itself (package firmware hands it the lists); without firmware place does.
type ACPISet struct {
	RSDP   []byte
	Tables []byte // all others, from here on aligned as they need it
	// Pointers are the fields that hold addresses of tables. What stands there counts from the start of Tables.
	Pointers []ACPIPointer
	// Checksums are those that the pointers have a part in, in the order in which they are to be computed.
	// Their bytes are zero.
	Checksums []ACPIChecksum
}

// ACPIAlign is the alignment that ACPISet.Tables needs, in bytes.
const ACPIAlign = 64

// ACPIPointer is a field of Size bytes at Offset.
type ACPIPointer struct {
	InRSDP       bool // the offset is one of the RSDP, else of Tables
	Offset, Size int
}

// ACPIChecksum is a byte at At that makes the sum of the Length bytes at Start zero.
type ACPIChecksum struct {
	InRSDP            bool
	At, Start, Length int
}

// add puts a table at the end and returns its offset.
func (s *ACPISet) add(table []byte, align int) int {
	for len(s.Tables)%align != 0 {
		s.Tables = append(s.Tables, 0)
	}
	at := len(s.Tables)
	s.Tables = append(s.Tables, table...)
	return at
}

// place patches the set for Tables at the address base.
func (s *ACPISet) place(base uint64) {
	part := func(rsdp bool) []byte {
		if rsdp {
			return s.RSDP
		}
		return s.Tables
	}
	for _, p := range s.Pointers {
		b := part(p.InRSDP)[p.Offset:][:p.Size]
		var v [8]byte
		copy(v[:], b)
		binary.LittleEndian.PutUint64(v[:], binary.LittleEndian.Uint64(v[:])+base)
		copy(b, v[:])
	}
	for _, c := range s.Checksums {
		b := part(c.InRSDP)
		b[c.At] = 0
		b[c.At] = checksum(b[c.Start : c.Start+c.Length])
	}
}
