package pki

import (
	"crypto/tls"
	"fmt"
)

// alpnAPI is HTTP/1.1, and nothing else: what the API needs of HTTP/2 is little, what a stranger could do with
// its streams and frames is much.
const alpnAPI = "http/1.1"

// APIConfig is the configuration of the API's TCP port. Clients show a token, in HTTP, and no certificate.
func (id *Identity) APIConfig() *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		GetCertificate:         func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return id.certificate(), nil },
		NextProtos:             []string{alpnAPI},
		SessionTicketsDisabled: true,
	}
}

// APIClientConfig connects to the API of the member of that name, in the cluster whose CA has that fingerprint,
// and to nobody else: a token is shown only to the one that it is meant for.
func APIClientConfig(caFingerprint, name string) *tls.Config {
	cluster := pinned(caFingerprint)
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		ServerName:         name,
		NextProtos:         []string{alpnAPI},
		InsecureSkipVerify: true, // the CA is pinned, and the name compared, below
		VerifyConnection: func(s tls.ConnectionState) error {
			if err := cluster(s); err != nil {
				return err
			}
			p, err := PeerOf(s)
			if err == nil && p.Name != name {
				err = fmt.Errorf("%w: it is %s, not %s", ErrPeer, p.Name, name)
			}
			return err
		},
	}
}
