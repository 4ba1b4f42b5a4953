package shim

import (
	"fmt"
	"slices"
)

// Kind is what an operation did.
type Kind uint8

// The operations that leave something behind, and those that make it durable.
const (
	Create   Kind = iota + 1 // a new file, in Dir under Name
	Mkdir                    // a new directory, likewise
	Write                    // Data at Off
	Resize                   // the file has Len bytes now
	Zero                     // Len bytes at Off read as zeros; the size stays
	Allocate                 // space up to Off+Len; the file is at least as long now
	Sync                     // the file's content and size are durable
	SyncDir                  // the directory's names are durable
	Rename                   // Name in Dir becomes NewName in NewDir
	Unlink                   // Name in Dir goes
	Note                     // the script said Name: nothing happened on the disk
)

// Op is one operation of a recorded run.
type Op struct {
	Kind    Kind
	Node    uint64 // the file or directory; of Rename, what moved
	Dir     uint64
	Name    string
	NewDir  uint64
	NewName string
	Off     int64
	Len     int64
	Data    []byte
}

func (o Op) String() string {
	switch o.Kind {
	case Create:
		return fmt.Sprintf("create %s (%d)", o.Name, o.Node)
	case Mkdir:
		return fmt.Sprintf("mkdir %s (%d)", o.Name, o.Node)
	case Write:
		return fmt.Sprintf("write %s (%d): %d bytes at %d", o.Name, o.Node, len(o.Data), o.Off)
	case Resize:
		return fmt.Sprintf("resize %s (%d): %d bytes", o.Name, o.Node, o.Len)
	case Zero:
		return fmt.Sprintf("zero %s (%d): %d bytes at %d", o.Name, o.Node, o.Len, o.Off)
	case Allocate:
		return fmt.Sprintf("allocate %s (%d): %d bytes at %d", o.Name, o.Node, o.Len, o.Off)
	case Sync:
		return fmt.Sprintf("sync %s (%d)", o.Name, o.Node)
	case SyncDir:
		return fmt.Sprintf("sync directory %s (%d)", o.Name, o.Node)
	case Rename:
		return fmt.Sprintf("rename %s to %s (%d)", o.Name, o.NewName, o.Node)
	case Unlink:
		return fmt.Sprintf("unlink %s (%d)", o.Name, o.Node)
	case Note:
		return "note " + o.Name
	}
	return fmt.Sprintf("operation %d", o.Kind)
}

// Tape is what a run did to its file system, in order.
type Tape []Op

// Notes are those of the first n operations.
func (t Tape) Notes(n int) []string {
	var out []string
	for _, o := range t[:n] {
		if o.Kind == Note {
			out = append(out, o.Name)
		}
	}
	return out
}

// Story tells of the operations from..to, for the message of a failing test.
func (t Tape) Story(from, to int) string {
	s := ""
	for i := max(0, from); i < min(to, len(t)); i++ {
		s += fmt.Sprintf("\n\t%4d %v", i, t[i])
	}
	return s
}

// isNames says whether the operation changes what a directory lists.
func (o *Op) isNames() bool {
	return slices.Contains([]Kind{Create, Mkdir, Rename, Unlink}, o.Kind)
}

// isData says whether the operation changes a file.
func (o *Op) isData() bool {
	return slices.Contains([]Kind{Write, Resize, Zero, Allocate}, o.Kind)
}
