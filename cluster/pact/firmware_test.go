package pact

import "testing"

func TestAllDisks(t *testing.T) {
	s := Spec{Disks: make([]DiskSpec, 1, 8)}
	s.Disks[0] = DiskSpec{SizeBytes: 1 << 30, ReadOnly: true}
	if got := s.AllDisks(); len(got) != 1 || s.KeepsState() {
		t.Errorf("without firmware: %+v, keeps state %t", got, s.KeepsState())
	}
	s.Firmware = FirmwareUEFI
	got := s.AllDisks()
	if len(got) != 2 || got[1].SizeBytes != FirmwareBytes || got[1].ReadOnly {
		t.Errorf("with firmware: %+v", got)
	}
	if !s.KeepsState() {
		t.Error("variables are nothing that a start from an old copy would lose")
	}
	got[1].ReadOnly = true
	if again := s.AllDisks(); again[1].ReadOnly || len(s.Disks) != 1 {
		t.Error("two calls share their memory")
	}
}
