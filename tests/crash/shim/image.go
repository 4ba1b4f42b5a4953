package shim

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
)

// Sector is what a disk writes as a whole, in bytes.
const Sector = 512

// Loss decides what becomes of operations that were not durable when the power went.
type Loss interface {
	// Name says whether operation i, which changed a directory, is there.
	Name(i int) bool
	// Size says whether operation i's change of its file's size is there.
	Size(i int) bool
	// Sector says whether the n-th sector of what operation i changed in its file is there.
	Sector(i, n int) bool
}

// Image is what a loss of power has left: the root directory.
type Image struct {
	root  uint64
	names map[uint64]map[string]uint64
	files map[uint64]*content
}

type content struct {
	data []byte // beyond size: zeros, unless a later operation makes the file longer
	size int64
}

func (c *content) reserve(n int64) {
	if n > int64(len(c.data)) {
		c.data = append(c.data, make([]byte, n-int64(len(c.data)))...)
	}
}

// Durable says of each of the first n operations whether it was durable then.
func (t Tape) Durable(n int) []bool {
	synced := map[uint64]bool{}
	out := make([]bool, n)
	for i := n - 1; i >= 0; i-- {
		switch o := &t[i]; {
		case o.Kind == Sync || o.Kind == SyncDir:
			synced[o.Node], out[i] = true, true
		case o.Kind == Rename:
			out[i] = synced[o.Dir] || synced[o.NewDir]
		case o.isNames():
			out[i] = synced[o.Dir]
		case o.isData():
			out[i] = synced[o.Node]
		default:
			out[i] = true
		}
	}
	return out
}

// After is what is left where the power goes after the first n operations.
func (t Tape) After(n int, loss Loss) *Image {
	img := &Image{root: rootNode, names: map[uint64]map[string]uint64{}, files: map[uint64]*content{}}
	durable := t.Durable(n)
	for i := range t[:n] {
		o := &t[i]
		switch {
		case o.isData():
			img.data(o, func() bool { return durable[i] || loss.Size(i) }, func(n int) bool { return durable[i] || loss.Sector(i, n) })
		case o.isNames() && (durable[i] || loss.Name(i)):
			img.name(o)
		}
	}
	return img
}

func (m *Image) file(node uint64) *content {
	c := m.files[node]
	if c == nil {
		c = &content{}
		m.files[node] = c
	}
	return c
}

func (m *Image) data(o *Op, size func() bool, sector func(n int) bool) {
	c := m.file(o.Node)
	switch o.Kind {
	case Resize:
		if size() {
			c.reserve(o.Len)
			clear(c.data[min(o.Len, int64(len(c.data))):])
			c.size = o.Len
		}
		return
	case Allocate:
		if size() {
			c.reserve(o.Off + o.Len)
			c.size = max(c.size, o.Off+o.Len)
		}
		return
	}
	n := int64(len(o.Data))
	if o.Kind == Zero {
		n = o.Len
	}
	c.reserve(o.Off + n)
	if o.Kind == Write && size() {
		c.size = max(c.size, o.Off+n)
	}
	for at, i := o.Off, 0; at < o.Off+n; i++ {
		end := min((at/Sector+1)*Sector, o.Off+n)
		if sector(i) {
			if o.Kind == Zero {
				clear(c.data[at:end])
			} else {
				copy(c.data[at:end], o.Data[at-o.Off:end-o.Off])
			}
		}
		at = end
	}
}

func (m *Image) dir(node uint64) map[string]uint64 {
	d := m.names[node]
	if d == nil {
		d = map[string]uint64{}
		m.names[node] = d
	}
	return d
}

func (m *Image) name(o *Op) {
	switch o.Kind {
	case Create:
		m.file(o.Node)
		m.dir(o.Dir)[o.Name] = o.Node
	case Mkdir:
		m.dir(o.Node)
		m.dir(o.Dir)[o.Name] = o.Node
	case Unlink:
		delete(m.dir(o.Dir), o.Name)
	case Rename:
		if d := m.dir(o.Dir); d[o.Name] == o.Node {
			delete(d, o.Name)
		}
		m.dir(o.NewDir)[o.NewName] = o.Node
	}
}

// Write puts the image into an empty directory.
func (m *Image) Write(dir string) error { return m.write(m.root, dir) }

func (m *Image) write(node uint64, dir string) error {
	for _, name := range slices.Sorted(maps.Keys(m.names[node])) {
		n := m.names[node][name]
		path := filepath.Join(dir, name)
		c, ok := m.files[n]
		if !ok {
			if err := os.Mkdir(path, 0o700); err != nil {
				return fmt.Errorf("write an image: %w", err)
			}
			if err := m.write(n, path); err != nil {
				return err
			}
			continue
		}
		b := make([]byte, c.size)
		copy(b, c.data)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			return fmt.Errorf("write an image: %w", err)
		}
	}
	return nil
}

// Key tells images apart: equal ones need only one look.
func (m *Image) Key() string { return m.key(m.root) }

func (m *Image) key(node uint64) string {
	s := ""
	for _, name := range slices.Sorted(maps.Keys(m.names[node])) {
		n := m.names[node][name]
		if c, ok := m.files[n]; ok {
			c.reserve(c.size)
			s += fmt.Sprintf("%q%d:%x;", name, c.size, sum(c.data[:c.size]))
			continue
		}
		s += fmt.Sprintf("%q{%s}", name, m.key(n))
	}
	return s
}
