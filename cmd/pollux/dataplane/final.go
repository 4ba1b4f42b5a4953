package dataplane

import (
	"fmt"

	"github.com/pollux-ha/pollux/lockstep"
	"github.com/pollux-ha/pollux/replica"
)

// final is the image as of the final epoch of an engine whose guest has been handed over.
func final(e *lockstep.Engine) (*replica.Image, error) {
	f, ok := e.Final()
	if !ok {
		return nil, fmt.Errorf("become the replica: %w", errNotExchanged)
	}
	return &replica.Image{Epoch: f.Epoch, Digest: f.Digest, State: f.State, Arrived: f.Captured}, nil
}
