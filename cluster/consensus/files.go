package consensus

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
	"go.uber.org/zap"

	"github.com/pollux-ha/pollux/cluster/durable"
	"github.com/pollux-ha/pollux/cluster/pki"
)

// files are what a voter keeps: its id, the log with the votes, the snapshots.
type files struct {
	id    string
	store *raftboltdb.BoltStore
	snaps snapshots
}

// openFiles opens them in dir, and makes them where there are none.
func openFiles(dir string, role pki.Role, name string, log *zap.Logger) (files, error) {
	if err := durable.MkdirAll(dir, 0o700); err != nil {
		return files{}, err
	}
	db := filepath.Join(dir, "raft.db")
	id, err := openID(dir, db, role, name)
	if err != nil {
		return files{}, err
	}
	f := files{id: id}
	if f.store, err = openLog(db); err != nil {
		return files{}, err
	}
	if f.snaps.FileSnapshotStore, err = raft.NewFileSnapshotStoreWithLogger(dir, snapshotRetain, raftLogger(log)); err == nil {
		f.snaps.dir = dir
		err = f.check(dir)
	}
	if err != nil {
		return files{}, errors.Join(err, f.store.Close())
	}
	// The directory of the snapshots, and the name of a log of which a crash left nothing else to do.
	if err := durable.SyncDir(dir); err != nil {
		return files{}, errors.Join(err, f.store.Close())
	}
	return f, nil
}

// check finds a log whose beginning is nowhere. The library would panic.
func (f *files) check(dir string) error {
	first, err := f.store.FirstIndex()
	if err != nil {
		return fmt.Errorf("read the log: %w", err)
	}
	list, err := f.snaps.List()
	if err != nil {
		return fmt.Errorf("look for snapshots: %w", err)
	}
	if first > 1 && (len(list) == 0 || list[0].Index < first-1) {
		return fmt.Errorf("the log in %s begins with entry %d, and there is no snapshot of what was before: restore the directory, "+
			"or move it away and this voter joins again under a new id", dir, first)
	}
	return nil
}

// openLog opens the log. A new one is made under another name first: a loss of power in the middle would
// leave a file in which bbolt finds no database, and a voter that does not start.
func openLog(db string) (*raftboltdb.BoltStore, error) {
	if _, err := os.Stat(db); errors.Is(err, fs.ErrNotExist) {
		made := db + ".new"
		if err := os.Remove(made); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("begin the log: %w", err)
		}
		s, err := openBolt(made)
		if err == nil {
			err = s.Close()
		}
		if err == nil {
			err = durable.Rename(made, db)
		}
		if err != nil {
			return nil, fmt.Errorf("begin the log: %w", err)
		}
	}
	s, err := openBolt(db)
	if errors.Is(err, bbolt.ErrTimeout) {
		return nil, errors.New("the log is locked: another daemon uses this state_dir")
	}
	if err != nil {
		return nil, fmt.Errorf("open the log %s: %w; where it can't be restored, move it away: this voter joins again under a new id", db, err)
	}
	return s, nil
}

func openBolt(path string) (*raftboltdb.BoltStore, error) {
	return raftboltdb.New(raftboltdb.Options{Path: path, BoltOptions: &bbolt.Options{Timeout: time.Second, NoFreelistSync: true}})
}

// openID is the id that goes with the log in dir. A log that is not there has an id that never was: a
// voter that lost its log must not come back as the one that had promised things in it.
func openID(dir, db string, role pki.Role, name string) (string, error) {
	path := filepath.Join(dir, "id")
	b, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	_, dbErr := os.Stat(db)
	if dbErr != nil && !errors.Is(dbErr, fs.ErrNotExist) {
		return "", dbErr
	}
	switch have := err == nil; {
	case dbErr == nil && !have:
		return "", fmt.Errorf("%s is missing beside the log; restore it, or remove the directory and the voter will join under a new id", path)
	case dbErr == nil:
		id := strings.TrimSpace(string(b))
		if n, r, ok := splitRaftID(id); !ok || n != name || r != role {
			return "", fmt.Errorf("the log in this directory belongs to %q, this machine is %s %s", id, role, name)
		}
		return id, nil
	}
	var nonce [8]byte
	rand.Read(nonce[:])
	id := raftID(role, name, hex.EncodeToString(nonce[:]))
	return id, durable.WriteFile(path, []byte(id+"\n"), 0o600)
}
