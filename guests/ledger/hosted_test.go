package ledger_test

import (
	"path/filepath"
	"strings"
	"testing"
)

// Seeded trials of the core, each in one process without a network: see host/trial.c.
func TestTrials(t *testing.T) {
	trial := filepath.Join(hostedPrograms(t), "ledger-trial")
	for _, c := range []struct{ kind, rounds string }{
		{"packets", "400"}, {"streams", "150"}, {"splits", "200"}, {"crashes", "20"},
	} {
		t.Run(c.kind, func(t *testing.T) { t.Log(run(t, trial, c.kind, "1", c.rounds)) })
	}
}

// A conversation with the real client.
func TestCommands(t *testing.T) {
	needTools(t, "redis-cli")
	network(t)
	stop := startHosted(t, emptyDisk(t, 8<<20), "")
	long := strings.Repeat("x", 513)
	for _, c := range []struct{ ask, want string }{
		{"PING", "PONG"},
		{"ECHO hello", "hello"},
		{"SET a 1", "OK"},
		{"SET a 2 NX", ""},
		{"SET a 2 XX GET", "1"},
		{"SET a 3 EX 10", "ERR Ledger keeps what it is given: keys don't expire"},
		{"GET a", "2"},
		{"INCR a", "3"},
		{"DECRBY a 5", "-2"},
		{"INCRBY a 9223372036854775807", "9223372036854775805"},
		{"INCR b", "1"},
		{"APPEND b 23", "3"},
		{"STRLEN b", "3"},
		{"SET word abc", "OK"},
		{"INCR word", "ERR value is not an integer or out of range"},
		{"MSET m1 x m2 y m1 z", "OK"},
		{"MGET m1 m2 nothing", "z\ny"},
		{"EXISTS m1 m2 m1 nothing", "3"},
		{"DBSIZE", "5"},
		{"DEL m1 m1 m2", "2"},
		{"GETSET word def", "abc"},
		{"TYPE word", "string"},
		{"TTL word", "-1"},
		{"SELECT 0", "OK"},
		{"SELECT 1", "ERR DB index is out of range"},
		{"CONFIG GET save", "save"},
		{"CONFIG GET appendonly", "appendonly\nyes"},
		{"COMMAND COUNT", "35"},
		{"GET", "ERR wrong number of arguments, or a form of this command that Ledger does not have"},
		{"LPUSH l 1", "ERR unknown command 'LPUSH'"},
		{"GET " + long, "ERR the key is longer than 512 bytes"},
		{"LEDGER.DIRTY 1 5000", "ERR LEDGER.DIRTY pages_per_second(0 to 10000000) changed_bytes_per_page(0 to 4096) [pages of the arena, see INFO]"},
		{"LEDGER.BURN 1", "OK"},
		{"LEDGER.BURN 0", "OK"},
		{"LEDGER.DIRTY 1000 16", "OK"},
		{"LEDGER.DIRTY 0 0", "OK"},
		{"QUIT", "OK"},
	} {
		if got := strings.TrimSpace(cli(t, strings.Fields(c.ask)...)); got != c.want {
			t.Errorf("%s: %q, want %q", c.ask, got, c.want)
		}
	}
	if got := cli(t, "-3", "HELLO", "3"); !strings.Contains(got, "proto 3") {
		t.Errorf("HELLO 3: %q", got)
	}
	if n := info(t, "ledger_burn_count"); n == 0 {
		t.Error("LEDGER.BURN has not burnt anything")
	}
	stop()
}

func TestColdRestart(t *testing.T) {
	needTools(t, "redis-cli")
	network(t)
	disk := emptyDisk(t, 8<<20)
	stop := startHosted(t, disk, "")
	cli(t, "SET", "kept", "yes")
	cli(t, "SET", "gone", "x")
	cli(t, "DEL", "gone")
	cli(t, "APPEND", "kept", ", all of it")
	stop()
	startHosted(t, disk, "")
	if got := cli(t, "GET", "kept"); got != "yes, all of it" {
		t.Errorf("after a restart: %q", got)
	}
	if got := cli(t, "DBSIZE"); got != "1" {
		t.Errorf("after a restart: %s keys, want 1", got)
	}
}

func TestWithoutDisk(t *testing.T) {
	needTools(t, "redis-cli")
	network(t)
	stop := startHosted(t, "-", "")
	if got, want := cli(t, "SET", "a", "1"), "ERR there is no usable journal disk: writes are refused"; strings.TrimSpace(got) != want {
		t.Errorf("SET without a disk: %q, want %q", got, want)
	}
	stop()
	startHosted(t, "-", "volatile=1")
	if got := cli(t, "SET", "a", "1"); got != "OK" {
		t.Errorf("SET with volatile=1: %q", got)
	}
}

func TestBenchmark(t *testing.T) {
	needTools(t, "redis-cli", "redis-benchmark")
	network(t)
	startHosted(t, emptyDisk(t, 16<<20), "")
	benchmark(t, "ping,set,get,incr,mset", "-n", "3000", "-c", "50")
	benchmark(t, "set,get", "-n", "20000", "-c", "50", "-P", "16")
	benchmark(t, "set,get", "-n", "500", "-c", "20", "-d", "60000", "-r", "50") // compacts, too
	benchmark(t, "get", "-n", "2000", "-c", "256")
	if n := info(t, "journal_compactions"); n == 0 {
		t.Error("30 MB of writes on a disk of 16 MiB, and nothing was compacted")
	}
}

// The wire loses, doubles and delays one frame in twenty, both ways.
func TestBenchmarkOverBadWire(t *testing.T) {
	needTools(t, "redis-cli", "redis-benchmark")
	network(t)
	startHosted(t, emptyDisk(t, 16<<20), "drop=5 double=5 delay=5 seed=7")
	benchmark(t, "set,get", "-n", "600", "-c", "50")
	benchmark(t, "set,get", "-n", "100", "-c", "20", "-d", "20000")
	if n := info(t, "tcp_segments_retransmitted"); n == 0 {
		t.Error("a tenth of all frames was lost, and nothing was sent again")
	}
}

// The same loss, made by the kernel's packet filter.
func TestBenchmarkThroughLossyFilter(t *testing.T) {
	needTools(t, "redis-cli", "redis-benchmark", "nft")
	network(t)
	startHosted(t, emptyDisk(t, 16<<20), "")
	run(t, "nft", "add table ip loss; add chain ip loss in { type filter hook input priority 0; };"+
		"add chain ip loss out { type filter hook output priority 0; };"+
		"add rule ip loss in numgen random mod 10 < 1 drop; add rule ip loss out numgen random mod 10 < 1 drop")
	benchmark(t, "set,get", "-n", "300", "-c", "50")
	run(t, "nft", "delete table ip loss")
	if got := cli(t, "PING"); got != "PONG" {
		t.Errorf("afterwards: %q", got)
	}
}
