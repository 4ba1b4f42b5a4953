package demo

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"

	"github.com/pollux-ha/pollux/cluster/config"
	"github.com/pollux-ha/pollux/cmd/pollux/demo/lab"
	"github.com/pollux-ha/pollux/console"
)

// The guest.
const (
	guestName    = "ledger"
	guestAddress = "10.77.0.10:6379"
)

// StrictVariable, where it is set, has guests' processes end at any system call that they are not known to need
// (dataplane.strict): for tests, which find out that way what has been overlooked.
const StrictVariable = "POLLUX_DEMO_STRICT"

// cluster is two hosts and a witness in a lab.
type cluster struct {
	lab      *lab.Lab
	hosts    [2]*node
	witness  *node
	logLevel string
	silence  time.Duration // 0: the default
}

// node is a machine with its daemon.
type node struct {
	*lab.Machine
	role   string // "host" or "witness"
	config config.Config
	daemon *lab.Task
}

// configFile is the path of the node's configuration.
func (n *node) configFile() string { return filepath.Join(n.Dir, "pollux.toml") }

func (n *node) client() *console.Client { return console.NewClient(n.config.Socket()) }

// newCluster adds the machines to the lab and writes their configurations.
func newCluster(l *lab.Lab, o Options) (*cluster, error) {
	c := &cluster{lab: l, logLevel: "info", silence: o.Silence}
	if o.Verbose {
		c.logLevel = "debug"
	}
	var err error
	for i, name := range []string{"a", "b"} {
		if c.hosts[i], err = c.addNode(name, "host", byte(i+1), lab.LAN, lab.Cluster, lab.Replication); err != nil {
			return nil, err
		}
	}
	if c.witness, err = c.addNode("w", "witness", 3, lab.Cluster); err != nil {
		return nil, err
	}
	return c, nil
}

func (c *cluster) addNode(name, role string, number byte, networks ...lab.Network) (*node, error) {
	m, err := c.lab.AddMachine(name, number, networks...)
	if err != nil {
		return nil, err
	}
	n := &node{Machine: m, role: role}
	address := lab.Cluster.Address(number).String()
	n.config = config.Config{
		Name:           name,
		StateDir:       filepath.Join(m.Dir, "state"),
		RunDir:         filepath.Join(m.Dir, "run"),
		ClusterAddress: address + ":7700",
		GossipAddress:  address + ":7701",
		Log:            config.Log{Level: c.logLevel},
	}
	// Only what an operator would write: everything else has a default.
	file := map[string]any{
		"name": name, "state_dir": n.config.StateDir, "run_dir": n.config.RunDir,
		"cluster_address": n.config.ClusterAddress, "gossip_address": n.config.GossipAddress,
		"log": map[string]string{"level": c.logLevel},
		// The same hosts are struck again and again here: none is to be kept out for it.
		"flapping": map[string]bool{"off": true},
	}
	if c.silence > 0 {
		file["timeouts"] = map[string]string{"silence": c.silence.String()}
	}
	if os.Getenv(StrictVariable) != "" {
		file["dataplane"] = map[string]any{"strict": true}
	}
	if role == "host" {
		file["replication_address"] = lab.Replication.Address(number).String()
		file["bridges"] = map[string]string{"lan": "br0"}
	}
	b, err := toml.Marshal(file)
	if err != nil {
		return nil, fmt.Errorf("write the configuration of %s: %w", name, err)
	}
	if err := os.WriteFile(n.configFile(), b, 0o600); err != nil {
		return nil, fmt.Errorf("write the configuration of %s: %w", name, err)
	}
	return n, nil
}

// nodes are all of them.
func (c *cluster) nodes() []*node { return []*node{c.hosts[0], c.hosts[1], c.witness} }

// host finds a host by its name.
func (c *cluster) host(name string) (*node, error) {
	for _, n := range c.hosts {
		if n.Name == name {
			return n, nil
		}
	}
	return nil, fmt.Errorf("there is no host %q", name)
}

// other is the other host.
func (c *cluster) other(n *node) *node {
	if c.hosts[0] == n {
		return c.hosts[1]
	}
	return c.hosts[0]
}

// command runs one of this program's commands as an operator on the node would.
func (n *node) command(ctx context.Context, stdin string, args ...string) (string, error) {
	out, err := n.Exec(ctx, stdin, lab.Program, append([]string{"--socket", n.config.Socket()}, args...)...)
	if err != nil {
		return "", errors.New(strings.ReplaceAll(err.Error(), lab.Program+" --socket "+n.config.Socket(), "pollux"))
	}
	return out, nil
}

// start starts the node's daemon, with its power on.
func (n *node) start() error {
	if !n.On() {
		if err := n.PowerOn(); err != nil {
			return err
		}
	}
	t, err := n.Run("daemon.log", lab.Program, n.role, "--config", n.configFile())
	if err != nil {
		return err
	}
	n.daemon = t
	return nil
}

// killDaemon kills the node's daemon, and nothing else.
func (n *node) killDaemon(ctx context.Context) error {
	processes, err := n.Processes()
	if err != nil {
		return err
	}
	for _, p := range processes {
		if len(p.Argv) > 1 && p.Argv[1] == n.role {
			return n.Kill(ctx, p.Own)
		}
	}
	return fmt.Errorf("machine %s has no daemon", n.Name)
}

// lastWords are the last lines of the daemon's log, for an error message.
func (n *node) lastWords() string {
	b, err := os.ReadFile(filepath.Join(n.Dir, "daemon.log"))
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.Join(lines[max(0, len(lines)-5):], "\n")
}

// found makes the cluster as an operator would: init on the first host, then a token for each further
// machine, which joins with it. tell hears of every step.
func (c *cluster) found(ctx context.Context, tell func(format string, a ...any)) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	first := c.hosts[0]
	tell("host a: pollux init")
	if _, err := first.command(ctx, "", "init", "--config", first.configFile()); err != nil {
		return err
	}
	if err := first.start(); err != nil {
		return err
	}
	if err := c.await(ctx, first, "to lead its own cluster", func(s *console.ClusterStatus) bool { return s.Quorum.Healthy }); err != nil {
		return err
	}
	for i, n := range []*node{c.witness, c.hosts[1]} {
		tell("%s %s: pollux join, with a token from host a", n.role, n.Name)
		token, err := first.command(ctx, "", "token", n.Name, "--role", n.role)
		if err != nil {
			return err
		}
		if _, err := n.command(ctx, token, "join", "--config", n.configFile(), "--token-file", "-"); err != nil {
			return err
		}
		if err := n.start(); err != nil {
			return err
		}
		if err := c.await(ctx, first, "to know "+n.Name, func(s *console.ClusterStatus) bool {
			return s.Quorum.Healthy && len(s.Members) == i+2
		}); err != nil {
			return err
		}
	}
	// Two members have one vote between them: a second one would only be one more that may fail.
	if err := c.await(ctx, first, "to have three voters", allVote); err != nil {
		return err
	}
	// Faults are to find the cluster as it is most of the time: led by the witness.
	return c.await(ctx, first, "to hand leadership to the witness", func(s *console.ClusterStatus) bool {
		return s.Leader == c.witness.Name
	})
}

// allVote says whether all three vote and can be reached.
func allVote(s *console.ClusterStatus) bool {
	return s.Quorum.Healthy && s.Quorum.Voters == 3 && s.Quorum.Reachable == 3
}

// await asks a node for the cluster's status until it is as wanted.
func (c *cluster) await(ctx context.Context, n *node, what string, wanted func(*console.ClusterStatus) bool) error {
	var last error
	for {
		asked, cancel := context.WithTimeout(ctx, 2*time.Second)
		s, err := n.client().Status(asked)
		cancel()
		switch {
		case err == nil && wanted(s):
			return nil
		case err != nil:
			last = err
		default:
			last = fmt.Errorf("%d voters, %d reachable, leader %q", s.Quorum.Voters, s.Quorum.Reachable, s.Leader)
		}
		for _, n := range c.nodes() {
			if n.daemon == nil {
				continue
			}
			select {
			case <-n.daemon.Over():
				return fmt.Errorf("the daemon of %s has ended (%s):\n%s", n.Name, n.daemon.Ended(), n.lastWords())
			default:
			}
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("waited in vain for %s %s: %w (last answer: %w)", n.Name, what, ctx.Err(), last)
		}
	}
}

// createGuest creates and starts the guest.
func (c *cluster) createGuest(ctx context.Context) error {
	_, err := c.hosts[0].command(ctx, "", "guest", "create", guestName,
		"--hosts", "a,b", "--kernel", "builtin:ledger", "--memory", "128M", "--cpus", "1",
		"--disk", "size=256M", "--net", "bridge=lan", "--cmdline", "ip=10.77.0.10/24", "--start")
	return err
}
