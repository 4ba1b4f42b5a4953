package pki

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/renameio/v2"
)

// A renewal gives a member a new key and a certificate for it, under the same name and role. A key and a
// certificate are two files, and whoever reads them, or loses power, between the two must find a pair:
//
//	next.key   the new key, durable
//	host.crt   replaced by the new certificate: from here on the pair is host.crt and next.key
//	host.key   replaced by next.key
const (
	nextKeyFile = "next.key"
	// replacesFile holds the serial number of the certificate that the present one has replaced and that is still
	// good, so that connections go on. Missing: there is none.
	replacesFile = "replaces"
)

// Expiry is from when to when a certificate is good, and whose it is.
type Expiry struct {
	Serial    string    `json:"serial"` // hexadecimal
	NotBefore time.Time `json:"not_before"`
	NotAfter  time.Time `json:"not_after"`
}

func expiry(c *x509.Certificate) Expiry {
	return Expiry{Serial: c.SerialNumber.Text(16), NotBefore: c.NotBefore.UTC(), NotAfter: c.NotAfter.UTC()}
}

// Due says that less than a third of a certificate's time is left.
func (e Expiry) Due(now time.Time) bool {
	return e.NotAfter.Sub(now) < e.NotAfter.Sub(e.NotBefore)/3
}

// Expiry is this machine's certificate's, CAExpiry the CA's.
func (id *Identity) Expiry() Expiry   { return expiry(id.certificate().Leaf) }
func (id *Identity) CAExpiry() Expiry { return expiry(id.ca) }

// Renewal is one under way: a new key that has no certificate yet.
type Renewal struct {
	key *ecdsa.PrivateKey
	// CSR asks for a certificate, DER. Only its key counts.
	CSR []byte
}

// NewRenewal makes a new key.
func (id *Identity) NewRenewal() (*Renewal, error) {
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: id.Name()}}, key)
	if err != nil {
		return nil, fmt.Errorf("make the certificate request: %w", err)
	}
	return &Renewal{key: key, CSR: csr}, nil
}

// Renew signs a certificate for a member who has shown that he is one: for his name and role, whatever he asks for.
func (i *Issuer) Renew(p Peer, csr []byte) (der []byte, serial string, err error) {
	r, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		return nil, "", fmt.Errorf("the certificate request of %s: %w", p.Name, err)
	}
	if err := r.CheckSignature(); err != nil {
		return nil, "", fmt.Errorf("the certificate request of %s: %w", p.Name, err)
	}
	if der, err = i.ca.sign(r.PublicKey, p.Name, p.Role); err != nil {
		return nil, "", err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, "", fmt.Errorf("read back the certificate of %s: %w", p.Name, err)
	}
	return der, cert.SerialNumber.Text(16), nil
}

// Install replaces this machine's key and certificate, durably. New connections use them from then on. With keepOld
// the old certificate stays good until the member is removed, so that connections go on; without it the cluster is
// told to refuse it.
func (id *Identity) Install(r *Renewal, der []byte, keepOld bool) error {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return fmt.Errorf("the new certificate: %w", err)
	}
	p, err := id.Verify(cert)
	if err != nil {
		return fmt.Errorf("the new certificate: %w", err)
	}
	if p.Name != id.Name() || p.Role != id.Role() || !r.key.PublicKey.Equal(cert.PublicKey) {
		return errors.New("the new certificate is not for this machine")
	}
	in := func(name string) string { return filepath.Join(id.dir, name) }
	if keepOld {
		err = writeFile(in(replacesFile), []byte(id.Serial()+"\n"), 0o600)
	} else if err = os.Remove(in(replacesFile)); errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if err != nil {
		return fmt.Errorf("note which certificate is replaced: %w", err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(r.key)
	if err != nil {
		return fmt.Errorf("encode the new key: %w", err)
	}
	if err := writeLike(in(nextKeyFile), in(hostKeyFile), encodeKey(key)); err != nil {
		return err
	}
	if err := writeLike(in(hostCertFile), in(hostCertFile), encodeCert(der)); err != nil {
		return err
	}
	id.mu.Lock()
	defer id.mu.Unlock()
	return id.reload()
}

// loadPair reads host.crt with the key that belongs to it, and ends a renewal that was cut off between the two.
func loadPair(dir string) (tls.Certificate, error) {
	crt, key, next := filepath.Join(dir, hostCertFile), filepath.Join(dir, hostKeyFile), filepath.Join(dir, nextKeyFile)
	cert, err := tls.LoadX509KeyPair(crt, key)
	if err == nil {
		return cert, nil
	}
	renewed, nerr := tls.LoadX509KeyPair(crt, next)
	if nerr != nil {
		return cert, err
	}
	// Who may only read the directory leaves it as it is; the pair is good all the same.
	if rerr := os.Rename(next, key); rerr == nil {
		if d, derr := os.Open(dir); derr == nil {
			_ = d.Sync()
			d.Close()
		}
	}
	return renewed, nil
}

// Replaces is the serial number of the certificate that this machine's has replaced and that is still good; empty:
// there is none.
func (id *Identity) Replaces() (string, error) {
	b, err := os.ReadFile(filepath.Join(id.dir, replacesFile))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return strings.TrimSpace(string(b)), err
}

// writeLike replaces a file, with the mode and the group of another one.
func writeLike(path, like string, b []byte) error {
	info, err := os.Stat(like)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	f, err := renameio.NewPendingFile(path, renameio.WithPermissions(0o600), renameio.IgnoreUmask())
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer func() { _ = f.Cleanup() }() // nothing, once the file is in its place
	if err := takeGroup(f.File, info); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if _, err := f.Write(b); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := f.Chmod(info.Mode().Perm()); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := f.CloseAtomicallyReplace(); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}
