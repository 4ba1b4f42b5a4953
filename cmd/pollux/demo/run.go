package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"github.com/pollux-ha/pollux/audit"
	"github.com/pollux-ha/pollux/cmd/pollux/demo/lab"
	"github.com/pollux-ha/pollux/tests/history"
)

// run is a demo that is going on.
type run struct {
	options  Options
	random   *rand.Rand
	began    time.Time
	progress io.Writer

	cluster  *cluster
	monitor  *monitor
	recorder *history.Recorder
	workload *history.Workload
	load     *load

	// measuring is when the guest was first protected and all clients were connected, on the
	// recorder's clock: what was before is no part of the figures.
	measuring time.Duration
	// afterTakeover, if set, is what a strike does between the clients' first reply and the repair.
	afterTakeover func(context.Context, *Strike) error
	// afterRepair, if set, is what a strike does between the repair and waiting for protection.
	afterRepair func(context.Context, *Strike) error

	workers   sync.WaitGroup
	workloads chan error // the workload's end
}

// Run plays a demo in this session. progress hears of what goes on, line by line. The result is there
// also where there is an error.
func Run(ctx context.Context, options Options, progress io.Writer) (result *Result, err error) {
	if err := options.Validate(); err != nil {
		return nil, err
	}
	if options.Seed == 0 {
		options.Seed = rand.Uint64() >> 1 // a JSON number that everybody can read back
	}
	options.Seed &= 1<<53 - 1
	dir, err := lab.NewDir(options.Dir)
	if err != nil {
		return nil, err
	}
	defer func() {
		// What went wrong must be possible to find; being told to end is nothing wrong.
		if options.Keep || ctx.Err() == nil && (err != nil || !result.Good()) {
			if kept, err := dir.Keep(); err == nil {
				fmt.Fprintf(progress, "configurations and logs are kept in %s\n", kept)
			}
			return
		}
		err = errors.Join(err, dir.Remove())
	}()
	l, err := lab.New(dir.Path)
	if err != nil {
		return nil, err
	}
	defer l.Close()
	r := &run{
		options:  options,
		random:   rand.New(rand.NewPCG(options.Seed, 0)),
		began:    time.Now(),
		progress: progress,
		recorder: history.NewRecorder(),
	}
	return r.play1(ctx, l)
}

func (r *run) tell(format string, a ...any) {
	fmt.Fprintf(r.progress, "%7.1f s  %s\n", time.Since(r.began).Seconds(), fmt.Sprintf(format, a...))
}

func (r *run) play1(ctx context.Context, l *lab.Lab) (*Result, error) {
	workers, stop := context.WithCancel(ctx)
	defer func() {
		stop()
		r.workers.Wait()
	}()
	var err error
	if r.cluster, err = newCluster(l, r.options); err != nil {
		return nil, err
	}
	r.tell("two hosts, a and b, and a witness, w: namespaces of this machine, with a LAN, a cluster network and a replication network")
	if err := r.cluster.found(ctx, r.tell); err != nil {
		return nil, fmt.Errorf("found the cluster: %w", err)
	}
	r.tell("guest %s: a Redis server at %s, 128 MiB", guestName, guestAddress)
	if err := r.cluster.createGuest(ctx); err != nil {
		return nil, fmt.Errorf("create the guest: %w", err)
	}
	r.monitor = newMonitor(r.cluster)
	r.workers.Add(1)
	go func() {
		defer r.workers.Done()
		r.monitor.run(workers)
	}()
	begin := time.Now()
	if _, err := r.awaitProtected(ctx); err != nil {
		return nil, err
	}
	g := r.monitor.now()
	r.tell("protected, %.1f s after it was created: it runs on %s, its copy is on %s", time.Since(begin).Seconds(), g.Primary, g.Replica)

	result := &Result{Fault: r.options.Fault, Load: r.options.Load, Seed: r.options.Seed, Twice: r.options.Twice, Victim: r.options.Victim, During: r.options.During, Linearizable: history.Undecided}
	if err := r.startClients(ctx, workers, l); err != nil {
		return nil, err
	}
	err = r.act(ctx, result)
	if err != nil {
		result.Error = err.Error()
	}
	end := r.recorder.Now()
	result.ClientGapMsMax = milliseconds(r.recorder.LongestWait(r.measuring, end))
	if r.load != nil {
		if err := r.load.stop(); err != nil {
			result.LoadFailure = err.Error()
		}
	}
	if ctx.Err() != nil {
		return result, context.Cause(ctx)
	}
	r.finish(ctx, result)
	return result, nil
}

// act is the demo itself, with everything set up.
func (r *run) act(ctx context.Context, result *Result) error {
	if r.options.Fault == "" {
		return r.story(ctx, result)
	}
	return r.rounds(ctx, result)
}

func (r *run) awaitProtected(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, protectedPatience)
	defer cancel()
	g, err := r.monitor.await(ctx, "the guest was protected", protected)
	if err != nil {
		return "", err
	}
	return g.Primary, nil
}

// clients is how many checking clients there are.
const clients = 6

// startClients connects the checking clients, and starts the load where it is wanted.
func (r *run) startClients(ctx, workers context.Context, l *lab.Lab) error {
	r.workload = &history.Workload{
		Dial:        func(ctx context.Context) (net.Conn, error) { return dialPatiently(ctx, l) },
		Recorder:    r.recorder,
		Think:       time.Millisecond,
		Connections: clients,
		Prefix:      "check",
		Seed:        r.options.Seed,
	}
	r.workloads = make(chan error, 1)
	r.workers.Add(1)
	go func() {
		defer r.workers.Done()
		r.workloads <- r.workload.Run(workers, 0)
	}()
	first, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if err := r.recorder.AwaitReplies(first, 0, clients); err != nil {
		select {
		case err := <-r.workloads:
			return fmt.Errorf("the checking clients: %w", err)
		default:
			return fmt.Errorf("the guest does not answer its clients: %w", err)
		}
	}
	if r.options.Load {
		var err error
		if r.load, err = startLoad(l); err != nil {
			return err
		}
	}
	r.measuring = r.recorder.Now()
	return nil
}

// dialPatiently bounds a single attempt: the workload decides whether to try again.
func dialPatiently(ctx context.Context, l *lab.Lab) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	return l.Dial(ctx, guestAddress)
}

func (r *run) loadFailure() error {
	if r.load == nil {
		return nil
	}
	return r.load.failed()
}

// checkTime bounds the search for a linearization.
const checkTime = 2 * time.Minute

// finish has the clients come to an end, reads everything again, and judges.
func (r *run) finish(ctx context.Context, result *Result) {
	r.workload.Stop()
	select {
	case err := <-r.workloads:
		if err != nil {
			result.Findings = append(result.Findings, err.Error())
		}
	case <-time.After(30 * time.Second):
		result.Stuck = true
	case <-ctx.Done():
	}
	verify, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := r.workload.Verify(verify); err != nil {
		result.Findings = append(result.Findings, "the final reading failed: "+err.Error())
	} else {
		result.Verified = true
	}
	result.judge(r.workload, history.Check(r.recorder.Operations(), checkTime))
	result.EventLogsWhole = true
	for _, n := range r.cluster.nodes() {
		if _, err := audit.Verify(n.config.EventLog()); err != nil {
			result.EventLogsWhole = false
			result.Findings = append(result.Findings, fmt.Sprintf("machine %s: %v", n.Name, err))
		}
	}
	result.Epochs, result.WireBytes, result.DirtyBytes = r.monitor.totals()
	result.summarize()
}

// pause waits a random time.
func (r *run) pause(ctx context.Context, least, most time.Duration) {
	d := least + time.Duration(r.random.Int64N(int64(most-least)))
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
