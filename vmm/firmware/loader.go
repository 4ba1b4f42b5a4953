package firmware

import (
	"encoding/binary"

	"github.com/pollux-ha/pollux/vmm/boot"
)

// Files through which firmware gets ACPI tables, and commands of the script that tells it what to do with
// them. A command has 128 bytes: its number, then its operands, little-endian, names padded with NULs to 56 bytes.
const (
	fileRSDP   = "etc/acpi/rsdp"
	fileTables = "etc/acpi/tables"
	fileLoader = "etc/table-loader"

	loadAllocate    = 1 // file, alignment u32, zone u8: put the file into RAM
	loadAddPointer  = 2 // file to patch, file pointed at, offset u32, size u8: add the latter's address
	loadAddChecksum = 3 // file, offset of the checksum u32, start u32, length u32
	loadCommand     = 128
	loadName        = 56

	zoneHigh = 1 // anywhere below 4 GiB
	zoneFSEG = 2 // between 0xf0000 and 1 MiB, for systems that search
)

// loaderScript says how to place and patch a set of tables.
func loaderScript(s *boot.ACPISet) []byte {
	var script []byte
	le := binary.LittleEndian
	command := func(number uint32, operands ...[]byte) {
		c := le.AppendUint32(nil, number)
		for _, o := range operands {
			c = append(c, o...)
		}
		script = append(append(script, c...), make([]byte, loadCommand-len(c))...)
	}
	name := func(rsdp bool) []byte {
		n := make([]byte, loadName)
		if rsdp {
			copy(n, fileRSDP)
		} else {
			copy(n, fileTables)
		}
		return n
	}
	u32 := func(v int) []byte { return le.AppendUint32(nil, uint32(v)) }
	command(loadAllocate, name(true), u32(16), []byte{zoneFSEG})
	command(loadAllocate, name(false), u32(boot.ACPIAlign), []byte{zoneHigh})
	for _, p := range s.Pointers {
		command(loadAddPointer, name(p.InRSDP), name(false), u32(p.Offset), []byte{byte(p.Size)})
	}
	for _, c := range s.Checksums {
		command(loadAddChecksum, name(c.InRSDP), u32(c.At), u32(c.Start), u32(c.Length))
	}
	return script
}
