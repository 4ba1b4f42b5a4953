package daemon

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"

	"github.com/pollux-ha/pollux/audit"
	"github.com/pollux-ha/pollux/cluster/pki"
	"github.com/pollux-ha/pollux/cluster/wire"
)

// Certificate is what a daemon tells of its own.
type Certificate struct {
	pki.Expiry
	// Issuer says that the CA's key lies on this machine, and CA until when the CA is good.
	Issuer bool       `json:"issuer"`
	CA     pki.Expiry `json:"ca"`
}

// Certificate tells of this machine's certificate.
func (d *Daemon) Certificate() Certificate {
	return Certificate{Expiry: d.id.Expiry(), Issuer: d.issuer != nil, CA: d.id.CAExpiry()}
}

// renewRequest asks the machine with the CA's key for a certificate for a new key.
type renewRequest struct {
	CSR []byte `json:"csr"` // DER
}

type renewAnswer struct {
	Certificate []byte `json:"certificate"` // DER
}

// issue answers a member who renews its certificate.
func (d *Daemon) issue(ctx context.Context, who pki.Peer, csr []byte) ([]byte, error) {
	if d.issuer == nil {
		return nil, fmt.Errorf("%w: %w", ErrRefused, pki.ErrNoIssuer)
	}
	der, serial, err := d.issuer.Renew(who, csr)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRefused, err)
	}
	e := audit.Event{Kind: audit.Membership, Actor: "daemon", Detail: map[string]any{"member": who.Name, "role": string(who.Role), "state": "certificate renewed", "replaces": who.Serial, "serial": serial}}
	if err := d.audit.Append(ctx, e); err != nil {
		return nil, fmt.Errorf("not done, because the event log can't be written: %w", err)
	}
	// The cluster knows of it before anybody has it: it can be taken back like the others.
	v, err := d.node.Issue(ctx, who.Name, serial)
	if err == nil && !v.Applied {
		err = fmt.Errorf("%w: %s", ErrRefused, v.Reason)
	}
	return der, err
}

// RenewCertificate gives this machine a new key and certificate, without a restart. revokeOld takes the old one back:
// connections that were made with it end, and are made anew.
func (d *Daemon) RenewCertificate(ctx context.Context, revokeOld bool, operator string) error {
	if err := d.operate(ctx, operator, "", "renew the certificate", map[string]any{"serial": d.id.Serial(), "revoke_old": revokeOld}); err != nil {
		return err
	}
	return d.renewCertificate(ctx, revokeOld)
}

func (d *Daemon) renewCertificate(ctx context.Context, revokeOld bool) error {
	d.renewing.Lock()
	defer d.renewing.Unlock()
	r, err := d.id.NewRenewal()
	if err != nil {
		return err
	}
	der, err := d.askIssuers(ctx, r.CSR)
	if err != nil {
		return err
	}
	if err := d.id.Install(r, der, !revokeOld); err != nil {
		return fmt.Errorf("install the new certificate: %w", err)
	}
	d.log.Info("certificate renewed", zap.String("serial", d.id.Serial()), zap.Time("not_after", d.id.Expiry().NotAfter))
	return d.node.Renewed()
}

// askIssuers gets a certificate from whoever has the CA's key: any of the hosts may.
func (d *Daemon) askIssuers(ctx context.Context, csr []byte) ([]byte, error) {
	if d.issuer != nil {
		return d.issue(ctx, pki.Peer{Name: d.name, Role: d.role, Serial: d.id.Serial()}, csr)
	}
	var errs []error
	for _, m := range d.node.Members() {
		if m.Name == d.name || m.Role != pki.RoleHost {
			continue
		}
		var a renewAnswer
		err := d.client.Call(ctx, wire.At(m.Name, m.ClusterAddress), "renew", renewRequest{CSR: csr}, &a)
		if err == nil {
			return a.Certificate, nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", m.Name, err))
	}
	return nil, fmt.Errorf("%w: no host that answers can sign a certificate; the one with ca.key must run: %w", ErrUnreachable, errors.Join(errs...))
}

const (
	// renewEvery is how often the certificate's age is looked at, and how soon a renewal that failed is tried again.
	renewEvery = time.Hour
	// revokedEvery is how often the list of revoked certificates is written, where it could not be.
	revokedEvery = 5 * time.Second
)

// keepCertificate renews this machine's certificate long before it expires.
func (d *Daemon) keepCertificate(ctx context.Context) {
	for ; ctx.Err() == nil; pause(ctx, renewEvery) {
		if !d.id.Expiry().Due(time.Now()) {
			continue
		}
		limit, cancel := context.WithTimeout(ctx, time.Minute)
		if err := d.renewCertificate(limit, false); err != nil {
			d.log.Error("renew this machine's certificate", zap.Time("not_after", d.id.Expiry().NotAfter), zap.Error(err))
		}
		cancel()
	}
}

// keepRevoked keeps the list of revoked certificates beside the certificates, for the processes that don't know
// Raft. An old log says less than the list does, so it is not touched before this member has caught up.
func (d *Daemon) keepRevoked(ctx context.Context) {
	t := time.NewTicker(revokedEvery)
	defer t.Stop()
	for {
		if d.node.Current() {
			if err := pki.StoreRevoked(d.cfg.PKIDir(), d.node.Revoked()); err != nil {
				d.log.Error("write the list of revoked certificates", zap.Error(err))
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-d.roster:
		case <-t.C:
		}
	}
}

// CheckRevoke says why a member's certificates can't be revoked.
func (d *Daemon) CheckRevoke(name string) error {
	if _, ok := d.node.Member(name); !ok {
		return errNoMember(name)
	}
	if name == d.name {
		return fmt.Errorf("%w: ask another member to revoke this one", ErrRefused)
	}
	return nil
}

// Revoke takes a member out at once, whatever it runs, and all its certificates back: as for one that was stolen, or
// that somebody has broken into. To its guests that is the loss of the host.
func (d *Daemon) Revoke(ctx context.Context, name, operator string) error {
	if err := d.CheckRevoke(name); err != nil {
		return err
	}
	if err := d.operate(ctx, operator, "", "revoke a member", map[string]any{"name": name}); err != nil {
		return err
	}
	v, err := d.node.Remove(ctx, name, operator)
	if err == nil && !v.Applied {
		err = fmt.Errorf("%w: %s", ErrRefused, v.Reason)
	}
	return err
}
