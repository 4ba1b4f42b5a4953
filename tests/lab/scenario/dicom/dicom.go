// Package dicom writes images for the lab's DICOM server: valid CT images of made-up people, as small as a test
// wants them.
package dicom

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
)

// root is the prefix of the study's identifiers: 2.25 is for numbers that need no registration (PS3.5 B.2).
const root = "2.25.77"

// UIDs of DICOM PS3.6.
const (
	ctImageStorage   = "1.2.840.10008.5.1.4.1.1.2"
	explicitVRLittle = "1.2.840.10008.1.2.1"
)

// Study is a series of CT slices.
type Study struct {
	Number int // tells studies apart
	Images int
	Side   int // pixels of a slice's edge, 16 bits each
}

// UID is the study's instance UID.
func (s Study) UID() string { return fmt.Sprintf("%s.%d", root, s.Number) }

// ImageUID is the SOP instance UID of the nth image.
func (s Study) ImageUID(n int) string { return fmt.Sprintf("%s.1.%d", s.UID(), n+1) }

// Pixels are the nth image's: noise, so that nothing on the way makes them smaller than they are.
func (s Study) Pixels(n int) []byte {
	var seed [32]byte
	copy(seed[:], s.ImageUID(n))
	p := make([]byte, 2*s.Side*s.Side)
	_, _ = rand.NewChaCha8(seed).Read(p) // never fails
	for i := 1; i < len(p); i += 2 {
		p[i] &= 0x0f // 12 bits are stored
	}
	return p
}

// Write puts all images into dir, a file each.
func (s Study) Write(dir string) error {
	for n := range s.Images {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%05d.dcm", n)), s.file(n), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// file is the nth image in DICOM's file format (PS3.10 chapter 7).
func (s Study) file(n int) []byte {
	var meta encoder
	meta.add(0x0002, 0x0001, "OB", []byte{0, 1})
	meta.text(0x0002, 0x0002, "UI", ctImageStorage)
	meta.text(0x0002, 0x0003, "UI", s.ImageUID(n))
	meta.text(0x0002, 0x0010, "UI", explicitVRLittle)
	meta.text(0x0002, 0x0012, "UI", root+".0")
	var file encoder
	file.Write(make([]byte, 128))
	file.WriteString("DICM")
	file.add(0x0002, 0x0000, "UL", binary.LittleEndian.AppendUint32(nil, uint32(meta.Len())))
	file.Write(meta.Bytes())

	file.text(0x0008, 0x0008, "CS", `ORIGINAL\PRIMARY\AXIAL`)
	file.text(0x0008, 0x0016, "UI", ctImageStorage)
	file.text(0x0008, 0x0018, "UI", s.ImageUID(n))
	file.text(0x0008, 0x0020, "DA", "20260101")
	file.text(0x0008, 0x0030, "TM", "120000")
	file.text(0x0008, 0x0050, "SH", fmt.Sprint(s.Number))
	file.text(0x0008, 0x0060, "CS", "CT")
	file.text(0x0008, 0x0070, "LO", "Lab")
	file.text(0x0008, 0x0090, "PN", "")
	file.text(0x0010, 0x0010, "PN", fmt.Sprintf("Patient^No%d", s.Number))
	file.text(0x0010, 0x0020, "LO", fmt.Sprintf("P%d", s.Number))
	file.text(0x0010, 0x0030, "DA", "")
	file.text(0x0010, 0x0040, "CS", "O")
	file.text(0x0020, 0x000d, "UI", s.UID())
	file.text(0x0020, 0x000e, "UI", s.UID()+".1")
	file.text(0x0020, 0x0010, "SH", fmt.Sprint(s.Number))
	file.text(0x0020, 0x0011, "IS", "1")
	file.text(0x0020, 0x0013, "IS", fmt.Sprint(n+1))
	file.text(0x0020, 0x0032, "DS", fmt.Sprintf(`0\0\%d`, n))
	file.text(0x0020, 0x0037, "DS", `1\0\0\0\1\0`)
	file.text(0x0020, 0x0052, "UI", s.UID()+".2")
	file.number(0x0028, 0x0002, 1) // samples per pixel
	file.text(0x0028, 0x0004, "CS", "MONOCHROME2")
	file.number(0x0028, 0x0010, s.Side)
	file.number(0x0028, 0x0011, s.Side)
	file.text(0x0028, 0x0030, "DS", `1\1`)
	file.number(0x0028, 0x0100, 16) // bits allocated, stored, highest; unsigned
	file.number(0x0028, 0x0101, 12)
	file.number(0x0028, 0x0102, 11)
	file.number(0x0028, 0x0103, 0)
	file.text(0x0028, 0x1052, "DS", "-1024")
	file.text(0x0028, 0x1053, "DS", "1")
	file.add(0x7fe0, 0x0010, "OW", s.Pixels(n))
	return file.Bytes()
}

// encoder writes elements with explicit value representations, little-endian (PS3.5 7.1.2).
type encoder struct{ bytes.Buffer }

func (e *encoder) add(group, element uint16, vr string, value []byte) {
	b := binary.LittleEndian.AppendUint16(nil, group)
	b = binary.LittleEndian.AppendUint16(b, element)
	b = append(b, vr...)
	if vr == "OB" || vr == "OW" {
		b = binary.LittleEndian.AppendUint32(append(b, 0, 0), uint32(len(value)))
	} else {
		b = binary.LittleEndian.AppendUint16(b, uint16(len(value)))
	}
	e.Write(append(b, value...))
}

func (e *encoder) text(group, element uint16, vr, value string) {
	if len(value)%2 != 0 {
		pad := " "
		if vr == "UI" {
			pad = "\x00"
		}
		value += pad
	}
	e.add(group, element, vr, []byte(value))
}

func (e *encoder) number(group, element uint16, value int) {
	e.add(group, element, "US", binary.LittleEndian.AppendUint16(nil, uint16(value)))
}
