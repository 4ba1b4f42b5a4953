package dicom

import (
	"bytes"
	"encoding/binary"
	"testing"
)

// Read back by the rules, element by element, a file ends where its pixels end.
func TestFileIsWellFormed(t *testing.T) {
	s := Study{Number: 3, Images: 2, Side: 16}
	b := s.file(1)
	if !bytes.Equal(b[128:132], []byte("DICM")) {
		t.Fatal("no DICM")
	}
	last := uint32(0)
	seen := make(map[uint32][]byte)
	for rest := b[132:]; len(rest) > 0; {
		tag := uint32(binary.LittleEndian.Uint16(rest))<<16 | uint32(binary.LittleEndian.Uint16(rest[2:]))
		if tag <= last {
			t.Errorf("element %08x comes after %08x", tag, last)
		}
		last = tag
		length, header := int(binary.LittleEndian.Uint16(rest[6:])), 8
		if vr := string(rest[4:6]); vr == "OB" || vr == "OW" {
			length, header = int(binary.LittleEndian.Uint32(rest[8:])), 12
		}
		if length%2 != 0 || header+length > len(rest) {
			t.Fatalf("element %08x has a length of %d", tag, length)
		}
		seen[tag] = rest[header : header+length]
		rest = rest[header+length:]
	}
	if got := string(bytes.TrimRight(seen[0x00080018], "\x00")); got != s.ImageUID(1) {
		t.Errorf("the image's UID is %q", got)
	}
	if !bytes.Equal(seen[0x7fe00010], s.Pixels(1)) || bytes.Equal(s.Pixels(0), s.Pixels(1)) {
		t.Error("the pixels are not the image's own")
	}
	if int(binary.LittleEndian.Uint32(seen[0x00020000])) == 0 {
		t.Error("the meta information has no length")
	}
}
