package consensus

import (
	"cmp"
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/pollux-ha/pollux/cluster/config"
	"github.com/pollux-ha/pollux/cluster/pki"
)

// Member is a machine of the cluster, as it has registered itself.
type Member struct {
	Name   string   `json:"name"`
	Role   pki.Role `json:"role"`
	RaftID string   `json:"raft_id"`
	Serial string   `json:"serial"` // of its certificate
	// ClusterAddress is where its daemon listens, GossipAddress where memberlist does.
	ClusterAddress     string `json:"cluster_address"`
	GossipAddress      string `json:"gossip_address"`
	ReplicationAddress string `json:"replication_address,omitempty"`
	Version            string `json:"version,omitempty"`
	// CPU is what processor this host and its kernel can give to guests: the text of a vmm/cpu.Host. A
	// member that comes back with another one registers anew. Empty: it has told nothing.
	CPU string `json:"cpu,omitempty"`
	// Replaces is the serial number of the certificate that its own has replaced by a renewal. That one stays good
	// until the member is removed or joins anew; a member that does not say so takes it back.
	Replaces string `json:"replaces,omitempty"`
}

// maxCPUText bounds Member.CPU, in bytes.
const maxCPUText = 2048

func (m Member) check() error {
	if !config.ValidName(m.Name) || !m.Role.Valid() || m.Serial == "" {
		return fmt.Errorf("the member %q (%s) is incomplete", m.Name, m.Role)
	}
	if name, role, ok := splitRaftID(m.RaftID); !ok || name != m.Name || role != m.Role {
		return fmt.Errorf("the Raft id %q does not fit %s %s", m.RaftID, m.Role, m.Name)
	}
	for _, a := range []string{m.ClusterAddress, m.GossipAddress} {
		if _, _, err := net.SplitHostPort(a); err != nil {
			return fmt.Errorf("the address %q of %s: %w", a, m.Name, err)
		}
	}
	if len(m.RaftID)+len(m.Serial)+len(m.ClusterAddress)+len(m.GossipAddress)+len(m.ReplicationAddress)+len(m.Version)+len(m.Replaces) > 1024 {
		return fmt.Errorf("the member %s tells too much", m.Name)
	}
	if len(m.CPU) > maxCPUText {
		return fmt.Errorf("the member %s tells %d bytes of its CPU, at most %d are possible", m.Name, len(m.CPU), maxCPUText)
	}
	return nil
}

// roster is who belongs to the cluster. It is pure; the FSM guards it.
type roster struct {
	Members map[string]Member `json:"members"` // by name
	// Removed are the Raft ids that must not be in Raft's configuration any more.
	Removed []string `json:"removed,omitempty"`
	// Revoked are the serial numbers of certificates that count no more.
	Revoked []string `json:"revoked,omitempty"`
	// Replaced are the certificates that are still good beside those of the members, oldest first.
	Replaced []certificate `json:"replaced,omitempty"`
	// Issued are certificates that members have asked for and not registered with yet. They are known before they are
	// handed out: one that somebody got with a stolen key dies with the others.
	Issued []certificate `json:"issued,omitempty"`
}

// certificate is one that a member has beside the one that it is registered with.
type certificate struct {
	Name   string `json:"name"`
	Serial string `json:"serial"`
}

const (
	membersMax = 1024
	removedMax = 256
	// replacedMax bounds the certificates of each of the two kinds that one member has beside its own.
	replacedMax = 4
)

func newRoster() roster { return roster{Members: map[string]Member{}} }

// enter registers a member, or what has changed of it.
func (r *roster) enter(m Member) string {
	if err := m.check(); err != nil {
		return err.Error()
	}
	if slices.Contains(r.Revoked, m.Serial) {
		return fmt.Sprintf("%s was removed from the cluster; it can join again with a new token", m.Name)
	}
	if slices.Contains(r.Replaced, certificate{m.Name, m.Serial}) {
		// Said by who holds an old key, or said again by who has heard it long ago.
		return fmt.Sprintf("the certificate %s of %s has been renewed", m.Serial, m.Name)
	}
	old, known := r.Members[m.Name]
	if !known && len(r.Members) >= membersMax {
		return fmt.Sprintf("the cluster has %d members already", len(r.Members))
	}
	if known && old.RaftID != m.RaftID {
		r.Removed = bounded(r.Removed, old.RaftID)
	}
	r.Issued = slices.DeleteFunc(r.Issued, func(c certificate) bool { return c == certificate{m.Name, m.Serial} })
	switch {
	case !known || old.Serial == m.Serial:
	case m.Replaces == old.Serial:
		r.replace(m.Name, old.Serial)
	default:
		// The name has joined anew, or fears for its key; whoever still holds the old certificate is not it.
		r.revoke(old)
	}
	r.Members[m.Name] = m
	return ""
}

// replace keeps a certificate good beside the one that comes after it.
func (r *roster) replace(name, serial string) {
	r.Replaced = r.keep(r.Replaced, certificate{name, serial})
}

// issue notes a certificate before the member gets it.
func (r *roster) issue(c certificate) string {
	m, ok := r.Members[c.Name]
	switch {
	case !ok:
		return fmt.Sprintf("there is no member %q", c.Name)
	case c.Serial == "" || len(c.Serial) > 64 || c.Serial == m.Serial || slices.Contains(r.Replaced, c) || slices.Contains(r.Revoked, c.Serial):
		return fmt.Sprintf("%q is not the serial number of a new certificate of %s", c.Serial, c.Name)
	}
	if !slices.Contains(r.Issued, c) {
		r.Issued = r.keep(r.Issued, c)
	}
	return ""
}

// keep adds a certificate; a member that has many loses its oldest.
func (r *roster) keep(list []certificate, c certificate) []certificate {
	list = append(list, c)
	n := 0
	for _, o := range list {
		if o.Name == c.Name {
			n++
		}
	}
	if n > replacedMax {
		i := slices.IndexFunc(list, func(o certificate) bool { return o.Name == c.Name })
		r.Revoked = append(r.Revoked, list[i].Serial)
		list = slices.Delete(list, i, i+1)
	}
	return list
}

// revoke takes back all certificates of a member.
func (r *roster) revoke(m Member) {
	r.Revoked = append(r.Revoked, m.Serial)
	dead := func(o certificate) bool {
		if o.Name == m.Name {
			r.Revoked = append(r.Revoked, o.Serial)
		}
		return o.Name == m.Name
	}
	r.Replaced = slices.DeleteFunc(r.Replaced, dead)
	r.Issued = slices.DeleteFunc(r.Issued, dead)
}

// leave removes a member for good.
func (r *roster) leave(name string) string {
	m, ok := r.Members[name]
	if !ok {
		return fmt.Sprintf("there is no member %q", name)
	}
	delete(r.Members, name)
	r.Removed = bounded(r.Removed, m.RaftID)
	r.revoke(m)
	return ""
}

func bounded(list []string, s string) []string {
	if len(list) >= removedMax {
		list = slices.Delete(list, 0, len(list)-removedMax+1)
	}
	return append(list, s)
}

func (r *roster) list() []Member {
	all := make([]Member, 0, len(r.Members))
	for _, m := range r.Members {
		all = append(all, m)
	}
	slices.SortFunc(all, func(a, b Member) int { return cmp.Compare(a.Name, b.Name) })
	return all
}

// raftID names a voter: its role, its name, and a number that is drawn anew with each log.
func raftID(role pki.Role, name, nonce string) string {
	return string(role) + ":" + name + ":" + nonce
}

func splitRaftID(id string) (name string, role pki.Role, ok bool) {
	f := strings.Split(id, ":")
	if len(f) != 3 || !pki.Role(f[0]).Valid() || !config.ValidName(f[1]) || f[2] == "" {
		return "", "", false
	}
	return f[1], pki.Role(f[0]), true
}
