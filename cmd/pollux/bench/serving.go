package bench

import (
	"bytes"
	"context"
	"encoding/csv"
	"fmt"
	"maps"
	"net"
	"os/exec"
	"slices"
	"strconv"
	"time"

	"github.com/pollux-ha/pollux/cmd/pollux/demo"
)

const (
	serveTarget = 0.85
	// serveRequests is how many requests one run of redis-benchmark makes: some tenths of a second.
	serveRequests = 4000
)

// serving is P2b: redis-benchmark, 50 clients.
type serving struct {
	b        *bench
	commands []string
	rate     map[string]*pair    // requests a second
	cpu      map[string]*pair    // microseconds of the primary's process for a request
	twin     map[string]*samples // and of the replica's
	perEpoch map[string]*samples // requests
	pages    map[string]*samples // dirty ones in an epoch
	last     map[string]map[string]Phase
}

func newServing(b *bench, t *tape) probe {
	p := &serving{b: b, commands: []string{"SET", "GET"}, rate: map[string]*pair{}, cpu: map[string]*pair{}, twin: map[string]*samples{},
		perEpoch: map[string]*samples{}, pages: map[string]*samples{}, last: map[string]map[string]Phase{}}
	for _, c := range p.commands {
		p.rate[c], p.cpu[c], p.twin[c] = t.pair(), t.pair(), t.samples()
		p.perEpoch[c], p.pages[c] = t.samples(), t.samples()
	}
	return p
}

func (p *serving) half(ctx context.Context, s *stage, protected bool) error {
	for _, command := range p.commands {
		counted, _, err := s.counters(ctx)
		if err != nil {
			return err
		}
		before, err := p.cpuTimes(s, protected)
		if err != nil {
			return err
		}
		runs := p.b.count(4, 3)
		for range runs {
			rate, err := redisBenchmark(ctx, s, command)
			if err != nil {
				return err
			}
			p.rate[command].of(protected).add(rate)
		}
		after, err := p.cpuTimes(s, protected)
		if err != nil {
			return err
		}
		each := func(i int) float64 {
			return float64(after[i]-before[i]) / float64(time.Microsecond) / float64(runs*serveRequests)
		}
		p.cpu[command].of(protected).add(each(0))
		if !protected {
			continue
		}
		p.twin[command].add(each(1))
		now, _, err := s.counters(ctx)
		if err != nil {
			return err
		}
		if epochs := float64(now.Epochs - counted.Epochs); epochs > 0 {
			p.perEpoch[command].add(float64(runs*serveRequests) / epochs)
			p.pages[command].add(float64(now.DirtyPages-counted.DirtyPages) / epochs)
		}
		p.last[command] = s.epochs()
	}
	return nil
}

// cpuTimes are what the primary's and the replica's processes have used.
func (p *serving) cpuTimes(s *stage, protected bool) (t [2]time.Duration, err error) {
	if t[0], err = s.CPUTime(s.primary); err != nil || !protected {
		return t, err
	}
	t[1], err = s.CPUTime(s.replica)
	return t, err
}

func (p *serving) rows() []Row {
	var rows []Row
	for _, command := range p.commands {
		rate, cpu := p.rate[command], p.cpu[command]
		r := rate.row("P2b", command+", redis-benchmark, 50 clients", "1/s").toReach(serveTarget).
			noted("guest, replica, daemons and the load share this machine's processors, so the ratio is partly that of their processor time: " +
				"a request takes the phases \"cpu\" of the data-plane processes")
		r.Phases = maps.Clone(p.last[command])
		if r.Phases == nil {
			r.Phases = make(map[string]Phase)
		}
		for name, of := range map[string]struct {
			unit string
			*samples
		}{
			"cpu primary":        {"us/request", cpu.protected},
			"cpu replica":        {"us/request", p.twin[command]},
			"cpu solo":           {"us/request", cpu.solo},
			"requests per epoch": {"requests", p.perEpoch[command]},
			"pages per epoch":    {"pages", p.pages[command]},
		} {
			q := of.quantiles()
			r.Phases[name] = Phase{Unit: of.unit, P50: round(q.p50), P90: round(q.p90), P99: round(q.p99), Samples: len(*of.samples)}
		}
		rows = append(rows, r)
	}
	return rows
}

// redisBenchmark makes one run of it and returns the requests a second.
func redisBenchmark(ctx context.Context, s *stage, command string) (float64, error) {
	host, port, err := net.SplitHostPort(demo.GuestAddress)
	if err != nil {
		return 0, err
	}
	cmd := exec.CommandContext(ctx, "redis-benchmark", "-h", host, "-p", port, "-t", command,
		"-n", strconv.Itoa(serveRequests), "-c", "50", "-r", "1000", "--csv")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := s.Lab.StartClient(cmd); err != nil {
		return 0, fmt.Errorf("start redis-benchmark: %w", err)
	}
	if err := cmd.Wait(); err != nil {
		return 0, fmt.Errorf("redis-benchmark: %w: %s", err, bytes.TrimSpace(errs.Bytes()))
	}
	return parseRate(out.Bytes(), command)
}

// parseRate finds a command's requests a second in what redis-benchmark --csv wrote.
func parseRate(out []byte, command string) (float64, error) {
	r := csv.NewReader(bytes.NewReader(out))
	r.FieldsPerRecord = -1
	lines, err := r.ReadAll()
	if err != nil {
		return 0, fmt.Errorf("what redis-benchmark wrote: %w", err)
	}
	i := slices.IndexFunc(lines, func(f []string) bool { return len(f) > 1 && f[0] == command })
	if i < 0 {
		return 0, fmt.Errorf("redis-benchmark wrote nothing of %s: %q", command, out)
	}
	return strconv.ParseFloat(lines[i][1], 64)
}
