package pki

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// The certificates that count no more are known to Raft. The daemon keeps a copy of the list beside the certificates,
// where data-plane processes, which know nothing of Raft, look at every handshake: serial numbers, one a line.
const revokedFile = "revoked"

// RevokedFile is the name of that copy in a PKI directory.
const RevokedFile = revokedFile

// ErrRevoked says that a peer's certificate counts no more.
var ErrRevoked = errors.New("its certificate was revoked")

// cutOffEvery is how often an open connection's certificate is looked at again.
const cutOffEvery = time.Second

// StoreRevoked replaces the copy, where it has changed.
func StoreRevoked(dir string, serials []string) error {
	serials = slices.Clone(serials)
	slices.Sort(serials)
	text := strings.Join(slices.Compact(serials), "\n") + "\n"
	path := filepath.Join(dir, revokedFile)
	if have, err := os.ReadFile(path); err == nil && string(have) == text {
		return nil
	}
	return writeFile(path, []byte(text), 0o644)
}

// revocations is what was last read of the file.
type revocations struct {
	seen    fs.FileInfo // nil: there was none
	serials map[string]bool
}

// refuses says whether a certificate counts no more, as far as this process knows. Where the list can't be read, the
// last one that could stands.
func (id *Identity) refuses(serial string) bool {
	id.mu.Lock()
	defer id.mu.Unlock()
	path := filepath.Join(id.dir, revokedFile)
	r := &id.revoked
	info, err := os.Stat(path)
	if err == nil && (r.seen == nil || changed(info, r.seen)) {
		if b, err := os.ReadFile(path); err == nil {
			r.seen, r.serials = info, map[string]bool{}
			for line := range strings.Lines(string(b)) {
				r.serials[strings.TrimSpace(line)] = true
			}
		}
	}
	return r.serials[serial]
}

// current refuses a verified peer whose certificate counts no more.
func (id *Identity) current(p Peer) error {
	if id.refuses(p.Serial) {
		return fmt.Errorf("%w: %s: %w", ErrPeer, p.Name, ErrRevoked)
	}
	return nil
}

// CutOff has a member's connection closed when its certificate is revoked, at most some seconds after this process
// knows. It needs no end: it ends with the connection.
func (id *Identity) CutOff(conn *tls.Conn) {
	peer, err := PeerOf(conn.ConnectionState())
	raw, ok := conn.NetConn().(syscall.Conn)
	if err != nil || !ok {
		return
	}
	socket, err := raw.SyscallConn()
	if err != nil {
		return
	}
	var look func()
	look = func() {
		if socket.Control(func(uintptr) {}) != nil {
			return // it is closed
		}
		if id.refuses(peer.Serial) {
			conn.NetConn().Close()
			return
		}
		time.AfterFunc(cutOffEvery, look)
	}
	time.AfterFunc(cutOffEvery, look)
}

// takeGroup gives a file the group of another one, where that is possible: without it the file is only the
// owner's.
func takeGroup(f *os.File, like fs.FileInfo) error {
	st, ok := like.Sys().(*syscall.Stat_t)
	if !ok {
		return nil
	}
	if err := f.Chown(-1, int(st.Gid)); err != nil && !errors.Is(err, fs.ErrPermission) && !errors.Is(err, syscall.EINVAL) {
		return err
	}
	return nil
}
