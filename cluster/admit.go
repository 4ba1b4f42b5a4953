package cluster

import (
	"fmt"
	"time"

	"github.com/pollux-ha/pollux/cluster/config"
	"github.com/pollux-ha/pollux/cluster/pki"
)

// Admit issues a join token at the machine that holds the cluster's CA, without its daemon. The daemon
// must run by the time the token is used.
func Admit(cfg *config.Config, name string, role pki.Role, valid time.Duration) (string, error) {
	id, err := pki.Load(cfg.PKIDir())
	if err != nil {
		return "", err
	}
	c, err := pki.LoadCluster(cfg.PKIDir())
	if err != nil {
		return "", err
	}
	issuer, err := pki.NewIssuer(cfg.PKIDir(), id, c)
	if err != nil {
		return "", err
	}
	t, _, err := issuer.Issue(name, role, cfg.ClusterAddress, valid)
	if err != nil {
		return "", fmt.Errorf("token for %s: %w", name, err)
	}
	return t.String(), nil
}
