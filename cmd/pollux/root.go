package main

import (
	"context"
	"fmt"
	"os"
	"os/user"
	"time"

	"github.com/spf13/cobra"

	"github.com/pollux-ha/pollux/cluster/config"
	"github.com/pollux-ha/pollux/console"
)

// defaultConfig is where a daemon's configuration lies unless it is told otherwise.
const defaultConfig = "/etc/pollux/pollux.toml"

// socketVariable names the daemon's socket for machines with more than one daemon.
const socketVariable = "POLLUX_SOCKET"

// apiVariable names a member's API, and apiTokenVariable a file with a token: not a secret, but where one is.
const (
	apiVariable      = "POLLUX_API"
	apiTokenVariable = "POLLUX_API_TOKEN_FILE"
)

// program is what the commands share.
type program struct {
	socket string // of the daemon
	// api is a member whose API is asked over TLS in place of the socket; remote is its client.
	api, apiToken string
	remote        *console.Client
	output        format
	// begun is set once the command line has been understood: an error before that is one of usage.
	begun bool
}

// run executes one command line and returns the exit code.
func run(ctx context.Context, args []string) int {
	p := &program{}
	root := p.rootCommand()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitDone
	}
	code := exitCode(err)
	if !p.begun && code == exitFailed {
		code = exitUsage
	}
	if text := err.Error(); text != "" {
		fmt.Fprintln(os.Stderr, "pollux:", text)
	}
	if code == exitUsage {
		fmt.Fprintln(os.Stderr, "Run `pollux help` or `pollux COMMAND --help` to see how it is used.")
	}
	return code
}

func (p *program) rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "pollux",
		Short: "Keep a virtual machine running when its host dies",
		Long: `Pollux mirrors a running KVM guest to a second host, checkpoint by checkpoint. When the first
host dies the second goes on with the guest, and nobody who talks to it loses anything.

Results go to standard output, errors to standard error.

` + exitCodesHelp,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			if err := p.output.check(); err != nil {
				return err
			}
			if err := p.connect(cmd); err != nil {
				return err
			}
			p.begun = true
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	socket := os.Getenv(socketVariable)
	if socket == "" {
		socket = config.Config{RunDir: config.DefaultRunDir}.Socket()
	}
	root.PersistentFlags().StringVar(&p.socket, "socket", socket, "the daemon's Unix socket; also from "+socketVariable)
	root.PersistentFlags().StringVar(&p.api, "api", os.Getenv(apiVariable), "as a user with a token: ask this member's API, NAME@ADDRESS:PORT; also from "+apiVariable)
	root.PersistentFlags().StringVar(&p.apiToken, "api-token-file", os.Getenv(apiTokenVariable), "file with the user's token, - for standard input; also from "+apiTokenVariable)
	root.AddGroup(
		&cobra.Group{ID: "guests", Title: "Guests:"},
		&cobra.Group{ID: "cluster", Title: "The cluster:"},
		&cobra.Group{ID: "try", Title: "Trying and measuring:"},
	)
	add := func(group string, commands ...*cobra.Command) {
		for _, c := range commands {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	add("guests", p.guestCommand(), p.statusCommand(), p.eventsCommand())
	add("cluster", p.initCommand(), p.joinCommand(), p.tokenCommand(), p.memberCommand(), p.fenceCommand(), p.userCommand(), p.certCommand(), p.cpuCommand(), p.hostCommand(), p.witnessCommand())
	root.AddCommand(p.versionCommand())
	p.addRooms(root, add)
	return root
}

// connect makes the client of a user.
func (p *program) connect(cmd *cobra.Command) error {
	if p.api == "" {
		return nil
	}
	if p.apiToken == "" {
		return usagef("--api needs --api-token-file: a file with the token that `pollux user add` has printed")
	}
	token, err := readToken(cmd.InOrStdin(), p.apiToken)
	if err != nil {
		return err // also where the file can't be read: the command line names it
	}
	p.remote, err = console.NewUserClient(p.api, token)
	return err
}

// client is a client of the daemon on this machine, or of the one that --api names.
func (p *program) client() *console.Client {
	if p.remote != nil {
		return p.remote
	}
	return console.NewClient(p.socket)
}

// answerTime bounds questions that a daemon answers from what it knows.
const answerTime = 10 * time.Second

// ask gives a question to the daemon its time limit.
func ask(cmd *cobra.Command) (context.Context, context.CancelFunc) {
	return context.WithTimeout(cmd.Context(), answerTime)
}

// operator is who gives an order, for the event log: the person behind sudo where there is one.
func operator() string {
	if name := os.Getenv("SUDO_USER"); name != "" {
		return name
	}
	if u, err := user.Current(); err == nil {
		return u.Username
	}
	return fmt.Sprintf("uid %d", os.Getuid())
}
