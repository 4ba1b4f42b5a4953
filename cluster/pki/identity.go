package pki

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
)

// Names of the protocols on the cluster's TCP port and on checkpoint streams.
const (
	ALPNRaft   = "pollux-raft/1"
	ALPNRPC    = "pollux-rpc/1"
	ALPNJoin   = "pollux-join/1"
	ALPNStream = "pollux-stream/1"
)

// ErrPeer says that a peer is not who it has to be.
var ErrPeer = errors.New("peer")

// Identity is this machine's certificate and the CA against which it judges others. It is safe for
// concurrent use, and takes up a certificate that was replaced on disk by itself.
type Identity struct {
	dir   string
	ca    *x509.Certificate
	roots *x509.CertPool

	mu      sync.Mutex
	now     *tls.Certificate
	file    fs.FileInfo // host.crt, as it was loaded
	revoked revocations
}

// Load reads ca.crt, host.crt and host.key.
func Load(dir string) (*Identity, error) {
	ca, err := readCert(filepath.Join(dir, caCertFile))
	if err != nil {
		return nil, fmt.Errorf("load the cluster's CA: %w", err)
	}
	id := &Identity{dir: dir, ca: ca, roots: x509.NewCertPool()}
	id.roots.AddCert(ca)
	if err := id.reload(); err != nil {
		return nil, err
	}
	return id, nil
}

// reload takes up host.crt and host.key; mu is held, or nobody else knows id yet.
func (id *Identity) reload() error {
	path := filepath.Join(id.dir, hostCertFile)
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("load this machine's certificate: %w", err)
	}
	cert, err := loadPair(id.dir)
	if err != nil {
		return fmt.Errorf("load this machine's certificate: %w", err)
	}
	if _, err := id.Verify(cert.Leaf); err != nil {
		return fmt.Errorf("this machine's own certificate (%s): %w", path, err)
	}
	// The CA goes along so that a joiner can pin it.
	cert.Certificate = append(cert.Certificate, id.ca.Raw)
	id.now, id.file = &cert, info
	return nil
}

// changed says whether a file was replaced or written. Files are replaced here, so that the file itself is another
// one even where clocks are too coarse to tell.
func changed(now, then fs.FileInfo) bool {
	return !os.SameFile(now, then) || !now.ModTime().Equal(then.ModTime()) || now.Size() != then.Size()
}

func (id *Identity) certificate() *tls.Certificate {
	id.mu.Lock()
	defer id.mu.Unlock()
	if info, err := os.Stat(filepath.Join(id.dir, hostCertFile)); err == nil && changed(info, id.file) {
		// A key and a certificate are two files; where they don't match yet, the old pair serves on.
		_ = id.reload()
	}
	return id.now
}

// Name is this machine's name, Role its role, as in its certificate.
func (id *Identity) Name() string { return id.certificate().Leaf.Subject.CommonName }

// Role is what this machine's certificate lets it be.
func (id *Identity) Role() Role { return Role(id.certificate().Leaf.Subject.OrganizationalUnit[0]) }

// Serial is the serial number of this machine's certificate, hexadecimal.
func (id *Identity) Serial() string { return id.certificate().Leaf.SerialNumber.Text(16) }

// CAFingerprint is the SHA-256 of the CA's certificate, hexadecimal.
func (id *Identity) CAFingerprint() string { return Fingerprint(id.ca) }

// Peer is who a verified certificate says that the other side is.
type Peer struct {
	Name   string
	Role   Role
	Serial string // hexadecimal
}

// Verify judges a certificate: of this CA, in its time, for one name and one role.
func (id *Identity) Verify(cert *x509.Certificate) (Peer, error) {
	if cert == nil {
		return Peer{}, fmt.Errorf("%w: it shows no certificate", ErrPeer)
	}
	if _, err := cert.Verify(x509.VerifyOptions{Roots: id.roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		return Peer{}, fmt.Errorf("%w: %w", ErrPeer, err)
	}
	return subject(cert)
}

func subject(cert *x509.Certificate) (Peer, error) {
	s := cert.Subject
	if cert.IsCA || len(cert.DNSNames) != 1 || cert.DNSNames[0] != s.CommonName || len(s.OrganizationalUnit) != 1 || !Role(s.OrganizationalUnit[0]).Valid() {
		return Peer{}, fmt.Errorf("%w: the certificate of %q is not a cluster member's", ErrPeer, s.CommonName)
	}
	return Peer{Name: s.CommonName, Role: Role(s.OrganizationalUnit[0]), Serial: cert.SerialNumber.Text(16)}, nil
}

// ServerConfig accepts members of the cluster. After the handshake, PeerOf tells which one came, and the
// negotiated protocol must be one of alpn: a client that offers none gets none.
func (id *Identity) ServerConfig(alpn ...string) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		GetCertificate:         func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return id.certificate(), nil },
		ClientAuth:             tls.RequireAndVerifyClientCert,
		ClientCAs:              id.roots,
		NextProtos:             alpn,
		SessionTicketsDisabled: true, // a resumed session would skip the look at the certificate
		VerifyConnection:       id.verifyMember(alpn),
	}
}

// ClientConfig connects to the member of that name, and to nobody else; "" takes any member.
func (id *Identity) ClientConfig(peerName, alpn string) *tls.Config {
	c := &tls.Config{
		MinVersion:           tls.VersionTLS13,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return id.certificate(), nil },
		RootCAs:              id.roots,
		ServerName:           peerName,
		NextProtos:           []string{alpn},
		VerifyConnection:     id.verifyMember([]string{alpn}),
	}
	if peerName == "" {
		// The name alone is not checked; the chain is, here.
		c.InsecureSkipVerify = true
		c.VerifyConnection = func(s tls.ConnectionState) error {
			if len(s.PeerCertificates) == 0 {
				return fmt.Errorf("%w: it shows no certificate", ErrPeer)
			}
			if _, err := id.Verify(s.PeerCertificates[0]); err != nil {
				return err
			}
			return id.verifyMember([]string{alpn})(s)
		}
	}
	return c
}

// verifyMember is asked at every handshake: revocations count at once.
func (id *Identity) verifyMember(alpn []string) func(tls.ConnectionState) error {
	return func(s tls.ConnectionState) error {
		for _, protocol := range alpn {
			if s.NegotiatedProtocol == protocol {
				p, err := PeerOf(s)
				if err != nil {
					return err
				}
				return id.current(p)
			}
		}
		return fmt.Errorf("%w: it speaks none of the protocols %v", ErrPeer, alpn)
	}
}

// PeerOf tells who is at the other end of a connection that ServerConfig or ClientConfig has verified.
func PeerOf(s tls.ConnectionState) (Peer, error) {
	if len(s.PeerCertificates) == 0 {
		return Peer{}, fmt.Errorf("%w: it shows no certificate", ErrPeer)
	}
	return subject(s.PeerCertificates[0])
}

// PeerName is PeerOf without the serial number.
func PeerName(s tls.ConnectionState) (name, role string, err error) {
	p, err := PeerOf(s)
	return p.Name, string(p.Role), err
}

// Signed is a message with the proof of who wrote it, for one that passes through others' hands.
type Signed struct {
	Body        []byte `json:"body"`
	Certificate []byte `json:"certificate"` // DER
	Signature   []byte `json:"signature"`   // ECDSA over SHA-256 of purpose, a zero byte, body; ASN.1
}

func digest(purpose string, body []byte) []byte {
	h := sha256.New()
	h.Write([]byte(purpose))
	h.Write([]byte{0})
	h.Write(body)
	return h.Sum(nil)
}

// Sign signs a body for one purpose.
func (id *Identity) Sign(purpose string, body []byte) (Signed, error) {
	cert := id.certificate()
	key, ok := cert.PrivateKey.(*ecdsa.PrivateKey)
	if !ok {
		return Signed{}, fmt.Errorf("sign: this machine's key is of another kind (%T)", cert.PrivateKey)
	}
	sig, err := ecdsa.SignASN1(rand.Reader, key, digest(purpose, body))
	if err != nil {
		return Signed{}, fmt.Errorf("sign: %w", err)
	}
	return Signed{Body: body, Certificate: cert.Leaf.Raw, Signature: sig}, nil
}

// Open verifies a signed message and tells who wrote it.
func (id *Identity) Open(purpose string, s Signed) (Peer, error) {
	cert, err := x509.ParseCertificate(s.Certificate)
	if err != nil {
		return Peer{}, fmt.Errorf("%w: the signer's certificate: %w", ErrPeer, err)
	}
	p, err := id.Verify(cert)
	if err != nil {
		return Peer{}, err
	}
	key, ok := cert.PublicKey.(*ecdsa.PublicKey)
	if !ok || !ecdsa.VerifyASN1(key, digest(purpose, s.Body), s.Signature) {
		return Peer{}, fmt.Errorf("%w: the signature of %s is wrong", ErrPeer, p.Name)
	}
	return p, id.current(p)
}
