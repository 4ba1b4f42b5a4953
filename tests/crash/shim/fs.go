package shim

import (
	"bytes"
	"maps"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

const (
	rootNode = fuse.FUSE_ROOT_ID
	// noteName in the root directory takes the script's notes: they stand in order with what it did.
	noteName = ".note"
	noteNode = ^uint64(0) - 1
	forever  = 1 << 30 // seconds: nobody but the kernel changes anything here
)

// Call is an operation that is about to be made.
type Call struct {
	Kind Kind   // 0: a read
	Name string // of the file
	Off  int64
	Len  int64
}

// FS is the file system. Its zero value is not usable: Mount makes one.
type FS struct {
	fuse.RawFileSystem
	direct bool

	mu     sync.Mutex
	nodes  map[uint64]*node
	next   uint64
	tape   Tape
	broken func(Call) syscall.Errno
}

type node struct {
	name  string
	names map[string]uint64 // nil: a file
	data  []byte
}

// newFS makes an empty one. direct keeps the kernel from caching, so that each read comes here.
func newFS(direct bool) *FS {
	return &FS{
		RawFileSystem: fuse.NewDefaultRawFileSystem(), direct: direct, next: rootNode + 1,
		nodes: map[uint64]*node{rootNode: {name: "/", names: map[string]uint64{}}, noteNode: {name: noteName}},
	}
}

// Break asks fn before each operation; another answer than 0 is its outcome, and nothing happens. fn may
// take its time. nil ends it.
func (f *FS) Break(fn func(Call) syscall.Errno) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.broken = fn
}

// Tape is what was done until now.
func (f *FS) Tape() Tape {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.tape)
}

// String names the file system in messages of the library.
func (f *FS) String() string { return "shim" }

// begin asks whether an operation is to fail, and takes the lock where it is not.
func (f *FS) begin(id uint64, c Call) (*node, fuse.Status) {
	f.mu.Lock()
	n, broken := f.nodes[id], f.broken
	f.mu.Unlock()
	if n == nil {
		return nil, fuse.ENOENT
	}
	if id != noteNode && broken != nil {
		if c.Name == "" {
			c.Name = n.name
		}
		if errno := broken(c); errno != 0 {
			return nil, fuse.Status(errno)
		}
	}
	f.mu.Lock()
	return n, fuse.OK
}

// did records an operation; the lock is held.
func (f *FS) did(o Op) { f.tape = append(f.tape, o) }

func (f *FS) attr(id uint64, out *fuse.Attr) {
	n := f.nodes[id]
	*out = fuse.Attr{Ino: id, Mode: unix.S_IFREG | 0o600, Nlink: 1, Size: uint64(len(n.data)), Blocks: (uint64(len(n.data)) + 511) / 512, Blksize: 4096}
	if n.names != nil {
		out.Mode = unix.S_IFDIR | 0o700
	}
	out.Owner = fuse.Owner{Uid: uint32(os.Getuid()), Gid: uint32(os.Getgid())}
}

func (f *FS) entry(id uint64, out *fuse.EntryOut) {
	out.NodeId, out.EntryValid, out.AttrValid = id, forever, forever
	f.attr(id, &out.Attr)
}

// Lookup is FUSE's LOOKUP.
func (f *FS) Lookup(_ <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	d := f.nodes[h.NodeId]
	if d == nil || d.names == nil {
		return fuse.ENOENT
	}
	id, ok := d.names[name]
	if h.NodeId == rootNode && name == noteName {
		id, ok = noteNode, true
	}
	if !ok {
		return fuse.ENOENT
	}
	f.entry(id, out)
	return fuse.OK
}

// GetAttr is FUSE's GETATTR.
func (f *FS) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.nodes[in.NodeId] == nil {
		return fuse.ENOENT
	}
	out.SetTimeout(forever * time.Second)
	f.attr(in.NodeId, &out.Attr)
	return fuse.OK
}

// SetAttr is FUSE's SETATTR: of all attributes only the size matters here.
func (f *FS) SetAttr(_ <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	size, resize := in.GetSize()
	if resize {
		n, status := f.begin(in.NodeId, Call{Kind: Resize, Len: int64(size)})
		if !status.Ok() {
			return status
		}
		n.resize(int64(size))
		f.did(Op{Kind: Resize, Node: in.NodeId, Name: n.name, Len: int64(size)})
	} else {
		f.mu.Lock()
	}
	defer f.mu.Unlock()
	if f.nodes[in.NodeId] == nil {
		return fuse.ENOENT
	}
	out.SetTimeout(forever * time.Second)
	f.attr(in.NodeId, &out.Attr)
	return fuse.OK
}

func (n *node) resize(size int64) {
	if size <= int64(len(n.data)) {
		clear(n.data[size:])
		n.data = n.data[:size]
		return
	}
	n.data = append(n.data, make([]byte, size-int64(len(n.data)))...)
}

// add makes a file or directory; the lock is taken where the status is OK.
func (f *FS) add(dir uint64, name string, kind Kind, out *fuse.EntryOut) fuse.Status {
	d, status := f.begin(dir, Call{Kind: kind, Name: name})
	if !status.Ok() {
		return status
	}
	if _, ok := d.names[name]; ok {
		f.mu.Unlock()
		return fuse.Status(syscall.EEXIST)
	}
	id := f.next
	f.next++
	n := &node{name: name}
	if kind == Mkdir {
		n.names = map[string]uint64{}
	}
	f.nodes[id], d.names[name] = n, id
	f.did(Op{Kind: kind, Node: id, Dir: dir, Name: name})
	f.entry(id, out)
	return fuse.OK
}

// Mkdir is FUSE's MKDIR.
func (f *FS) Mkdir(_ <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	status := f.add(in.NodeId, name, Mkdir, out)
	if status.Ok() {
		f.mu.Unlock()
	}
	return status
}

// Create is FUSE's CREATE.
func (f *FS) Create(_ <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	status := f.add(in.NodeId, name, Create, &out.EntryOut)
	if status.Ok() {
		out.OpenFlags = f.openFlags()
		f.mu.Unlock()
	}
	return status
}

func (f *FS) openFlags() uint32 {
	if f.direct {
		return fuse.FOPEN_DIRECT_IO
	}
	return 0
}

// Open is FUSE's OPEN.
func (f *FS) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.nodes[in.NodeId]
	if n == nil {
		return fuse.ENOENT
	}
	out.OpenFlags = f.openFlags()
	return fuse.OK
}

// Read is FUSE's READ.
func (f *FS) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	n, status := f.begin(in.NodeId, Call{Off: int64(in.Offset), Len: int64(in.Size)})
	if !status.Ok() {
		return nil, status
	}
	defer f.mu.Unlock()
	at := min(in.Offset, uint64(len(n.data)))
	return fuse.ReadResultData(buf[:copy(buf[:in.Size], n.data[at:])]), fuse.OK
}

// Write is FUSE's WRITE.
func (f *FS) Write(_ <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	off := int64(in.Offset)
	n, status := f.begin(in.NodeId, Call{Kind: Write, Off: off, Len: int64(len(data))})
	if !status.Ok() {
		return 0, status
	}
	defer f.mu.Unlock()
	if in.NodeId == noteNode {
		f.did(Op{Kind: Note, Name: string(data)})
		return uint32(len(data)), fuse.OK
	}
	if end := off + int64(len(data)); end > int64(len(n.data)) {
		n.resize(end)
	}
	copy(n.data[off:], data)
	f.did(Op{Kind: Write, Node: in.NodeId, Name: n.name, Off: off, Data: bytes.Clone(data)})
	return uint32(len(data)), fuse.OK
}

// Fallocate is FUSE's FALLOCATE.
func (f *FS) Fallocate(_ <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	off, length := int64(in.Offset), int64(in.Length)
	kind := Allocate
	if in.Mode&(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_ZERO_RANGE) != 0 {
		kind = Zero
	}
	n, status := f.begin(in.NodeId, Call{Kind: kind, Off: off, Len: length})
	if !status.Ok() {
		return status
	}
	defer f.mu.Unlock()
	if kind == Zero {
		at := min(off, int64(len(n.data)))
		clear(n.data[at:min(off+length, int64(len(n.data)))])
	} else if in.Mode&unix.FALLOC_FL_KEEP_SIZE == 0 && off+length > int64(len(n.data)) {
		n.resize(off + length)
	}
	f.did(Op{Kind: kind, Node: in.NodeId, Name: n.name, Off: off, Len: length})
	return fuse.OK
}

// Fsync is FUSE's FSYNC, which is fdatasync too: the size is data.
func (f *FS) Fsync(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status { return f.sync(in.NodeId, Sync) }

// FsyncDir is FUSE's FSYNCDIR.
func (f *FS) FsyncDir(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	return f.sync(in.NodeId, SyncDir)
}

func (f *FS) sync(id uint64, kind Kind) fuse.Status {
	n, status := f.begin(id, Call{Kind: kind})
	if !status.Ok() {
		return status
	}
	defer f.mu.Unlock()
	f.did(Op{Kind: kind, Node: id, Name: n.name})
	return fuse.OK
}

// Unlink is FUSE's UNLINK.
func (f *FS) Unlink(_ <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	return f.remove(h.NodeId, name, false)
}

// Rmdir is FUSE's RMDIR.
func (f *FS) Rmdir(_ <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	return f.remove(h.NodeId, name, true)
}

func (f *FS) remove(dir uint64, name string, isDir bool) fuse.Status {
	d, status := f.begin(dir, Call{Kind: Unlink, Name: name})
	if !status.Ok() {
		return status
	}
	defer f.mu.Unlock()
	id, ok := d.names[name]
	switch {
	case !ok:
		return fuse.ENOENT
	case isDir && len(f.nodes[id].names) > 0:
		return fuse.Status(syscall.ENOTEMPTY)
	}
	delete(d.names, name)
	f.did(Op{Kind: Unlink, Node: id, Dir: dir, Name: name})
	return fuse.OK
}

// Rename is FUSE's RENAME.
func (f *FS) Rename(_ <-chan struct{}, in *fuse.RenameIn, oldName, newName string) fuse.Status {
	d, status := f.begin(in.NodeId, Call{Kind: Rename, Name: oldName})
	if !status.Ok() {
		return status
	}
	defer f.mu.Unlock()
	id, ok := d.names[oldName]
	to := f.nodes[in.Newdir]
	if !ok || to == nil {
		return fuse.ENOENT
	}
	if in.Flags != 0 {
		return fuse.EINVAL
	}
	if old, ok := to.names[newName]; ok && len(f.nodes[old].names) > 0 {
		return fuse.Status(syscall.ENOTEMPTY)
	}
	delete(d.names, oldName)
	to.names[newName] = id
	f.nodes[id].name = newName
	f.did(Op{Kind: Rename, Node: id, Dir: in.NodeId, Name: oldName, NewDir: in.Newdir, NewName: newName})
	return fuse.OK
}

// OpenDir is FUSE's OPENDIR.
func (f *FS) OpenDir(<-chan struct{}, *fuse.OpenIn, *fuse.OpenOut) fuse.Status { return fuse.OK }

// ReadDir is FUSE's READDIR.
func (f *FS) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	d := f.nodes[in.NodeId]
	if d == nil {
		return fuse.ENOENT
	}
	names := slices.Sorted(maps.Keys(d.names))
	for i := int(in.Offset); i < len(names); i++ {
		mode := uint32(unix.S_IFREG)
		if f.nodes[d.names[names[i]]].names != nil {
			mode = unix.S_IFDIR
		}
		if !out.AddDirEntry(fuse.DirEntry{Name: names[i], Ino: d.names[names[i]], Mode: mode, Off: uint64(i + 1)}) {
			break
		}
	}
	return fuse.OK
}

// StatFs is FUSE's STATFS.
func (f *FS) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	*out = fuse.StatfsOut{Bsize: 4096, Frsize: 4096, NameLen: 255, Blocks: 1 << 20, Bfree: 1 << 19, Bavail: 1 << 19}
	return fuse.OK
}

// Flush is FUSE's FLUSH: a close. The kernel asks once. A process that ends with files of its own file system open
// would wait for an answer that nobody gives any more.
func (f *FS) Flush(<-chan struct{}, *fuse.FlushIn) fuse.Status { return fuse.ENOSYS }
