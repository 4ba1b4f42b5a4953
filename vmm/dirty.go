package vmm

import (
	"errors"
	"fmt"
	"math/bits"
	"sync"

	"github.com/pollux-ha/pollux/vmm/memory"
)

// dirtyLog is the record of pages written: KVM's, and that of the VMM's own writes. Bitmaps have
// one bit for each page of RAM, in memory.RAM's numbering.
type dirtyLog struct {
	sync.Mutex // guards on, estimate and own
	on         bool
	estimate   []uint64

	guest []uint64 // KVM's log as of the last harvest
	own   []uint64 // the VMM's writes as of the last harvest, that no capture has taken yet
	zero  []uint64 // those of own that the VMM has discarded last
	all   []uint64 // both
}

func (d *dirtyLog) init(words int) {
	for _, b := range []*[]uint64{&d.estimate, &d.guest, &d.own, &d.zero, &d.all} {
		*b = make([]uint64, words)
		for i := range *b {
			(*b)[i] = 0
		}
	}
}

var errLogOff = errors.New("dirty logging is off: switch it on first (SetDirtyLogging)")

// slotWords is a memory slot's part of a bitmap.
func slotWords(bitmap []uint64, r memory.Region) []uint64 {
	first := r.Offset / memory.PageSize / 64
	return bitmap[first : first+(r.Size/memory.PageSize+63)/64]
}

// harvest reads the log and says how many pages with content are in it, and how many that are known to be
// zero. It forgets nothing: that is clear's. Called in a pause.
func (d *dirtyLog) harvest(m *Machine) (pages, zero int, err error) {
	d.Lock()
	on := d.on
	d.Unlock()
	if !on {
		return 0, 0, errLogOff
	}
	for slot, r := range m.ram.Regions() {
		if err := m.vm.DirtyLog(uint32(slot), slotWords(d.guest, r)); err != nil {
			return 0, 0, err
		}
	}
	d.Lock()
	m.ram.HarvestDirty(d.own, d.zero)
	d.Unlock()
	for i, g := range d.guest {
		w := g | d.own[i]
		d.all[i] = w
		if w == 0 {
			continue
		}
		if both := d.zero[i] & g; both != 0 {
			// The guest has written them, before they were discarded or after.
			d.zero[i] = d.zero[i]&^both | m.ram.Holes(i, both)
		}
		pages += bits.OnesCount64(w)
		zero += bits.OnesCount64(d.zero[i])
	}
	return pages - zero, zero, nil
}

// zeros are the pages of a word that are zero: as of the last harvest nobody has written them since they
// were discarded.
func (d *dirtyLog) zeros(word int) uint64 { return d.zero[word] }

// clearGap is the number of clean words (64 pages each) that one call to KVM may skip over; looking
// at them costs KVM less than another call.
const clearGap = 1024

// clear forgets what was harvested and has KVM watch the pages that the guest has written again.
func (d *dirtyLog) clear(m *Machine) error {
	for slot, r := range m.ram.Regions() {
		words := slotWords(d.guest, r)
		pages := r.Size / memory.PageSize
		for i := 0; i < len(words); {
			if words[i] == 0 {
				i++
				continue
			}
			first, last := i, i
			for i++; i < len(words) && i-last <= clearGap; i++ {
				if words[i] != 0 {
					last = i
				}
			}
			n := min(uint64(last+1-first)*64, pages-uint64(first)*64)
			if err := m.vm.ClearDirtyLog(uint32(slot), uint64(first)*64, uint32(n), words[first:last+1]); err != nil {
				return err
			}
			i = last + 1
		}
	}
	d.Lock()
	clear(d.own)
	d.Unlock()
	clear(d.zero)
	return nil
}

// SetDirtyLogging switches the record of written pages on or off. Switched on, or on again, it
// begins with every page counting as written.
func (m *Machine) SetDirtyLogging(on bool) error {
	d := &m.dirty
	d.Lock()
	defer d.Unlock()
	set := func(on bool) error {
		for slot, r := range m.ram.Regions() {
			mem := m.ram.Bytes()[r.Offset : r.Offset+r.Size]
			if err := m.vm.SetMemory(uint32(slot), r.GPA, mem, on); err != nil {
				return fmt.Errorf("switch dirty logging: %w", err)
			}
		}
		d.on = on
		return nil
	}
	if d.on {
		if err := set(false); err != nil || !on {
			return err
		}
	}
	if !on {
		return nil
	}
	return set(true)
}

// DirtyCount is about how many pages the guest, or the VMM for it, has written since the last capture. It
// may be asked while the guest runs.
func (m *Machine) DirtyCount() (int, error) {
	d := &m.dirty
	d.Lock()
	defer d.Unlock()
	if !d.on {
		return 0, errLogOff
	}
	for slot, r := range m.ram.Regions() {
		if err := m.vm.DirtyLog(uint32(slot), slotWords(d.estimate, r)); err != nil {
			return 0, err
		}
	}
	m.ram.AddDirty(d.estimate)
	n := 0
	for i, w := range d.estimate {
		n += bits.OnesCount64(w | d.own[i])
	}
	return n, nil
}
