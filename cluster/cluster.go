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

// InitResult tells what Init has made.
type InitResult struct {
	ClusterID     string `json:"cluster_id"`
	CAFingerprint string `json:"ca_fingerprint"` // SHA-256 of the CA's certificate, hexadecimal
}

// Init makes a new cluster with cfg's machine as its first host: the CA, the machine's certificate,
// the gossip key. It refuses where a cluster is already. No daemon needs to run, and none is started.
func Init(cfg *config.Config) (*InitResult, error) { return nil, errUnfinished }

// JoinResult tells what Join has been given.
type JoinResult struct {
	ClusterID string `json:"cluster_id"`
	Role      string `json:"role"`   // "host" or "witness": the token decides
	Issuer    string `json:"issuer"` // the host that let it in
}

// Join takes cfg's machine into the cluster of the token, which `pollux token` has issued on a running
// host for a machine of this name. Afterwards the daemon can be started; it enters the cluster's Raft
// configuration by itself.
func Join(ctx context.Context, cfg *config.Config, token string) (*JoinResult, error) {
	return nil, errUnfinished
}
