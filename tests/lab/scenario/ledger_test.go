package scenario

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/pollux-ha/pollux/tests/lab/images"
)

// clients is how many connections pgbench keeps.
const clients = 4

// transaction is pgbench's TPC-B-like one, and a row in the ledger that names it: the client's number, and how many
// transactions that client has begun.
const transaction = `\set seq :seq + 1
\set aid random(1, 100000 * :scale)
\set bid random(1, 1 * :scale)
\set tid random(1, 10 * :scale)
\set delta random(-5000, 5000)
BEGIN;
UPDATE pgbench_accounts SET abalance = abalance + :delta WHERE aid = :aid;
SELECT abalance FROM pgbench_accounts WHERE aid = :aid;
UPDATE pgbench_tellers SET tbalance = tbalance + :delta WHERE tid = :tid;
UPDATE pgbench_branches SET bbalance = bbalance + :delta WHERE bid = :bid;
INSERT INTO pgbench_history (tid, bid, aid, delta, mtime) VALUES (:tid, :bid, :aid, :delta, CURRENT_TIMESTAMP);
INSERT INTO ledger (client, seq) VALUES (:run * 100 + :client_id, :seq);
END;
`

// database is how programs reach the guest's. A connection whose server has gone without a word is found out by
// keepalives; one that stands still for minutes is not.
func (s *stage) database() string {
	return fmt.Sprintf("host=%s dbname=%s user=%s password=%s connect_timeout=60 keepalives_idle=20 keepalives_interval=10 keepalives_count=60",
		s.address, images.Database, images.User, images.Password)
}

// databaseUp waits until the guest's database answers.
func (s *stage) databaseUp() {
	s.Helper()
	s.eventually("the database answers", func(ctx context.Context) error {
		_, err := s.query(ctx, "SELECT 1")
		return err
	})
}

// query returns the rows of a query, fields separated by |.
func (s *stage) query(ctx context.Context, sql string) ([]string, error) {
	out, err := s.run(ctx, nil, "psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", s.database(), "-c", sql)
	return strings.Fields(out), err
}

// load is a pgbench that runs.
type load struct {
	s    *stage
	run  int
	cmd  *exec.Cmd
	stop io.Closer
	over chan struct{}
	err  error // valid once over is closed

	mu      sync.Mutex
	changed chan struct{} // closed and replaced with each line
	done    float64       // transactions, as far as pgbench has told
	said    bytes.Buffer
}

// startLoad starts pgbench. It goes on until it is stopped, or loses a connection.
func (s *stage) startLoad() *load {
	s.Helper()
	s.runs++
	run := s.runs
	script := s.outside("transaction.sql")
	if err := os.WriteFile(script, []byte(transaction), 0o644); err != nil {
		s.Fatal(err)
	}
	l := &load{s: s, run: run, over: make(chan struct{}), changed: make(chan struct{})}
	// SIGALRM is how pgbench's own time ends: every client finishes its transaction.
	l.cmd = s.client.Command(s.Context(), "sh", "-c", `bench=$1; shift
		"$bench" "$@" & pid=$!
		(read -r line; kill -ALRM $pid) <&3 &
		wait $pid`, "sh", "/usr/lib/postgresql/15/bin/pgbench",
		"-n", "-c", strconv.Itoa(clients), "-j", "1", "-T", "86400", "-P", "1", "-s", "4", "-D", "seq=0", "-D", fmt.Sprint("run=", run), "-f", s.inside("transaction.sql"),
		"--log", "--log-prefix="+s.inside(fmt.Sprint("log", run)), s.database())
	r, w, err := os.Pipe()
	if err != nil {
		s.Fatal(err)
	}
	l.cmd.ExtraFiles, l.stop = []*os.File{r}, w
	out, err := l.cmd.StderrPipe()
	if err != nil {
		s.Fatal(err)
	}
	err = l.cmd.Start()
	r.Close()
	s.must("pgbench starts", err)
	go l.listen(out)
	s.Cleanup(func() { w.Close(); <-l.over })
	return l
}

func (l *load) listen(out io.Reader) {
	last := 0.0
	for in := bufio.NewScanner(out); in.Scan(); {
		var at, tps float64
		l.mu.Lock()
		if _, err := fmt.Sscanf(in.Text(), "progress: %f s, %f tps", &at, &tps); err == nil {
			l.done += tps * (at - last)
			last = at
		} else {
			fmt.Fprintln(&l.said, in.Text())
		}
		close(l.changed)
		l.changed = make(chan struct{})
		l.mu.Unlock()
	}
	l.err = l.cmd.Wait()
	close(l.over)
}

// more waits for n further transactions.
func (l *load) more(n float64) {
	l.s.Helper()
	limit := time.After(patience)
	l.mu.Lock()
	want := l.done + n
	l.mu.Unlock()
	for {
		l.mu.Lock()
		done, changed := l.done, l.changed
		l.mu.Unlock()
		if done >= want {
			l.s.step("%.0f transactions have been done", done)
			return
		}
		select {
		case <-changed:
		case <-l.over:
			l.s.Fatalf("pgbench has ended: %v\n%s", l.err, l.said.String())
		case <-limit:
			l.s.Fatalf("no progress: %.0f transactions, %.0f wanted\n%s", done, want, l.said.String())
		}
	}
}

// end stops pgbench, which must have kept every connection.
func (l *load) end() {
	l.s.Helper()
	l.stop.Close()
	select {
	case <-l.over:
	case <-time.After(patience):
		l.s.Fatal("pgbench does not end")
	}
	said := l.said.String()
	if l.err != nil || strings.Contains(said, "aborted") {
		l.s.Errorf("pgbench ended with %v, and has lost a connection or failed:\n%s", l.err, said)
	}
	l.s.step("pgbench has ended")
}

// acknowledged reads from pgbench's log how many transactions each client saw committed.
func (l *load) acknowledged() map[int]int {
	l.s.Helper()
	logs, err := filepath.Glob(l.s.outside(fmt.Sprint("log", l.run)) + ".*")
	if err != nil || len(logs) == 0 {
		l.s.Fatalf("pgbench has left no log: %v", err)
	}
	count := make(map[int]int)
	for _, path := range logs {
		data, err := os.ReadFile(path)
		if err != nil {
			l.s.Fatal(err)
		}
		for line := range strings.Lines(string(data)) {
			// client, transaction, latency, script, and when
			fields := strings.Fields(line)
			client, err := strconv.Atoi(fields[0])
			if err != nil || len(fields) < 6 {
				l.s.Fatalf("pgbench's log has the line %q", line)
			}
			if _, err := strconv.Atoi(fields[2]); err != nil {
				l.s.Errorf("a transaction failed: %q", line)
				continue
			}
			count[client]++
		}
	}
	return count
}

// check compares the ledger with what the client knows, and the books with each other.
func (l *load) check(ctx context.Context) {
	s := l.s
	s.Helper()
	// One question for everything: logging in costs an emulated server more than the answer.
	told := l.acknowledged()
	total := 0
	var known []string
	for client, n := range told {
		known = append(known, fmt.Sprintf("(%d, %d)", l.run*100+client, n))
		total += n
	}
	if total == 0 {
		s.Fatal("no transaction was acknowledged")
	}
	rows, err := s.query(ctx, `SELECT 'client', t.client, count(l.seq), coalesce(sum((l.seq <= t.acknowledged)::int), 0), coalesce(max(l.seq), 0)
			FROM (VALUES `+strings.Join(known, ", ")+`) AS t (client, acknowledged) LEFT JOIN ledger AS l USING (client) GROUP BY t.client;
		SELECT 'books', (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(tbalance) FROM pgbench_tellers),
			(SELECT sum(bbalance) FROM pgbench_branches), (SELECT coalesce(sum(delta), 0) FROM pgbench_history),
			(SELECT count(*) FROM pgbench_history), (SELECT count(*) FROM ledger)`)
	if err != nil {
		s.Fatalf("ask for the ledger: %v", err)
	}
	seen := 0
	for _, row := range rows {
		b := strings.Split(row, "|")
		if b[0] == "books" {
			if b[1] != b[2] || b[2] != b[3] || b[3] != b[4] || b[5] != b[6] {
				s.Errorf("the books don't agree: accounts, tellers, branches, history %v; %s rows of history, %s of the ledger", b[1:5], b[5], b[6])
			}
			continue
		}
		var client, have, there, last int
		if _, err := fmt.Sscanf(strings.Join(b[1:], " "), "%d %d %d %d", &client, &have, &there, &last); err != nil {
			s.Fatalf("%q: %v", row, err)
		}
		n := told[client-l.run*100]
		if there != n {
			s.Errorf("client %d was told of %d commits, and the ledger has %d of them", client, n, there)
		}
		if have > n+1 || last > n+1 {
			s.Errorf("client %d was told of %d commits, and the ledger has %d, the last is %d: more than the one that may have been in flight", client, n, have, last)
		}
		seen++
	}
	if seen != len(told) || len(rows) != seen+1 {
		s.Errorf("the ledger knows %d clients of %d, in %q", seen, len(told), rows)
	}
	s.step("all %d acknowledged transactions are in the ledger", total)
}

// amcheck has every table and index of the database looked at.
func (s *stage) amcheck(ctx context.Context) {
	s.Helper()
	_, err := s.run(ctx, nil, "env", "PGPASSWORD="+images.Password, "/usr/lib/postgresql/15/bin/pg_amcheck",
		"-h", s.address, "-U", images.User, "-d", images.Database, "--heapallindexed")
	s.must("pg_amcheck finds nothing", err)
}
