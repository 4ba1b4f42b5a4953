package pki

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"time"
)

// The join protocol: TLS without a client certificate, one request and one answer, each a JSON object
// preceded by its length as a little-endian u32.
//
//	joiner -> issuer   {"secret", "csr", "name"}     after the joiner has checked the issuer against the token
//	issuer -> joiner   {"certificate", "ca", ...} or {"refused"}
const (
	joinBytesMax = 64 << 10
	// JoinTimeout bounds a join on both sides, from the first byte to the last.
	JoinTimeout = 15 * time.Second
)

type joinRequest struct {
	Secret []byte `json:"secret"`
	CSR    []byte `json:"csr"` // DER; only its key counts
	Name   string `json:"name"`
}

type joinAnswer struct {
	Refused     string  `json:"refused,omitempty"`
	Certificate []byte  `json:"certificate,omitempty"` // DER
	CA          []byte  `json:"ca,omitempty"`          // DER
	Cluster     Cluster `json:"cluster,omitzero"`
	Issuer      string  `json:"issuer,omitempty"`
}

// Issuer lets machines in. It needs the CA's key.
type Issuer struct {
	id      *Identity
	cluster Cluster
	ca      *CA
	tokens  *tokens
	// Seeds tells the joiner which members there are to begin with.
	Seeds func() []Seed
	// Admit is asked before a certificate is signed, and records the admission; an error refuses it.
	Admit func(name string, role Role) error
	// Refused is told of those who were not let in, unless there are many: then it is told how many there were.
	Refused func(from, name string, err error, notToldBefore int)
	wrong   slowdown
}

// NewIssuer makes the issuer of a machine. ErrNoIssuer: the CA's key is elsewhere.
func NewIssuer(dir string, id *Identity, c *Cluster) (*Issuer, error) {
	ca, err := LoadCA(dir)
	if err != nil {
		return nil, err
	}
	return &Issuer{id: id, cluster: *c, ca: ca, tokens: newTokens(dir)}, nil
}

// Issue makes a token with which the machine of that name can join, once, until it expires.
func (i *Issuer) Issue(name string, role Role, address string, valid time.Duration) (Token, time.Time, error) {
	if !role.Valid() {
		return Token{}, time.Time{}, fmt.Errorf("role %q: %q or %q", role, RoleHost, RoleWitness)
	}
	secret, expires, err := i.tokens.issue(name, role, valid)
	if err != nil {
		return Token{}, time.Time{}, fmt.Errorf("issue a token: %w", err)
	}
	return Token{CAFingerprint: Fingerprint(i.ca.cert), Address: address, Secret: secret}, expires, nil
}

// joinConfig is the TLS configuration for joiners: they have no certificate yet.
func (id *Identity) joinConfig() *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		GetCertificate:         func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return id.certificate(), nil },
		NextProtos:             []string{ALPNJoin},
		SessionTicketsDisabled: true,
	}
}

// MuxConfig is the configuration of the one TCP port: members for every protocol in alpn, and joiners,
// who may speak the join protocol only. With joins false there are none.
func (id *Identity) MuxConfig(joins bool, alpn ...string) *tls.Config {
	members := id.ServerConfig(alpn...)
	if !joins {
		return members
	}
	joiners := id.joinConfig()
	c := members.Clone()
	c.GetConfigForClient = func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		if len(h.SupportedProtos) == 1 && h.SupportedProtos[0] == ALPNJoin {
			return joiners, nil
		}
		return members, nil
	}
	return c
}

// Serve answers one joiner on a connection whose handshake is done, and closes it.
func (i *Issuer) Serve(conn net.Conn) error {
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(JoinTimeout)); err != nil {
		return err
	}
	var q joinRequest
	if err := readJSON(conn, &q); err != nil {
		return fmt.Errorf("join request from %v: %w", conn.RemoteAddr(), err)
	}
	a, err := i.admit(q)
	if err != nil {
		i.refused(conn.RemoteAddr(), q.Name, err)
		if werr := i.wrong.wait(conn, err); werr != nil {
			return errors.Join(err, werr)
		}
		if werr := writeJSON(conn, joinAnswer{Refused: refusal(err)}); werr != nil {
			return errors.Join(err, werr)
		}
		return fmt.Errorf("join request of %q from %v: %w", q.Name, conn.RemoteAddr(), err)
	}
	return writeJSON(conn, *a)
}

// refusal is what a stranger is told.
func refusal(err error) string {
	var n *nameError
	if errors.As(err, &n) {
		return n.Error()
	}
	if errors.Is(err, ErrToken) {
		return ErrToken.Error()
	}
	return "the issuing host can't let anybody in at the moment; its log says why"
}

type nameError struct{ asked, issued string }

func (e *nameError) Error() string {
	return fmt.Sprintf("the token was issued for %q, this machine is called %q; it is used up now, have a new one issued", e.issued, e.asked)
}

func (i *Issuer) admit(q joinRequest) (*joinAnswer, error) {
	if len(q.Secret) != secretBytes {
		return nil, ErrToken
	}
	st, err := i.tokens.redeem(q.Secret)
	if err != nil {
		return nil, err
	}
	if st.Name != q.Name {
		return nil, &nameError{asked: q.Name, issued: st.Name}
	}
	csr, err := x509.ParseCertificateRequest(q.CSR)
	if err != nil {
		return nil, fmt.Errorf("the certificate request: %w", err)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("the certificate request: %w", err)
	}
	if i.Admit != nil {
		if err := i.Admit(st.Name, st.Role); err != nil {
			return nil, err
		}
	}
	der, err := i.ca.sign(csr.PublicKey, st.Name, st.Role)
	if err != nil {
		return nil, err
	}
	c := Cluster{ID: i.cluster.ID, GossipKey: i.cluster.GossipKey, Name: st.Name, Role: st.Role}
	if i.Seeds != nil {
		c.Seeds = i.Seeds()
	}
	return &joinAnswer{Certificate: der, CA: i.ca.cert.Raw, Cluster: c, Issuer: i.id.Name()}, nil
}

// Join takes this machine into a cluster: it asks the token's issuer, after it has made sure that it is
// the one, and stores what it is given in dir. issuer is the name of the host that let it in.
func Join(ctx context.Context, dir, name, token string) (c *Cluster, issuer string, err error) {
	t, err := ParseToken(token)
	if err != nil {
		return nil, "", err
	}
	if err := vacant(dir); err != nil {
		return nil, "", err
	}
	key, err := newKey()
	if err != nil {
		return nil, "", err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: name}}, key)
	if err != nil {
		return nil, "", fmt.Errorf("make the certificate request: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, JoinTimeout)
	defer cancel()
	d := tls.Dialer{Config: &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{ALPNJoin},
		InsecureSkipVerify: true, // the CA is pinned below
		VerifyConnection:   isIssuer(t.CAFingerprint),
	}}
	conn, err := d.DialContext(ctx, "tcp", t.Address)
	if err != nil {
		if !errors.Is(err, ErrPeer) {
			err = fmt.Errorf("%w: is its daemon running (`pollux host`), and does no firewall stand between?", err)
		}
		return nil, "", fmt.Errorf("reach the issuing host: %w", err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if err := writeJSON(conn, joinRequest{Secret: t.Secret, CSR: csr, Name: name}); err != nil {
		return nil, "", fmt.Errorf("ask the issuing host: %w", err)
	}
	var a joinAnswer
	if err := readJSON(conn, &a); err != nil {
		return nil, "", fmt.Errorf("the issuing host's answer: %w", err)
	}
	if a.Refused != "" {
		return nil, "", fmt.Errorf("the issuing host refuses: %s", a.Refused)
	}
	if err := a.store(dir, t, name, key.PublicKey.Equal, func(path string) error { return writeKey(path, key) }); err != nil {
		return nil, "", err
	}
	return &a.Cluster, a.Issuer, nil
}

// pinned accepts a member whose certificate is signed by the CA of that fingerprint, which it shows.
func pinned(fingerprint string) func(tls.ConnectionState) error {
	return func(s tls.ConnectionState) error {
		for _, ca := range s.PeerCertificates {
			if !ca.IsCA || Fingerprint(ca) != fingerprint {
				continue
			}
			id := &Identity{ca: ca, roots: x509.NewCertPool()}
			id.roots.AddCert(ca)
			_, err := id.Verify(s.PeerCertificates[0])
			return err
		}
		return fmt.Errorf("%w: it does not belong to the cluster of the token", ErrPeer)
	}
}

// store checks the answer against what was asked and keeps it.
func (a *joinAnswer) store(dir string, t Token, name string, isOurs func(crypto.PublicKey) bool, keep func(path string) error) error {
	ca, err := x509.ParseCertificate(a.CA)
	if err != nil {
		return fmt.Errorf("the CA's certificate in the answer: %w", err)
	}
	if Fingerprint(ca) != t.CAFingerprint {
		return errors.New("the answer holds another CA than the token names")
	}
	cert, err := x509.ParseCertificate(a.Certificate)
	if err != nil {
		return fmt.Errorf("the certificate in the answer: %w", err)
	}
	id := &Identity{ca: ca, roots: x509.NewCertPool()}
	id.roots.AddCert(ca)
	p, err := id.Verify(cert)
	if err != nil {
		return fmt.Errorf("the certificate in the answer: %w", err)
	}
	if p.Name != name || !isOurs(cert.PublicKey) || a.Cluster.Name != name || a.Cluster.Role != p.Role || len(a.Cluster.GossipKey) != 32 || a.Cluster.ID == "" {
		return errors.New("the answer is not for this machine")
	}
	if err := writeFile(filepath.Join(dir, caCertFile), encodeCert(a.CA), 0o644); err != nil {
		return err
	}
	if err := keep(filepath.Join(dir, hostKeyFile)); err != nil {
		return err
	}
	if err := writeFile(filepath.Join(dir, hostCertFile), encodeCert(a.Certificate), 0o644); err != nil {
		return err
	}
	a.Cluster.Founder = false
	return a.Cluster.Store(dir)
}

// isIssuer accepts a host of the cluster whose CA has that fingerprint.
func isIssuer(fingerprint string) func(tls.ConnectionState) error {
	cluster := pinned(fingerprint)
	return func(s tls.ConnectionState) error {
		if err := cluster(s); err != nil {
			return err
		}
		p, err := PeerOf(s)
		if err == nil && p.Role != RoleHost {
			err = fmt.Errorf("%w: %s is no host and can't let anybody in", ErrPeer, p.Name)
		}
		return err
	}
}

func writeJSON(w io.Writer, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode: %w", err)
	}
	_, err = w.Write(append(binary.LittleEndian.AppendUint32(nil, uint32(len(b))), b...))
	return err
}

func readJSON(r io.Reader, v any) error {
	var h [4]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return err
	}
	n := binary.LittleEndian.Uint32(h[:])
	if n > joinBytesMax {
		return fmt.Errorf("a message of %d bytes; at most %d are possible", n, joinBytesMax)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("decode: %w", err)
	}
	return nil
}
