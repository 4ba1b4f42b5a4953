package e2e

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/pollux-ha/pollux/console"
)

// site is a machine on an address of its own: Linux has sixteen million loopback addresses.
type site struct {
	dir, state, socket, config string
	address                    string
	keys                       map[string]string
}

func newSite(t *testing.T, name string) *site {
	t.Helper()
	dir, err := os.MkdirTemp("", "pollux-e2e-") // short: sockets lie in it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s := &site{
		dir: dir, state: filepath.Join(dir, "state"), socket: filepath.Join(dir, "run", "pollux.sock"), config: filepath.Join(dir, "pollux.toml"),
		address: fmt.Sprintf("127.%d.%d.%d", 64+rand.IntN(64), rand.IntN(256), 1+rand.IntN(254)),
	}
	s.keys = map[string]string{
		"name": name, "state_dir": s.state, "run_dir": filepath.Join(dir, "run"),
		"cluster_address": s.address + ":7700", "gossip_address": s.address + ":7701", "replication_address": s.address,
	}
	s.write(t)
	return s
}

func (s *site) write(t *testing.T) {
	t.Helper()
	var b strings.Builder
	for _, key := range []string{"name", "state_dir", "run_dir", "cluster_address", "gossip_address", "replication_address"} {
		if v, ok := s.keys[key]; ok {
			fmt.Fprintf(&b, "%s = %q\n", key, v)
		}
	}
	if err := os.WriteFile(s.config, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
}

// with is a configuration of the same machine with some keys changed.
func (s *site) with(t *testing.T, changes ...string) *site {
	t.Helper()
	o := *s
	o.keys = maps.Clone(s.keys)
	for i := 0; i < len(changes); i += 2 {
		o.keys[changes[i]] = changes[i+1]
	}
	o.state, o.socket = o.keys["state_dir"], filepath.Join(o.keys["run_dir"], "pollux.sock")
	o.config = file(t, "pollux.toml", nil)
	o.write(t)
	return &o
}

// daemon is a running daemon.
type daemon struct {
	cmd  *exec.Cmd
	said bytes.Buffer
	mu   sync.Mutex
	over chan struct{}
}

func (d *daemon) Write(b []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.said.Write(b)
}

func (d *daemon) words() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.said.String()
}

// start starts a daemon and waits until it is as wanted. It ends with the test, and must not have crashed.
func (s *site) start(t *testing.T, wanted func(*console.ClusterStatus) bool, argv ...string) *daemon {
	t.Helper()
	d := &daemon{cmd: exec.Command(argv[0], argv[1:]...), over: make(chan struct{})}
	d.cmd.Stderr = d
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = d.cmd.Wait() // what it said tells more
		close(d.over)
	}()
	t.Cleanup(func() {
		_ = d.cmd.Process.Signal(syscall.SIGTERM) // it may be gone
		select {
		case <-d.over:
		case <-time.After(patience):
			t.Errorf("the daemon does not end: %s", d.words())
			_ = d.cmd.Process.Kill()
			<-d.over
		}
		if crashed(d.words()) {
			t.Errorf("the daemon crashed: %s", d.words())
		}
	})
	s.await(t, d, wanted)
	return d
}

// await asks the daemon for its status until that is as wanted.
func (s *site) await(t *testing.T, d *daemon, wanted func(*console.ClusterStatus) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	var last any
	for {
		st, err := console.NewClient(s.socket).Status(ctx)
		if err == nil && wanted(st) {
			return
		}
		if last = st; err != nil {
			last = err
		}
		select {
		case <-tick.C:
		case <-d.over:
			t.Fatalf("the daemon has ended: %s", d.words())
		case <-ctx.Done():
			t.Fatalf("the daemon is not as wanted: %+v; it says %s", last, d.words())
		}
	}
}

func healthy(st *console.ClusterStatus) bool { return st.Quorum.Healthy && st.Quorum.Voters > 0 }

const goodConfig = `name = "a"
state_dir = "/dev/null/state"
run_dir = "/dev/null/run"
cluster_address = "10.77.1.1:7700"
gossip_address = "10.77.1.1:7701"
replication_address = "10.77.2.1"
`

// A configuration is read before anything is done, and its faults are named with their lines.
func TestConfigurationsThatCantBeUsed(t *testing.T) {
	pollux := builtProgram(t)
	for name, tc := range map[string]struct {
		text string
		say  []string
	}{
		"unknown key":         {goodConfig + "colour = \"red\"\n", []string{"line 7", `unknown key "colour"`, "cluster_address"}},
		"unknown key in part": {goodConfig + "[timeouts]\nsilense = \"1s\"\n", []string{"line 8", "timeouts.silense", "stream_heartbeat"}},
		"unknown table":       {goodConfig + "[fancy]\nx = 1\n", []string{"fancy"}},
		"number for a text":   {strings.Replace(goodConfig, `"a"`, "7", 1), []string{"line 1", `"name"`}},
		"text for a table":    {goodConfig + "timeouts = \"long\"\n", []string{"line 7", "timeouts"}},
		"no duration":         {goodConfig + "[timeouts]\nsilence = \"long\"\n", []string{"line 8", "silence", "300ms"}},
		"no TOML":             {"name: a\n", []string{"line 1"}},
		"binary":              {string(noise(2000)), []string{"line 1"}},
		"name twice":          {goodConfig + "name = \"b\"\n", []string{"line 7", "name"}},
		"nothing":             {"", []string{"name", "cluster_address", "gossip_address"}},
		"no port":             {strings.Replace(goodConfig, ":7700", "", 1), []string{"cluster_address", "port"}},
		"port out of range":   {strings.Replace(goodConfig, ":7700", ":77000", 1), []string{"cluster_address", "port"}},
		"any address":         {strings.Replace(goodConfig, "10.77.1.1:7701", "0.0.0.0:7701", 1), []string{"gossip_address", "0.0.0.0"}},
		"relative directory":  {strings.Replace(goodConfig, "/dev/null/state", "state", 1), []string{"state_dir", "absolute"}},
		"bad name":            {strings.Replace(goodConfig, `"a"`, `"A_1"`, 1), []string{"name", "lower-case"}},
	} {
		t.Run(name, func(t *testing.T) {
			path := file(t, "pollux.toml", []byte(tc.text))
			for _, command := range [][]string{{"host"}, {"witness"}, {"init"}, {"host", "--check-config"}} {
				run(t, "", append(append([]string{pollux}, command...), "--config", path)...).refused(t, 2, append(tc.say, path)...)
			}
		})
	}
	run(t, "", pollux, "host", "--config", "/nonexistent/pollux.toml").refused(t, 2, "/nonexistent/pollux.toml", "no such file")
}

// A daemon that can't start says why; it does not hang, and what runs already goes on.
func TestDaemonsThatCantStart(t *testing.T) {
	pollux := builtProgram(t)
	a := newSite(t, "a")
	host := func(s *site) ending { return run(t, "", pollux, "host", "--config", s.config) }
	founded := func(s *site) *site {
		run(t, "", pollux, "init", "--config", s.config).done(t)
		return s
	}
	host(a).refused(t, 1, "belongs to no cluster", "pollux init", "pollux join")
	founded(a)
	run(t, "", pollux, "init", "--config", a.config).refused(t, 1, "belongs to a cluster already")
	run(t, "", pollux, "witness", "--config", a.config).refused(t, 1, "is a host's", "pollux host")
	host(a.with(t, "name", "z")).refused(t, 1, `"z"`, `certificate "a"`)

	d := a.start(t, healthy, pollux, "host", "--config", a.config)
	elsewhere := newSite(t, "a")
	ports := func(o *site, changes ...string) *site { return o.with(t, changes...) }
	host(a).refused(t, 1, "another daemon runs with this run_dir", a.socket)
	host(a.with(t, "run_dir", elsewhere.dir+"/r1", "cluster_address", elsewhere.address+":7700", "gossip_address", elsewhere.address+":7701")).
		refused(t, 1, "another daemon uses this state_dir")
	taken := founded(ports(elsewhere, "state_dir", elsewhere.dir+"/s2", "run_dir", elsewhere.dir+"/r2", "cluster_address", a.keys["cluster_address"]))
	host(taken).refused(t, 1, "cluster_address "+a.keys["cluster_address"]+" is in use", "ss -ltnp")
	taken = founded(ports(elsewhere, "state_dir", elsewhere.dir+"/s3", "run_dir", elsewhere.dir+"/r3", "gossip_address", a.keys["gossip_address"]))
	host(taken).refused(t, 1, "gossip_address "+a.keys["gossip_address"]+" is in use")
	udp, err := net.ListenPacket("udp", elsewhere.address+":7701") // gossip needs both
	if err != nil {
		t.Fatal(err)
	}
	host(founded(ports(elsewhere, "state_dir", elsewhere.dir+"/s4", "run_dir", elsewhere.dir+"/r4"))).refused(t, 1, "gossip_address "+elsewhere.address+":7701 is in use")
	udp.Close()
	foreign := founded(ports(elsewhere, "state_dir", elsewhere.dir+"/s5", "run_dir", elsewhere.dir+"/r5", "cluster_address", "192.0.2.1:7700"))
	host(foreign).refused(t, 1, "192.0.2.1:7700", "not an address of this machine")
	foreign = founded(ports(elsewhere, "state_dir", elsewhere.dir+"/s6", "run_dir", elsewhere.dir+"/r6", "gossip_address", "192.0.2.1:7701"))
	host(foreign).refused(t, 1, "gossip_address 192.0.2.1:7701")
	deep := founded(ports(elsewhere, "state_dir", elsewhere.dir+"/s8", "run_dir", elsewhere.dir+"/"+strings.Repeat("r", 100)))
	host(deep).refused(t, 1, "too long", "shorter run_dir")

	// One without the network for its checkpoints can hold no guest, but its vote counts.
	mute := founded(newSite(t, "a").with(t, "replication_address", "192.0.2.1"))
	if words := mute.start(t, healthy, pollux, "host", "--config", mute.config).words(); !strings.Contains(words, "replication_address 192.0.2.1 is not an address of this machine") {
		t.Errorf("it only says %s", words)
	}

	a.await(t, d, healthy)
	run(t, "", pollux, "events", "verify", filepath.Join(a.state, "events.jsonl")).done(t)
}

// Tokens that are wrong let nobody in and say what to do; the daemon that is asked goes on.
func TestTokensThatLetNobodyIn(t *testing.T) {
	pollux := builtProgram(t)
	a := newSite(t, "a")
	run(t, "", pollux, "init", "--config", a.config).done(t)
	d := a.start(t, healthy, pollux, "host", "--config", a.config)
	issue := func(args ...string) string {
		return run(t, "", append([]string{pollux, "--socket", a.socket, "token"}, args...)...).done(t)
	}
	b := newSite(t, "b")
	join := func(s *site, token string) ending {
		return run(t, token, pollux, "join", "--config", s.config, "--token-file", "-")
	}
	const haveNew = "wrong, used up or expired; have a new one issued"

	join(b, "hello").refused(t, 1, "no join token", "pollux1.")
	join(b, string(noise(1000))).refused(t, 1, "no join token")
	token := strings.TrimSpace(issue("b"))
	join(b, token[:len(token)/2]).refused(t, 1, "no join token", "missing or changed")
	change := func(at int, address string) string {
		raw, err := base64.RawURLEncoding.DecodeString(strings.TrimPrefix(token, "pollux1."))
		if err != nil {
			t.Fatal(err)
		}
		if raw = bytes.Clone(raw); at >= 0 {
			raw[at] ^= 1
		}
		if address != "" {
			raw = append(raw[:64], address...)
		}
		return "pollux1." + base64.RawURLEncoding.EncodeToString(raw)
	}
	join(b, change(40, "")).refused(t, 1, haveNew)
	join(b, change(0, "")).refused(t, 1, "does not belong to the cluster of the token")
	join(b, change(-1, b.address+":7700")).refused(t, 1, "connection refused", "pollux host")
	join(b, change(-1, "somewhere")).refused(t, 1, "missing or changed")

	// Somebody else's token is used up by the attempt.
	join(newSite(t, "q"), token).refused(t, 1, `issued for "b"`, `called "q"`, "new one")
	join(b, token).refused(t, 1, haveNew)

	// Expired: as of now for a joiner who comes later, however short that is.
	old := issue("w", "--role", "witness", "--valid", "1ms")
	join(newSite(t, "w"), old).refused(t, 1, haveNew)

	token = issue("b")
	join(b, token).done(t)
	join(b, token).refused(t, 1, "belongs to a cluster already")
	join(newSite(t, "b"), token).refused(t, 1, haveNew)

	run(t, "", pollux, "--socket", a.socket, "token", "A_B").refused(t, 2, "A_B", "lower-case")
	run(t, "", pollux, "--socket", a.socket, "token", "a").refused(t, 9, "a is this host")
	run(t, "", pollux, "--socket", b.socket, "status").refused(t, 10, "does not answer", "pollux host")
	a.await(t, d, healthy)
	run(t, "", pollux, "events", "verify", filepath.Join(a.state, "events.jsonl")).done(t)
}

// State directories that can't be written.
func TestStateThatCantBeWritten(t *testing.T) {
	needRoot(t, "mounts and other users")
	pollux := publicCopy(t)
	s := newSite(t, "a")
	if err := errors.Join(os.Chmod(s.dir, 0o755), os.Chmod(s.config, 0o644), os.Mkdir(s.state, 0o700)); err != nil {
		t.Fatal(err)
	}
	in := func(where []string, command string) ending {
		return run(t, "", append(where, pollux, command, "--config", s.config)...)
	}
	for _, command := range []string{"init", "host"} {
		in(asNobody, command).refused(t, 1, s.state, "permission denied", "run it as root")
		in(readOnly(s.state), command).refused(t, 1, s.state, "read-only", "can be written")
	}
	in(tiny(s.state, "8k"), "init").refused(t, 1, s.state, "no space left", "make room")
	// What was begun there is no obstacle once there is room.
	run(t, "", "unshare", "-m", "sh", "-c", `mount -t tmpfs -o size=8k none "$0" && ! "$1" init --config "$2" && mount -o remount,size=1m "$0" && "$1" init --config "$2"`,
		s.state, pollux, s.config).done(t)
	if err := errors.Join(os.Remove(s.state), os.WriteFile(s.state, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	for _, command := range []string{"init", "host"} {
		in(nil, command).refused(t, 1, s.state, "not a directory", "state_dir")
	}
}

// A disk that fills up under a running daemon: changes are refused, nothing ends, and all is well again once
// there is room.
func TestStateFillsUp(t *testing.T) {
	needRoot(t, "to mount a small file system")
	pollux := builtProgram(t)
	s := newSite(t, "a")
	if err := os.Mkdir(s.state, 0o700); err != nil {
		t.Fatal(err)
	}
	d := s.start(t, healthy, "unshare", "-m", "sh", "-c", `mount -t tmpfs -o size=300k none "$0" && "$1" init --config "$2" && exec "$1" host --config "$2"`, s.state, pollux, s.config)
	inside := fmt.Sprintf("/proc/%d/root%s", d.cmd.Process.Pid, s.state)
	fill := filepath.Join(inside, "fill")
	if err := os.WriteFile(fill, make([]byte, 1<<20), 0o600); err == nil {
		t.Fatal("it does not fill up")
	}
	token := []string{pollux, "--socket", s.socket, "token", "b"}
	run(t, "", token...).refused(t, 1, "no space left")
	s.await(t, d, func(st *console.ClusterStatus) bool {
		for _, alarm := range st.Alarms {
			if strings.Contains(alarm, s.state) && strings.Contains(alarm, "left") {
				return true
			}
		}
		return false
	})
	// The logs' files have some room of their own.
	for i := 0; ; i++ {
		e := run(t, "", pollux, "--socket", s.socket, "guest", "create", fmt.Sprint("g", i), "--hosts", "a", "--kernel", "builtin:ledger")
		if e.code != 0 {
			t.Logf("after %d guests: exit code %d: %s", i, e.code, e.errors)
			break
		}
		if i == 100 {
			t.Fatal("guests without end fit onto a full disk")
		}
	}
	if err := os.Remove(fill); err != nil {
		t.Fatal(err)
	}
	s.await(t, d, healthy)
	run(t, "", token...).done(t)
	run(t, "", pollux, "events", "verify", filepath.Join(inside, "events.jsonl")).done(t)
}
