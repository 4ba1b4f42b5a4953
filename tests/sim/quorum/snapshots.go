package quorum

import (
	"bytes"
	"fmt"
	"io"
	"sync"

	"github.com/hashicorp/raft"
)

// snapshots is a raft.SnapshotStore in memory in which a snapshot is there once it is whole, as in the library's store
// of files. In its store in memory one that was being received when a voter crashed has taken the last one's place.
type snapshots struct {
	mu      sync.Mutex
	meta    *raft.SnapshotMeta // nil: there is none
	content []byte
	made    int
}

// Create implements raft.SnapshotStore.
func (s *snapshots) Create(version raft.SnapshotVersion, index, term uint64, configuration raft.Configuration, configurationIndex uint64, _ raft.Transport) (raft.SnapshotSink, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.made++
	return &sink{store: s, meta: raft.SnapshotMeta{
		Version: version, ID: fmt.Sprintf("%d-%d-%d", term, index, s.made), Index: index, Term: term,
		Configuration: configuration, ConfigurationIndex: configurationIndex,
	}}, nil
}

// List implements raft.SnapshotStore.
func (s *snapshots) List() ([]*raft.SnapshotMeta, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.meta == nil {
		return nil, nil
	}
	return []*raft.SnapshotMeta{s.meta}, nil
}

// Open implements raft.SnapshotStore.
func (s *snapshots) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.meta == nil || s.meta.ID != id {
		return nil, nil, fmt.Errorf("there is no snapshot %s", id)
	}
	return s.meta, io.NopCloser(bytes.NewReader(s.content)), nil
}

// sink takes a snapshot's content.
type sink struct {
	store *snapshots
	meta  raft.SnapshotMeta
	bytes.Buffer
	over bool
}

// ID implements raft.SnapshotSink.
func (s *sink) ID() string { return s.meta.ID }

// Close makes the snapshot the newest one.
func (s *sink) Close() error {
	s.store.mu.Lock()
	defer s.store.mu.Unlock()
	if s.over {
		return nil
	}
	s.over = true
	s.meta.Size = int64(s.Len())
	if m := s.store.meta; m == nil || m.Index <= s.meta.Index {
		s.store.meta, s.store.content = &s.meta, s.Bytes()
	}
	return nil
}

// Cancel forgets it.
func (s *sink) Cancel() error {
	s.store.mu.Lock()
	defer s.store.mu.Unlock()
	s.over = true
	return nil
}
