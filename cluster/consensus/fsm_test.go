package consensus

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/pollux-ha/pollux/cluster/access"
	"github.com/pollux-ha/pollux/cluster/pact"
	"github.com/pollux-ha/pollux/cluster/pki"
)

func member(name, nonce, serial string) Member {
	return Member{
		Name: name, Role: pki.RoleHost, RaftID: raftID(pki.RoleHost, name, nonce), Serial: serial,
		ClusterAddress: "10.0.0.1:1", GossipAddress: "10.0.0.1:2",
	}
}

func TestRoster(t *testing.T) {
	r := newRoster()
	ok := func(refused string) {
		t.Helper()
		if refused != "" {
			t.Error(refused)
		}
	}
	ok(r.enter(member("a", "1", "s1")))
	ok(r.enter(member("a", "1", "s1")))
	// A lost log: another Raft id under the same certificate.
	ok(r.enter(member("a", "2", "s1")))
	if len(r.Removed) != 1 || r.Removed[0] != "host:a:1" || len(r.Revoked) != 0 {
		t.Errorf("%+v", r)
	}
	ok(r.leave("a"))
	if refused := r.enter(member("a", "3", "s1")); !strings.Contains(refused, "removed") {
		t.Errorf("a removed member came back with its old certificate: %q", refused)
	}
	ok(r.enter(member("a", "3", "s2")))
	if refused := r.leave("b"); refused == "" {
		t.Error("somebody left who was not there")
	}
	bad := member("b", "1", "s3")
	bad.RaftID = "witness:b:1"
	if refused := r.enter(bad); refused == "" {
		t.Error("a host registered as a witness")
	}
}

// A renewal keeps the old certificate good until the member leaves, joins anew or fears for its key; who comes with an
// old one can't make it the member's again.
func TestRosterOfRenewals(t *testing.T) {
	renewed := func(serial, replaces string) Member {
		m := member("a", "1", serial)
		m.Replaces = replaces
		return m
	}
	r := newRoster()
	enter := func(m Member, want bool) {
		t.Helper()
		if why := r.enter(m); (why == "") != want {
			t.Errorf("%s: %q", m.Serial, why)
		}
	}
	has := func(serials ...string) {
		t.Helper()
		if !slices.Equal(r.Revoked, serials) {
			t.Errorf("revoked %v, want %v", r.Revoked, serials)
		}
	}
	enter(renewed("s1", ""), true)
	enter(renewed("s2", "s1"), true)
	enter(renewed("s2", "s1"), true)
	has()
	enter(renewed("s1", ""), false)
	enter(renewed("s1", "s2"), false)
	if r.Members["a"].Serial != "s2" {
		t.Errorf("%+v", r.Members["a"])
	}
	enter(renewed("s3", "s2"), true)
	enter(renewed("s4", ""), true)
	has("s3", "s1", "s2")
	enter(renewed("s3", "s4"), false)
	for i := range replacedMax + 2 {
		enter(renewed(fmt.Sprint("s", 5+i), fmt.Sprint("s", 4+i)), true)
	}
	has("s3", "s1", "s2", "s4", "s5")
	if why := r.leave("a"); why != "" || len(r.Replaced) != 0 || len(r.Revoked) != 3+replacedMax+3 {
		t.Errorf("%q %+v", why, r)
	}
}

// What a thief has had issued with a member's key dies with the member's certificates, registered or not.
func TestRosterOfIssues(t *testing.T) {
	r := newRoster()
	for _, m := range []Member{member("a", "1", "s1"), member("b", "1", "t1")} {
		if why := r.enter(m); why != "" {
			t.Fatal(why)
		}
	}
	for c, want := range map[certificate]bool{
		{"a", "s2"}: true, {"b", "t2"}: true, {"nobody", "u1"}: false, {"a", ""}: false, {"a", "s1"}: false, {"a", strings.Repeat("7", 65)}: false,
	} {
		for range 2 {
			if why := r.issue(c); (why == "") != want {
				t.Errorf("%v: %q", c, why)
			}
		}
	}
	if why := r.issue(certificate{"a", "s3"}); why != "" {
		t.Error(why)
	}
	// a registers with one of the two; the other one goes with the first when a fears for its key.
	m := member("a", "1", "s2")
	m.Replaces = "s1"
	if why := r.enter(m); why != "" || !slices.Equal(r.Issued, []certificate{{"b", "t2"}, {"a", "s3"}}) && !slices.Equal(r.Issued, []certificate{{"a", "s3"}, {"b", "t2"}}) {
		t.Errorf("%q %v", why, r.Issued)
	}
	if why := r.leave("a"); why != "" {
		t.Error(why)
	}
	slices.Sort(r.Revoked)
	if !slices.Equal(r.Revoked, []string{"s1", "s2", "s3"}) || !slices.Equal(r.Issued, []certificate{{"b", "t2"}}) {
		t.Errorf("revoked %v, issued %v", r.Revoked, r.Issued)
	}
	if r.issue(certificate{"a", "s4"}) == "" || r.issue(certificate{"b", "s1"}) == "" {
		t.Error("a certificate for who has left, or one that was taken back")
	}
	for i := range 2 * replacedMax {
		if why := r.issue(certificate{"b", fmt.Sprint("t", 10+i)}); why != "" {
			t.Error(why)
		}
	}
	if len(r.Issued) != replacedMax || !slices.Contains(r.Revoked, "t2") {
		t.Errorf("issued %v, revoked %v", r.Issued, r.Revoked)
	}
}

func apply(f *fsm, index uint64, b []byte) pact.Verdict {
	return f.Apply(&raft.Log{Index: index, Data: b}).(pact.Verdict)
}

func TestSnapshotOfAll(t *testing.T) {
	f := newFSM()
	m := member("a", "1", "s1")
	token, user := access.NewToken(strings.Repeat("ab", 32), "jane", access.Operator, 7)
	for i, e := range []entry{{Enter: &m}, {Access: &access.Change{Add: &user}}, {Command: &pact.Command{Kind: pact.Create, Guest: "g", ID: "c", Spec: &pact.Spec{Hosts: []string{"a"}}}}} {
		if v := apply(f, uint64(i+1), mustEncode(t, e)); !v.Applied {
			t.Fatal(v.Reason)
		}
	}
	s, err := f.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	o := newFSM()
	var told []string
	o.changed = func(a pact.Assignment, exists bool) { told = append(told, a.Guest) }
	if v := apply(o, 1, mustEncode(t, entry{Command: &pact.Command{Kind: pact.Create, Guest: "old", ID: "c", Spec: &pact.Spec{Hosts: []string{"a"}}}})); !v.Applied {
		t.Fatal(v.Reason)
	}
	if !o.has(1) || o.has(2) {
		t.Errorf("one entry, and %d are in it", o.lastApplied())
	}
	told = nil
	b := s.(snapshotBytes)
	if err := o.Restore(io.NopCloser(bytes.NewReader(b))); err != nil {
		t.Fatal(err)
	}
	if len(told) != 2 || told[0] != "old" || told[1] != "g" {
		t.Errorf("told of %v", told)
	}
	if got, ok := o.member("a"); !ok || got != m {
		t.Errorf("the roster: %+v", o.members())
	}
	if got, ok := o.access.Who(token); !ok || got != user {
		t.Errorf("the users: %+v", o.access)
	}
	if !o.has(3) || o.has(4) {
		t.Errorf("three entries, and %d are in it", o.lastApplied())
	}
	// A snapshot of a version that did not keep the index keeps nobody waiting for what it may hold.
	if err := o.Restore(io.NopCloser(strings.NewReader(strings.TrimSuffix(string(b), `,"index":3}`) + "}"))); err != nil || !o.has(3) || o.lastApplied() != 0 {
		t.Errorf("without an index: %v, %d", err, o.lastApplied())
	}
	for _, bad := range []string{"", "{}", `{"version":2}`, strings.Replace(string(b), `"roster"`, `"rooster"`, 1), strings.Replace(string(b), `"operator"`, `"god"`, 1)} {
		if err := o.Restore(io.NopCloser(strings.NewReader(bad))); err == nil {
			t.Errorf("restored from %.20q", bad)
		}
	}
}

// FuzzEntry: whatever is in the log is applied alike everywhere, and survives a snapshot.
func FuzzEntry(f *testing.F) {
	m := member("a", "1", "s1")
	_, user := access.NewToken(strings.Repeat("ab", 32), "jane", access.Viewer, 7)
	for _, e := range []entry{{Enter: &m}, {Leave: &leave{Name: "a"}}, {Access: &access.Change{Add: &user}}, {Access: &access.Change{Remove: &user}}, {Issue: &certificate{"a", "s2"}}, {Command: &pact.Command{Kind: pact.NoOp}}} {
		b, err := encodeEntry(e)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		x, y := newFSM(), newFSM()
		v, w := apply(x, 7, b), apply(y, 7, b)
		if v.Applied != w.Applied || v.Reason != w.Reason {
			t.Fatalf("%+v %+v", v, w)
		}
		s, err := x.Snapshot()
		if err != nil {
			t.Fatal(err)
		}
		if err := y.Restore(io.NopCloser(bytes.NewReader(s.(snapshotBytes)))); err != nil {
			t.Fatal(err)
		}
	})
}
