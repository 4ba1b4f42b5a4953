// Package cluster runs the control plane of one machine: Raft, membership, the supervision of
// data-plane processes and the API. The parts are in the packages below it; this one joins them.
package cluster

import (
	"context"
	"errors"

	"github.com/pollux-ha/pollux/cluster/config"
)

// Version is what members tell each other; the program's build sets it.
var Version = "dev"

var errUnfinished = errors.New("the control plane is not in this build")

// RunHost runs the daemon of a host until ctx ends. It returns nil after a clean end; guests go on.
func RunHost(ctx context.Context, cfg *config.Config) error { return errUnfinished }

// RunWitness runs the daemon of a witness until ctx ends: a voter that runs no guest.
func RunWitness(ctx context.Context, cfg *config.Config) error { return errUnfinished }
