package consensus

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/hashicorp/raft"

	"github.com/pollux-ha/pollux/cluster/durable"
)

// snapshots are the library's, made to survive a loss of power on every file system: the library makes a
// snapshot's content and its directory's name durable, and not the names within.
type snapshots struct {
	*raft.FileSnapshotStore
	dir string
}

// Create begins a snapshot.
func (s snapshots) Create(v raft.SnapshotVersion, index, term uint64, conf raft.Configuration, confIndex uint64, t raft.Transport) (raft.SnapshotSink, error) {
	sink, err := s.FileSnapshotStore.Create(v, index, term, conf, confIndex, t)
	if err != nil {
		return nil, err
	}
	return &snapshotSink{SnapshotSink: sink, dir: filepath.Join(s.dir, "snapshots", sink.ID()+".tmp")}, nil
}

type snapshotSink struct {
	raft.SnapshotSink
	dir string // until Close; then ""
}

// Close ends the snapshot: from now on the log before it may go. A second call does nothing.
func (s *snapshotSink) Close() error {
	if s.dir == "" {
		return nil
	}
	dir := s.dir
	s.dir = ""
	if err := durable.SyncDir(dir); err != nil {
		return errors.Join(fmt.Errorf("end the snapshot: %w", err), s.Cancel())
	}
	return s.SnapshotSink.Close()
}
