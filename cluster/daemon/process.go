package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/google/renameio/v2"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/pollux-ha/pollux/cluster/link"
	"github.com/pollux-ha/pollux/cluster/pact"
)

const (
	connectEvery  = 20 * time.Millisecond
	logsKept      = 5
	lastWordsMax  = 4096 // bytes of a process's log in which they are looked for
	exitUnknown   = -1
	sendTimeout   = 5 * time.Second
	configSuffix  = ".json"
	socketSuffix  = ".sock"
	agentSuffix   = ".qga" // not longer than socketSuffix, whose path is checked
	processSuffix = ".log"
)

// process is a data-plane process as the daemon sees it.
type process struct {
	guest  string
	party  pact.Party
	path   string // of its configuration
	log    *zap.Logger
	events func(any) // to the keeper; never blocks for long

	mu     sync.Mutex
	proc   *os.Process // by a descriptor, so that a number that was given away does no harm
	hello  *link.Hello
	status *link.Status
	// protected: it has been half of a protected pair
	protected bool
	conn      *link.Conn
	// What it is to be told, each the newest of its kind.
	assignment *pact.Assignment
	peer       *link.Peer
	orders     []link.Message
	answers    []link.Answer
	dumping    string // the file of a dump under way that this daemon has made
	poke       chan struct{}

	exited chan struct{}
	code   int // valid after exited
}

// What a process tells its keeper.
type (
	procReady struct{ p *process }
	procSaid  struct{ p *process }
	procAsks  struct {
		p   *process
		cmd pact.Command
	}
	procEnded struct{ p *process }
)

func newProcess(cfg link.ProcessConfig, path string, log *zap.Logger, events func(any)) *process {
	return &process{
		guest: cfg.Guest, party: cfg.Party, path: path, events: events,
		log:  log.With(zap.String("guest", cfg.Guest), zap.Stringer("process", cfg.Party)),
		poke: make(chan struct{}, 1), exited: make(chan struct{}),
	}
}

// spawn starts a new process. It gets a session of its own and lives on without the daemon.
func spawn(program []string, cfg link.ProcessConfig, dir string, log *zap.Logger, events func(any)) (*process, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the directory for processes: %w", err)
	}
	base := filepath.Join(dir, fmt.Sprintf("%s-%016x", cfg.Guest, uint64(cfg.Party.Incarnation)))
	cfg.ControlSocket, cfg.AgentSocket, cfg.LogFile = base+socketSuffix, base+agentSuffix, ""
	if len(cfg.ControlSocket) > 107 {
		return nil, fmt.Errorf("the path of a control socket would be too long for Linux (%s): choose a shorter run_dir", cfg.ControlSocket)
	}
	if err := writeConfig(base+configSuffix, cfg); err != nil {
		return nil, err
	}
	out, err := os.OpenFile(base+processSuffix, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the process's log: %w", err)
	}
	defer out.Close()
	start := func(namespaces uintptr) (*exec.Cmd, error) {
		cmd := exec.Command(program[0], append(slices.Clone(program[1:]), "dataplane", "--config", base+configSuffix)...)
		cmd.Stdout, cmd.Stderr = out, out
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Unshareflags: namespaces}
		return cmd, cmd.Start()
	}
	var cmd *exec.Cmd
	if cfg.Confine.Root == "" {
		cmd, err = start(0)
	} else if cmd, err = start(processNamespaces); err != nil && cfg.Confine.Mode != link.ConfineRequired {
		log.Warn("a process gets no mounts of its own", zap.String("guest", cfg.Guest), zap.Error(err))
		cfg.Confine.Root, cfg.Confine.Why = "", "this host's daemon can't make namespaces: "+err.Error()
		if err = writeConfig(base+configSuffix, cfg); err == nil {
			cmd, err = start(0)
		}
	}
	if err != nil {
		os.Remove(base + configSuffix)
		return nil, fmt.Errorf("start the data plane (%s): %w", program[0], err)
	}
	p := newProcess(cfg, base+configSuffix, log, events)
	p.proc = cmd.Process
	p.log.Info("process started", zap.Int("pid", p.proc.Pid))
	go func() {
		err := cmd.Wait()
		var exit *exec.ExitError
		switch {
		case err == nil:
			p.ended(0)
		case errors.As(err, &exit):
			p.ended(exit.ExitCode())
		default:
			p.ended(exitUnknown)
		}
	}()
	go p.converse()
	return p, nil
}

func writeConfig(path string, cfg link.ProcessConfig) error {
	b, err := json.MarshalIndent(cfg, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the process's configuration: %w", err)
	}
	if err := renameio.WriteFile(path, append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("write the process's configuration: %w", err)
	}
	return nil
}

// adopt takes up the processes that an earlier daemon of this host has started and that still live. The
// process table decides who lives; files of the others are removed.
func adopt(dir, host string, log *zap.Logger, events func(guest string) func(any)) ([]*process, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*"+configSuffix))
	if err != nil {
		return nil, err
	}
	pids, err := processesByConfig()
	if err != nil {
		return nil, err
	}
	// A process may have lost its file, and lives nevertheless.
	for f := range pids {
		if filepath.Dir(f) == filepath.Clean(dir) && !slices.Contains(files, f) {
			files = append(files, f)
		}
	}
	var found []*process
	for _, f := range files {
		guest, incarnation, ok := parseBase(strings.TrimSuffix(filepath.Base(f), configSuffix))
		if !ok {
			log.Warn("a file that is no process's", zap.String("file", f))
			continue
		}
		party := pact.Party{Host: host, Incarnation: incarnation}
		p := newProcess(link.ProcessConfig{Guest: guest, Party: party}, f, log, events(guest))
		pid, ok := pids[f]
		if !ok || p.watch(pid) != nil {
			p.tidy()
			continue
		}
		p.log.Info("process found", zap.Int("pid", pid))
		go p.converse()
		found = append(found, p)
	}
	return found, nil
}

// parseBase reads "<guest>-<incarnation>", the name of a process's files.
func parseBase(base string) (guest string, i pact.Incarnation, ok bool) {
	n := len(base) - 16
	if n < 2 || base[n-1] != '-' || !pact.ValidGuestName(base[:n-1]) {
		return "", 0, false
	}
	v, err := strconv.ParseUint(base[n:], 16, 64)
	return base[:n-1], pact.Incarnation(v), err == nil && v != 0
}

// processesByConfig finds data-plane processes by their command line: "... dataplane --config FILE".
func processesByConfig() (map[string]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("look for running processes: %w", err)
	}
	found := map[string]int{}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		b, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err != nil {
			continue // it has just ended
		}
		args := strings.Split(strings.TrimSuffix(string(b), "\x00"), "\x00")
		if n := len(args); n >= 3 && args[n-3] == "dataplane" && args[n-2] == "--config" {
			found[args[n-1]] = pid
		}
	}
	return found, nil
}

// watch follows a process that is not a child of this daemon until it ends.
func (p *process) watch(pid int) error {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return err
	}
	// It may have ended, and its number been given away, before the descriptor was there.
	if pids, err := processesByConfig(); err != nil || pids[p.path] != pid {
		unix.Close(fd)
		return errors.Join(errors.New("it has ended"), err)
	}
	if p.proc, err = os.FindProcess(pid); err != nil {
		unix.Close(fd)
		return err
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	raw, err := f.SyscallConn()
	if err != nil {
		f.Close()
		return err
	}
	go func() {
		defer f.Close()
		// The descriptor becomes readable when the process ends.
		err := raw.Read(func(fd uintptr) bool {
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
			return err == nil && n == 1
		})
		if err != nil {
			p.log.Error("watch a process", zap.Error(err))
			for unix.Kill(pid, 0) == nil {
				time.Sleep(time.Second) // nobody tells of its end now: look from time to time
			}
		}
		p.ended(exitUnknown)
	}()
	return nil
}

func (p *process) ended(code int) {
	p.mu.Lock()
	p.code = code
	conn := p.conn
	for _, m := range p.orders {
		if m.File != nil {
			m.File.Close()
		}
	}
	p.orders = nil
	p.mu.Unlock()
	if conn != nil {
		conn.Close()
	}
	close(p.exited)
	p.log.Info("process ended", zap.Int("code", code))
	p.tidy()
	p.events(procEnded{p})
}

// lastWords is what a process that has ended in an orderly way has said last, for people; "": nothing.
func (p *process) lastWords() string {
	f, err := os.Open(p.logPath())
	if err != nil {
		return ""
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return ""
	}
	b := make([]byte, min(info.Size(), lastWordsMax))
	if _, err := f.ReadAt(b, info.Size()-int64(len(b))); err != nil {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	for i, line := range lines {
		if words, ok := strings.CutPrefix(line, link.LastWords); ok {
			return strings.Join(append([]string{words}, lines[i+1:]...), "; ")
		}
	}
	return ""
}

// tidy removes the files of a process that has ended, but for the last logs.
func (p *process) tidy() {
	base := strings.TrimSuffix(p.path, configSuffix)
	os.Remove(base + configSuffix)
	os.Remove(base + socketSuffix)
	os.Remove(base + agentSuffix)
	logs, err := filepath.Glob(filepath.Join(filepath.Dir(p.path), p.guest+"-????????????????"+processSuffix))
	if err != nil || len(logs) <= logsKept {
		return
	}
	age := func(f string) time.Time {
		info, err := os.Stat(f)
		if err != nil {
			return time.Time{}
		}
		return info.ModTime()
	}
	slices.SortFunc(logs, func(a, b string) int { return age(a).Compare(age(b)) })
	for _, f := range logs[:len(logs)-logsKept] {
		os.Remove(f)
	}
}

// converse keeps a conversation with the process while it lives.
func (p *process) converse() {
	for {
		select {
		case <-p.exited:
			return
		default:
		}
		c, err := net.Dial("unix", strings.TrimSuffix(p.path, configSuffix)+socketSuffix)
		if err == nil {
			p.talk(c)
		} else if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ECONNREFUSED) {
			p.log.Warn("connect to the process", zap.Error(err))
		}
		select {
		case <-p.exited:
			return
		case <-time.After(connectEvery):
		}
	}
}

func (p *process) talk(c net.Conn) {
	conn := link.NewConn(c)
	defer conn.Close()
	m, err := conn.Receive()
	if err != nil {
		return
	}
	if m.Hello == nil || m.Hello.Guest != p.guest || m.Hello.Party != p.party {
		p.log.Error("another process answers on this one's socket", zap.Any("hello", m.Hello))
		return
	}
	p.mu.Lock()
	p.hello, p.conn = m.Hello, conn
	p.mu.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	defer func() {
		cancel()
		p.mu.Lock()
		p.conn = nil
		p.mu.Unlock()
	}()
	go p.send(ctx, c, conn)
	p.events(procReady{p})
	for {
		m, err := conn.Receive()
		if err != nil {
			return
		}
		switch {
		case m.Hello != nil:
			p.mu.Lock()
			p.hello = m.Hello
			p.mu.Unlock()
			p.events(procSaid{p})
		case m.Status != nil:
			p.mu.Lock()
			p.status = m.Status
			p.dumped(m.Status.Dump)
			p.protected = p.protected || m.Status.Mode == string(pact.Protected)
			p.mu.Unlock()
			p.events(procSaid{p})
		case m.Proposal != nil:
			p.events(procAsks{p, *m.Proposal})
		}
	}
}

// send passes on what the process is to be told. A new conversation begins with all that is still true.
func (p *process) send(ctx context.Context, raw net.Conn, conn *link.Conn) {
	var told *pact.Assignment
	var toldPeer *link.Peer
	for {
		p.mu.Lock()
		a, peer, orders, answers := p.assignment, p.peer, p.orders, p.answers
		p.orders, p.answers = nil, nil
		p.mu.Unlock()
		var out []link.Message
		// Answers after the assignment: what they lead to is known then.
		if a != nil && a != told {
			out = append(out, link.Message{Assignment: a})
			told = a
		}
		out = append(out, orders...)
		for _, o := range answers {
			out = append(out, link.Message{Answer: &o})
		}
		if peer != nil && peer != toldPeer {
			out = append(out, link.Message{Peer: peer})
			toldPeer = peer
		}
		for _, m := range out {
			// A process that does not read must not keep the daemon waiting.
			_ = raw.SetWriteDeadline(time.Now().Add(sendTimeout))
			err := conn.Send(m)
			if m.File != nil {
				m.File.Close()
			}
			if err != nil {
				conn.Close()
				return
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-p.poke:
		}
	}
}

func (p *process) wake() {
	select {
	case p.poke <- struct{}{}:
	default:
	}
}

// assign tells the process the newest assignment.
func (p *process) assign(a pact.Assignment) {
	p.mu.Lock()
	p.assignment = &a
	p.mu.Unlock()
	p.wake()
}

// meet tells the process where its twin is.
func (p *process) meet(peer link.Peer) {
	p.mu.Lock()
	if p.peer != nil && *p.peer == peer {
		p.mu.Unlock()
		return
	}
	p.peer = &peer
	p.mu.Unlock()
	p.wake()
}

func (p *process) order(kind string) { p.give(link.Order{Kind: kind}) }

func (p *process) give(o link.Order) {
	p.mu.Lock()
	p.orders = append(p.orders, link.Message{Order: &o})
	p.mu.Unlock()
	p.wake()
}

func (p *process) answer(a link.Answer) {
	p.mu.Lock()
	p.answers = append(p.answers, a)
	p.mu.Unlock()
	p.wake()
}

// kill ends the process at once.
func (p *process) kill() {
	if err := p.proc.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		p.log.Error("kill the process", zap.Error(err))
	}
}

func (p *process) ready() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.hello != nil
}

// wasProtected reports that the process has been half of a protected pair.
func (p *process) wasProtected() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.protected
}

// said returns what the process last told of itself.
func (p *process) said() (link.Hello, link.Status, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var h link.Hello
	var s link.Status
	if p.hello != nil {
		h = *p.hello
	}
	if p.status != nil {
		s = *p.status
	}
	return h, s, p.status != nil
}
