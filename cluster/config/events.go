package config

import (
	"errors"
	"fmt"
)

// Events bounds this host's event log.
type Events struct {
	// SegmentBytes is the size of its file at which it is closed and a new one begins.
	SegmentBytes int64 `toml:"segment_bytes"`
	// KeepSegments is how many closed files are kept; 0: all.
	KeepSegments int `toml:"keep_segments"`
}

// The defaults and the bounds: a segment holds a few hundred thousand events.
const (
	DefaultSegmentBytes = 64 << 20
	minSegmentBytes     = 1 << 20
)

func (e Events) withDefaults() Events {
	if e.SegmentBytes == 0 {
		e.SegmentBytes = DefaultSegmentBytes
	}
	return e
}

func (e Events) validate() error {
	var errs []error
	if e.SegmentBytes < minSegmentBytes {
		errs = append(errs, fmt.Errorf("events.segment_bytes = %d: at least %d", e.SegmentBytes, minSegmentBytes))
	}
	if e.KeepSegments < 0 {
		errs = append(errs, fmt.Errorf("events.keep_segments = %d: 0 keeps all of them", e.KeepSegments))
	}
	return errors.Join(errs...)
}
