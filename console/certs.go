package console

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/pollux-ha/pollux/cluster/daemon"
)

// Certificates tells until when the cluster's certificates are good: GET /api/v1/certificates.
type Certificates struct {
	CA CertificateTimes `json:"ca"`
	// Members are those that have answered, by name.
	Members []MemberCertificate `json:"members"`
}

// CertificateTimes is from when to when a certificate is good.
type CertificateTimes struct {
	Serial    string    `json:"serial"` // hexadecimal
	NotBefore time.Time `json:"not_before"`
	NotAfter  time.Time `json:"not_after"`
}

// MemberCertificate is a member's certificate.
type MemberCertificate struct {
	Name string `json:"name"`
	CertificateTimes
	Issuer bool `json:"issuer"` // it has the CA's key
}

// RenewRequest gives the asked member a new key and certificate: POST /api/v1/certificates/renew.
type RenewRequest struct {
	// RevokeOld takes the old certificate back: for a key that somebody else may have.
	RevokeOld bool   `json:"revoke_old,omitempty"`
	Operator  string `json:"operator,omitempty"`
	DryRun    bool   `json:"dry_run,omitempty"`
}

const (
	// caWarning and certificateWarning are how long before an expiry there is an alarm. Daemons renew theirs long
	// before; the CA's needs a person.
	caWarning          = 365 * 24 * time.Hour
	certificateWarning = 30 * 24 * time.Hour
)

func asMemberCertificate(name string, c daemon.Certificate) MemberCertificate {
	return MemberCertificate{Name: name, CertificateTimes: CertificateTimes(c.Expiry), Issuer: c.Issuer}
}

func (s *Server) certificates(r *http.Request) (any, error) {
	out := Certificates{CA: CertificateTimes(s.d.Certificate().CA), Members: []MemberCertificate{}}
	for name, info := range s.d.Ask(r.Context(), askTimeout) {
		if info.Certificate != nil {
			out.Members = append(out.Members, asMemberCertificate(name, *info.Certificate))
		}
	}
	slices.SortFunc(out.Members, func(a, b MemberCertificate) int { return cmp.Compare(a.Name, b.Name) })
	return out, nil
}

func (s *Server) renew(r *http.Request) (any, error) {
	q, err := read[RenewRequest](r)
	if err != nil {
		return nil, err
	}
	if !q.DryRun {
		if err := s.d.RenewCertificate(r.Context(), q.RevokeOld, q.Operator); err != nil {
			return nil, err
		}
	}
	return asMemberCertificate(s.d.Name(), s.d.Certificate()), nil
}

// certificateAlarms are about certificates that are soon not good any more.
func certificateAlarms(hosts map[string]daemon.HostInfo, ca daemon.Certificate, now time.Time) (alarms []string) {
	if left := ca.CA.NotAfter.Sub(now); left < caWarning {
		alarms = append(alarms, fmt.Sprintf("the cluster's CA expires on %s: all machines then need a new cluster to talk to each other", ca.CA.NotAfter.Format(time.DateOnly)))
	}
	for name, info := range hosts {
		if c := info.Certificate; c != nil && c.NotAfter.Sub(now) < certificateWarning {
			alarms = append(alarms, fmt.Sprintf("the certificate of %s expires on %s and could not be renewed: is the host with the CA's key there?", name, c.NotAfter.Format(time.DateOnly)))
		}
	}
	return alarms
}

// Certificates tells until when certificates are good.
func (c *Client) Certificates(ctx context.Context) (*Certificates, error) {
	return call[Certificates](ctx, c, http.MethodGet, "/certificates", nil)
}

// RenewCertificate gives the asked member a new key and certificate.
func (c *Client) RenewCertificate(ctx context.Context, r RenewRequest) (*MemberCertificate, error) {
	return call[MemberCertificate](ctx, c, http.MethodPost, "/certificates/renew", r)
}
