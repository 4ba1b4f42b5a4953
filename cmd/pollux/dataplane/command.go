package dataplane

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.org/x/sys/unix"

	"github.com/pollux-ha/pollux/cluster/link"
	"github.com/pollux-ha/pollux/replica/store"
)

// NewCommand returns the hidden command that the daemon runs. It ends the program by itself, with one
// of link's exit codes.
func NewCommand() *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use:    "dataplane --config FILE",
		Short:  "Hold one copy of a guest (started by the host daemon)",
		Hidden: true,
		Args:   cobra.NoArgs,
		Run: func(cmd *cobra.Command, _ []string) {
			code, err := Main(path)
			if err != nil {
				fmt.Fprintln(cmd.ErrOrStderr(), link.LastWords+err.Error())
			}
			os.Exit(code)
		},
	}
	cmd.Flags().StringVar(&path, "config", "", "configuration of the process, written by the daemon")
	if err := cmd.MarkFlagRequired("config"); err != nil {
		panic(err) // the flag is defined above
	}
	return cmd
}

// Main runs the process that the file at path describes until its part is over, and returns its exit code.
func Main(path string) (int, error) {
	cfg, err := link.ReadProcessConfig(path)
	if err != nil {
		return link.ExitUsage, err
	}
	// The guest outlives the daemon, its terminal and its process group. A session of its own may be
	// there already.
	signal.Ignore(syscall.SIGHUP, syscall.SIGINT, syscall.SIGPIPE)
	_, _ = unix.Setsid()
	log, err := newLog(cfg)
	if err != nil {
		return link.ExitFailed, err
	}
	defer func() { _ = log.Sync() }() // standard error can't be synced, and need not
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()

	p, err := start(ctx, cfg, log, openTap)
	if err != nil {
		log.Error("start", zap.Error(err))
		if errors.Is(err, store.ErrBusy) {
			return link.ExitDiskBusy, err
		}
		return link.ExitFailed, err
	}
	code := p.wait(ctx)
	log.Info("exit", zap.Int("code", code))
	if code == link.ExitFailed {
		return code, errors.New(p.why)
	}
	return code, nil
}

func newLog(cfg link.ProcessConfig) (*zap.Logger, error) {
	c := zap.NewProductionConfig()
	c.Sampling = nil // rare lines, and each of them counts
	c.DisableStacktrace = true
	c.EncoderConfig.EncodeTime = zapcore.RFC3339NanoTimeEncoder
	if cfg.LogFile != "" {
		c.OutputPaths = []string{cfg.LogFile}
		c.ErrorOutputPaths = []string{cfg.LogFile}
	}
	log, err := c.Build()
	if err != nil {
		return nil, fmt.Errorf("open the log file: %w", err)
	}
	return log.With(zap.String("guest", cfg.Guest), zap.Stringer("party", cfg.Party)), nil
}
