package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/pelletier/go-toml/v2"

	"github.com/pollux-ha/pollux/console"
	"github.com/pollux-ha/pollux/tests/lab/emulator"
)

// StateDir is a host's state_dir, and ConfigFile its configuration: in memory, written at each start.
const (
	StateDir   = "/data/pollux"
	ConfigFile = "/etc/pollux/pollux.toml"
)

// timeouts for emulated hosts that share few cores with each other and whatever else this machine does.
var timeouts = map[string]string{
	"silence": "2s", "stream_heartbeat": "200ms", "raft_heartbeat": "3s", "raft_election": "3s", "raft_lease": "2500ms",
	"propose": "10s", "stop": "120s",
}

// Cluster is Pollux on the lab's hosts, and a witness that is not emulated.
type Cluster struct {
	Witness *Machine

	lab     *Lab
	watcher *console.Client // of the witness: asking it costs the hosts little
	mu      sync.Mutex
	daemons map[string]*emulator.Process
}

// Cluster founds a cluster on all hosts, as an operator would, and switches on those that are off. From then on a
// host's daemon starts with the host.
func (l *Lab) Cluster(ctx context.Context) (*Cluster, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	c := &Cluster{lab: l, daemons: make(map[string]*emulator.Process)}
	l.mu.Lock()
	l.cluster = c
	l.mu.Unlock()
	began := time.Now()
	if err := l.PowerOn(ctx); err != nil {
		return nil, err
	}
	var err error
	if c.Witness, err = l.addMachine("witness"); err != nil {
		return nil, err
	}
	for _, h := range l.hosts {
		if err := c.configure(ctx, h); err != nil {
			return nil, err
		}
	}
	first := l.hosts[0]
	if _, err := first.Exec(ctx, "pollux", "init"); err != nil {
		return nil, err
	}
	if err := c.startDaemon(ctx, first); err != nil {
		return nil, err
	}
	err = until(ctx, "host "+first.Name+" leads its own cluster", time.Second, func() (bool, error) {
		s, err := c.statusOn(ctx, first)
		return err == nil && s.Quorum.Healthy, err
	})
	if err != nil {
		return nil, err
	}
	token, err := first.Exec(ctx, "pollux", "token", c.Witness.Name, "--role", "witness")
	if err != nil {
		return nil, err
	}
	if err := c.startWitness(ctx, token); err != nil {
		return nil, err
	}
	members := 2
	for _, h := range l.hosts[1:] {
		if token, err = first.Exec(ctx, "pollux", "token", h.Name, "--role", "host"); err != nil {
			return nil, err
		}
		join := emulator.Command{Argv: []string{"pollux", "join", "--token-file", "-"}, Stdin: strings.NewReader(token)}
		if err := h.Run(ctx, join); err != nil {
			return nil, fmt.Errorf("join of %s: %w", h.Name, err)
		}
		if err := c.startDaemon(ctx, h); err != nil {
			return nil, err
		}
		members++
	}
	err = until(ctx, fmt.Sprintf("%d members, led by the witness", members), 200*time.Millisecond, func() (bool, error) {
		s, err := c.watcher.Status(ctx)
		if err != nil {
			return false, err
		}
		ok := s.Quorum.Healthy && len(s.Members) == members && s.Quorum.Reachable == s.Quorum.Voters && s.Quorum.Voters >= min(3, members) && s.Leader == c.Witness.Name
		return ok, fmt.Errorf("%d members, %d of %d voters reachable, leader %q", len(s.Members), s.Quorum.Reachable, s.Quorum.Voters, s.Leader)
	})
	if err != nil {
		return nil, err
	}
	for _, h := range l.hosts {
		h.OnBoot(func(ctx context.Context, h *Host) error {
			return errors.Join(c.configure(ctx, h), c.startDaemon(ctx, h))
		})
	}
	l.logf("the cluster is up after %.1f s", time.Since(began).Seconds())
	return c, nil
}

// until asks again and again until done; the last error is told where ctx ends first.
func until(ctx context.Context, what string, every time.Duration, ask func() (bool, error)) error {
	began := time.Now()
	for {
		done, err := ask()
		if done {
			return nil
		}
		select {
		case <-time.After(every):
		case <-ctx.Done():
			return fmt.Errorf("waited %.0f s in vain until: %s: %w (last: %w)", time.Since(began).Seconds(), what, ctx.Err(), err)
		}
	}
}

func settings(name string, number byte, state string) map[string]any {
	address := Control.Address(number).String()
	return map[string]any{
		"name": name, "state_dir": state, "cluster_address": address + ":7700", "gossip_address": address + ":7701",
		"timeouts": timeouts, "log": map[string]string{"level": "info"},
		"flapping": map[string]bool{"off": true}, // a host is lost many times in one test
	}
}

func (c *Cluster) configure(ctx context.Context, h *Host) error {
	s := settings(h.Name, h.Number, StateDir)
	s["replication_address"] = Replication.Address(h.Number).String()
	s["bridges"] = map[string]string{"lan": bridge}
	b, err := toml.Marshal(s)
	if err != nil {
		return err
	}
	m, err := h.up()
	if err != nil {
		return err
	}
	_, err = m.Exec(ctx, strings.NewReader(string(b)), "@put", ConfigFile, "600")
	return err
}

// startDaemon starts `pollux host` on a host.
func (c *Cluster) startDaemon(_ context.Context, h *Host) error {
	log, err := os.OpenFile(filepath.Join(h.Dir, "daemon.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	p, err := h.Start(emulator.Command{Argv: []string{"pollux", "host"}, Stdout: log, Stderr: log})
	if err != nil {
		log.Close()
		return err
	}
	c.mu.Lock()
	c.daemons[h.Name] = p
	c.mu.Unlock()
	go func() {
		<-p.Over()
		log.Close()
	}()
	return nil
}

func (c *Cluster) startWitness(ctx context.Context, token string) error {
	w := c.Witness
	s := settings(w.Name, w.Number, filepath.Join(w.Dir, "state"))
	s["run_dir"] = filepath.Join(w.Dir, "run")
	b, err := toml.Marshal(s)
	if err != nil {
		return err
	}
	file := filepath.Join(w.Dir, "pollux.toml")
	if err := os.WriteFile(file, b, 0o600); err != nil {
		return err
	}
	program := c.lab.options.Pollux
	if _, err := w.ns.Run(ctx, token, program, "join", "--config", file, "--token-file", "-"); err != nil {
		return err
	}
	log, err := os.Create(filepath.Join(w.Dir, "daemon.log"))
	if err != nil {
		return err
	}
	cmd := exec.Command(program, "witness", "--config", file)
	cmd.Stdout, cmd.Stderr = log, log
	if err := w.ns.Start(cmd); err != nil {
		log.Close()
		return err
	}
	c.lab.onClose(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		log.Close()
	})
	c.watcher = console.NewClient(filepath.Join(w.Dir, "run", "pollux.sock"))
	return nil
}

// Pollux runs `pollux ARGS` on a host, and returns its standard output.
func (c *Cluster) Pollux(ctx context.Context, h *Host, args ...string) (string, error) {
	return h.Exec(ctx, append([]string{"pollux"}, args...)...)
}

// operate runs `pollux ARGS` on the first host that has power and a daemon.
func (c *Cluster) operate(ctx context.Context, args ...string) (string, error) {
	for _, h := range c.lab.hosts {
		if h.On() {
			return c.Pollux(ctx, h, args...)
		}
	}
	return "", errors.New("no host has power")
}

func (c *Cluster) statusOn(ctx context.Context, h *Host) (*console.ClusterStatus, error) {
	out, err := c.Pollux(ctx, h, "status", "-o", "json")
	if err != nil {
		return nil, err
	}
	s := &console.ClusterStatus{}
	return s, json.Unmarshal([]byte(out), s)
}

// DaemonLog is what a host's daemon, or the witness, has said.
func (c *Cluster) DaemonLog(name string) string {
	b, err := os.ReadFile(filepath.Join(c.lab.Dir, name, "daemon.log"))
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// CopyLogs copies what explains a failure: daemons' logs, and of the hosts that have power the logs of the guests'
// processes and their consoles.
func (c *Cluster) CopyLogs(ctx context.Context, w io.Writer) {
	names := []string{"witness"}
	for _, h := range c.lab.hosts {
		names = append(names, h.Name)
	}
	for _, n := range names {
		fmt.Fprintf(w, "== daemon of %s\n%s\n", n, end(c.DaemonLog(n), 6000))
	}
	for _, h := range c.lab.hosts {
		if !h.On() {
			continue
		}
		out, err := h.Exec(ctx, "sh", "-c",
			"for f in /run/pollux/guests/*.log "+StateDir+"/guests/*/console.log; do echo \"-- $f\"; tail -c 20000 $f; done 2>/dev/null")
		fmt.Fprintf(w, "== on %s (%v)\n%s\n", h.Name, err, out)
	}
}

func end(s string, n int) string { return s[max(0, len(s)-n):] }

// decodeLines reads one JSON document a line.
func decodeLines[T any](s string) ([]T, error) {
	var all []T
	for d := json.NewDecoder(strings.NewReader(s)); ; {
		var v T
		if err := d.Decode(&v); errors.Is(err, io.EOF) {
			return all, nil
		} else if err != nil {
			return nil, err
		}
		all = append(all, v)
	}
}
