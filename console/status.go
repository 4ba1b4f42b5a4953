package console

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pollux-ha/pollux/cluster/daemon"
	"github.com/pollux-ha/pollux/cluster/gossip"
	"github.com/pollux-ha/pollux/cluster/link"
	"github.com/pollux-ha/pollux/cluster/pact"
)

func (s *Server) guest(r *http.Request) (any, error) {
	if _, err := s.d.Lookup(r.PathValue("name")); err != nil {
		return nil, err
	}
	return s.one(r.Context(), r.PathValue("name"))
}

func (s *Server) one(ctx context.Context, name string) (*Guest, error) {
	hosts := s.d.Ask(ctx, askTimeout)
	a, err := s.d.Lookup(name)
	if err != nil {
		return nil, err
	}
	g := asGuest(a, hosts, s.d.Gossip())
	return &g, nil
}

func (s *Server) guests(r *http.Request) (any, error) {
	return s.list(s.d.Ask(r.Context(), askTimeout)), nil
}

func (s *Server) list(hosts map[string]daemon.HostInfo) []Guest {
	all := []Guest{}
	for _, a := range s.d.Node().Guests() {
		all = append(all, asGuest(a, hosts, s.d.Gossip()))
	}
	return all
}

// asGuest puts together what the assignment and the hosts say.
func asGuest(a pact.Assignment, hosts map[string]daemon.HostInfo, members *gossip.List) Guest {
	g := Guest{
		Name: a.Guest, Desired: a.Desired, Mode: a.Mode, Term: a.Term, CurrentDisk: a.CurrentDisk.Host,
		Spec: a.Spec, Assignment: a, CPU: guestCPU(a.Spec.CPU), Processes: []Process{},
	}
	if a.Runs() {
		g.Primary, g.Replica = a.Primary.Host, a.Replica.Host
	}
	var primary *link.Status
	for _, h := range a.Spec.Hosts {
		for _, p := range hosts[h].Processes {
			if p.Guest != a.Guest {
				continue
			}
			g.Processes = append(g.Processes, Process{
				Host: h, Incarnation: fmt.Sprintf("%016x", uint64(p.Party.Incarnation)), PID: p.PID, Address: p.Address, Status: p.Status,
			})
			if p.Party == a.Primary {
				primary = p.Status
			}
		}
	}
	g.State = state(a, primary)
	switch {
	case primary != nil && primary.Detail != "":
		g.Detail = primary.Detail
	default:
		for _, h := range a.Spec.Hosts {
			if n := hosts[h].Notes[a.Guest]; n != "" {
				g.Detail = h + ": " + n
				break
			}
		}
	}
	if g.State == "starting" && g.Detail != "" && members != nil && members.State(a.CurrentDisk.Host) != gossip.Alive {
		g.State = "lost"
	}
	return g
}

// state is one word for all of it.
func state(a pact.Assignment, primary *link.Status) string {
	gone := a.Runs() && a.IsGone(a.Primary)
	switch {
	case a.Mode == pact.Stopped && a.Desired == pact.DesiredRunning:
		return "starting"
	case a.Mode == pact.Stopped:
		return "stopped"
	case gone && a.Mode == pact.Protected && !a.IsGone(a.Replica):
		return "deciding"
	case gone && a.Desired == pact.DesiredRunning:
		return "starting"
	case a.Desired == pact.DesiredStopped:
		return "stopping"
	}
	if primary != nil && primary.Term == a.Term {
		switch primary.Mode {
		case "syncing", "deciding", "switching":
			return primary.Mode
		}
	}
	return string(a.Mode)
}

func (s *Server) status(r *http.Request) (any, error) {
	n := s.d.Node()
	hosts := s.d.Ask(r.Context(), askTimeout)
	st := n.Status()
	out := ClusterStatus{
		Host: s.d.Name(), Role: string(s.d.Role()), Version: s.d.Version(), Cluster: s.d.ClusterID(),
		Leader: st.Leader, RaftTerm: st.Term, RaftIndex: st.Applied,
		Members: []Member{}, Alarms: []string{},
	}
	seen := map[string]gossip.State{s.d.Name(): gossip.Alive}
	for _, m := range s.d.Gossip().Members() {
		seen[m.Name] = m.State
	}
	witness := false
	for _, m := range n.Members() {
		o := Member{Name: m.Name, Role: string(m.Role), Address: m.ClusterAddress, Version: m.Version, RaftID: m.RaftID, State: string(gossip.Unknown), CPU: s.hostCPU(m.Name, string(m.Role))}
		if state, ok := seen[m.Name]; ok {
			o.State = string(state)
		}
		for _, v := range st.Voters {
			if v.RaftID != m.RaftID {
				continue
			}
			o.Voter, o.Leader = v.Voter, v.Leader
			if v.Voter {
				out.Quorum.Voters++
				if _, answers := hosts[m.Name]; answers {
					out.Quorum.Reachable++
				} else {
					out.Alarms = append(out.Alarms, fmt.Sprintf("the voter %s does not answer", m.Name))
				}
			}
		}
		witness = witness || m.Role == "witness"
		out.Members = append(out.Members, o)
	}
	q := &out.Quorum
	q.Needed = q.Voters/2 + 1
	q.Tolerates = max(0, q.Reachable-q.Needed)
	q.Healthy = st.Leader != "" && q.Reachable >= q.Needed && n.Current()
	switch {
	case !q.Healthy:
		out.Alarms = append(out.Alarms, "no majority of the voters: a guest that loses its host now halts rather than risk two voices")
	case len(out.Members) > 1 && q.Tolerates == 0:
		out.Alarms = append(out.Alarms, "the next loss of a voter leaves no majority; bring the missing voters back, or add a witness")
	case len(out.Members) > 1 && !witness:
		out.Alarms = append(out.Alarms, "the cluster has no witness: the loss of one host can leave no majority")
	}
	if free, err := freeBytes(s.d.Config().StateDir); err == nil && free < lowSpace {
		out.Alarms = append(out.Alarms, fmt.Sprintf("%s has only %d MiB left for %s: without room there nothing can be changed, and guests' disks fail", s.d.Name(), free>>20, s.d.Config().StateDir))
	}
	out.Alarms = append(out.Alarms, s.fenceAlarms()...)
	out.Alarms = append(out.Alarms, certificateAlarms(hosts, s.d.Certificate(), time.Now())...)
	out.Guests = s.list(hosts)
	for _, g := range out.Guests {
		switch {
		case g.State == "lost":
			out.Alarms = append(out.Alarms, fmt.Sprintf("guest %s can't be started by itself: %s", g.Name, g.Detail))
		case g.Desired == pact.DesiredRunning && g.Mode != pact.Protected && len(g.Spec.Hosts) > 1:
			out.Alarms = append(out.Alarms, fmt.Sprintf("guest %s is not protected (%s)", g.Name, g.State))
		}
		out.Alarms = append(out.Alarms, s.unfitHosts(g.Assignment)...)
	}
	slices.Sort(out.Alarms)
	return out, nil
}

// lowSpace is how little room in the state directory is an alarm, in bytes.
const lowSpace = 64 << 20

func freeBytes(dir string) (uint64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, fmt.Errorf("ask for the room in %s: %w", dir, err)
	}
	return st.Bavail * uint64(st.Bsize), nil
}
