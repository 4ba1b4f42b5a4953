package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const good = `
name = "a"
state_dir = "/var/lib/pollux"
run_dir = "/run/pollux"
cluster_address = "10.77.1.1:7700"
gossip_address = "10.77.1.1:7701"
replication_address = "10.77.2.1"
[bridges]
lan = "br0"
[timeouts]
raft_heartbeat = "300ms"
`

func TestLoad(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pollux.toml")
	if err := os.WriteFile(path, []byte(good), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	if c.Bridge("lan") != "br0" || c.Bridge("other") != "other" {
		t.Errorf("bridges: %v", c.Bridges)
	}
	if c.Timeouts.RaftHeartbeat.D() != 300*time.Millisecond || c.Timeouts.RaftLease > c.Timeouts.RaftHeartbeat {
		t.Errorf("timeouts: %+v", c.Timeouts)
	}
}

func TestErrorsSayWhereAndWhat(t *testing.T) {
	for name, tc := range map[string]struct {
		text string
		want []string
	}{
		"unknown key":      {good + "\nraft_hartbeat = \"1s\"\n", []string{"line 13", "timeouts.raft_hartbeat", "raft_heartbeat"}},
		"unknown at top":   {"nmae = \"a\"\n" + good, []string{"line 1", "nmae", "cluster_address"}},
		"unknown table":    {good + "\n[fancy]\nx = 1\n", []string{"line 13", "fancy", "bridges"}},
		"no duration":      {strings.Replace(good, "300ms", "soon", 1), []string{"line 11", "raft_heartbeat", "300ms"}},
		"wrong type":       {strings.Replace(good, `"a"`, "7", 1), []string{"line 2", "name"}},
		"syntax":           {"name = \n", []string{"line 1"}},
		"no name":          {strings.Replace(good, `"a"`, `""`, 1), []string{"name"}},
		"address no port":  {strings.Replace(good, "10.77.1.1:7700", "10.77.1.1", 1), []string{"cluster_address", "port"}},
		"address any":      {strings.Replace(good, "10.77.1.1:7700", "0.0.0.0:7700", 1), []string{"cluster_address", "0.0.0.0"}},
		"tiny segments":    {good + "\n[events]\nsegment_bytes = 100\n", []string{"events.segment_bytes", "100"}},
		"keeps less":       {good + "\n[events]\nkeep_segments = -1\n", []string{"events.keep_segments"}},
		"lease too long":   {good + "raft_lease = \"1s\"\n", []string{"raft_lease"}},
		"election too low": {good + "raft_election = \"10ms\"\n", []string{"raft_election"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Parse([]byte(tc.text))
			if err == nil {
				t.Fatal("accepted")
			}
			for _, w := range tc.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%q does not say %q", err, w)
				}
			}
		})
	}
}
