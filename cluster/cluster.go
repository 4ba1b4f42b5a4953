// Package cluster runs the control plane of one machine: Raft, membership, the supervision of
// data-plane processes and the API. The parts are in the packages below it; this one joins them.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"syscall"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/pollux-ha/pollux/cluster/config"
	"github.com/pollux-ha/pollux/cluster/daemon"
	"github.com/pollux-ha/pollux/cluster/pki"
	"github.com/pollux-ha/pollux/console"
)

// Version is what members tell each other; the program's build sets it.
var Version = "dev"

// HostCPU finds out what CPU this machine can give to guests; the program sets it. Without it guests have no
// CPU models.
var HostCPU daemon.HostCPU

// RunHost runs the daemon of a host until ctx ends. It returns nil after a clean end; guests go on.
func RunHost(ctx context.Context, cfg *config.Config) error {
	return run(ctx, cfg, pki.RoleHost, HostCPU)
}

// RunWitness runs the daemon of a witness until ctx ends: a voter that runs no guest.
func RunWitness(ctx context.Context, cfg *config.Config) error {
	return run(ctx, cfg, pki.RoleWitness, nil)
}

func run(ctx context.Context, cfg *config.Config, role pki.Role, cpu daemon.HostCPU) (err error) {
	log, err := logger(cfg.Log.Level)
	if err != nil {
		return err
	}
	defer func() { _ = log.Sync() }()
	for _, dir := range []string{cfg.StateDir, cfg.GuestsDir(), cfg.RunDir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("make the daemon's directories: %w", advise(err))
		}
	}
	// The socket first: another daemon in the same run_dir is found out before anything is touched.
	l, err := console.Listen(cfg.Socket())
	if err != nil {
		return err
	}
	d, err := daemon.Open(cfg, role, Version, cpu, log)
	if err != nil {
		return errors.Join(advise(err), l.Close())
	}
	api := console.Serve(l, d, log.Named("api"))
	if cfg.APIAddress != "" {
		remote, err := console.ListenTLS(cfg.APIAddress, d.Identity(), log.Named("api"))
		if err != nil {
			return errors.Join(err, api.Close(), d.Close())
		}
		api.ServeAlso(remote)
	}
	notify(log, "READY=1")
	<-ctx.Done()
	notify(log, "STOPPING=1")
	d.Leave()
	log.Info("daemon ends; guests go on")
	return errors.Join(api.Close(), d.Close())
}

// notify tells the service manager, where there is one that wants to know (sd_notify(3)).
func notify(log *zap.Logger, state string) {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return
	}
	c, err := net.Dial("unixgram", path)
	if err == nil {
		_, err = c.Write([]byte(state))
		c.Close()
	}
	if err != nil {
		log.Warn("notify the service manager", zap.Error(err))
	}
}

// advise adds what to do about an error of the file system.
func advise(err error) error {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: run it as root, or as the user whom state_dir and run_dir belong to", err)
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fmt.Errorf("%w: make room there and do it again", err)
	case errors.Is(err, syscall.EROFS), errors.Is(err, syscall.ENOTDIR):
		return fmt.Errorf("%w: state_dir and run_dir must be directories that can be written", err)
	}
	return err
}

// logger writes JSON to standard error, for a service manager to keep.
func logger(level string) (*zap.Logger, error) {
	var l zapcore.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("log.level: %w", err)
	}
	c := zap.NewProductionConfig()
	c.Level = zap.NewAtomicLevelAt(l)
	c.Sampling = nil
	c.DisableStacktrace = true
	c.EncoderConfig.EncodeTime = zapcore.RFC3339NanoTimeEncoder
	return c.Build()
}

// InitResult tells what Init has made.
type InitResult struct {
	ClusterID     string `json:"cluster_id"`
	CAFingerprint string `json:"ca_fingerprint"` // SHA-256 of the CA's certificate, hexadecimal
}

// Init makes a new cluster with cfg's machine as its first host: the CA, the machine's certificate,
// the gossip key. It refuses where a cluster is already. No daemon needs to run, and none is started.
func Init(cfg *config.Config) (*InitResult, error) {
	if cfg.ReplicationAddress == "" {
		return nil, fmt.Errorf("%w: replication_address is not set: a host needs it for checkpoint streams", config.ErrInvalid)
	}
	c, fingerprint, err := pki.Found(cfg.PKIDir(), cfg.Name)
	if err != nil {
		return nil, advise(err)
	}
	return &InitResult{ClusterID: c.ID, CAFingerprint: fingerprint}, nil
}

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
	c, issuer, err := pki.Join(ctx, cfg.PKIDir(), cfg.Name, token)
	if err != nil {
		return nil, advise(err)
	}
	return &JoinResult{ClusterID: c.ID, Role: string(c.Role), Issuer: issuer}, nil
}
