package demo

import (
	"context"
	"slices"

	"github.com/pollux-ha/pollux/cluster/config"
	"github.com/pollux-ha/pollux/cmd/pollux/demo/lab"
	"github.com/pollux-ha/pollux/console"
)

// Node is a machine of a Stage with its daemon.
type Node struct {
	*lab.Machine
	Config config.Config
	// ConfigFile is where the daemon's configuration lies.
	ConfigFile string
	node       *node
}

// Node finds a machine by its name: "a" and "b" are the hosts, "w" is the witness. nil: there is none.
func (s *Stage) Node(name string) *Node {
	i := slices.IndexFunc(s.cluster.nodes(), func(n *node) bool { return n.Name == name })
	if i < 0 {
		return nil
	}
	n := s.cluster.nodes()[i]
	return &Node{Machine: n.Machine, Config: n.config, ConfigFile: n.configFile(), node: n}
}

// Command runs one of the program's commands as an operator on the machine would.
func (n *Node) Command(ctx context.Context, stdin string, args ...string) (string, error) {
	return n.node.command(ctx, stdin, args...)
}

// Client talks to the machine's daemon.
func (n *Node) Client() *console.Client { return n.node.client() }
