package pki

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Cluster is what a member knows of its cluster from the day it joined.
type Cluster struct {
	ID   string `json:"id"`
	Name string `json:"name"` // this machine's
	Role Role   `json:"role"`
	// GossipKey is the AES-256 key of memberlist's messages.
	GossipKey []byte `json:"gossip_key"`
	// Founder says that this machine began the cluster: it alone may begin Raft's log, once.
	Founder bool `json:"founder,omitempty"`
	// Seeds are members to ask for the others.
	Seeds []Seed `json:"seeds,omitempty"`
}

// Seed is a member's addresses.
type Seed struct {
	Name           string `json:"name"`
	ClusterAddress string `json:"cluster_address"`
	GossipAddress  string `json:"gossip_address"`
}

// LoadCluster reads what was stored when the machine joined.
func LoadCluster(dir string) (*Cluster, error) {
	path := filepath.Join(dir, clusterFile)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("this machine belongs to no cluster (%s is missing): run `pollux init` to begin one, or `pollux join` to enter one", path)
	}
	if err != nil {
		return nil, err
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	var c Cluster
	if err := d.Decode(&c); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if c.ID == "" || c.Name == "" || !c.Role.Valid() || len(c.GossipKey) != 32 {
		return nil, fmt.Errorf("%s is incomplete", path)
	}
	return &c, nil
}

// Store writes it, durably.
func (c *Cluster) Store(dir string) error {
	b, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return fmt.Errorf("encode %s: %w", clusterFile, err)
	}
	return writeFile(filepath.Join(dir, clusterFile), append(b, '\n'), 0o600)
}

// Found begins a cluster: the CA, the certificate of its first host, the gossip key. ErrExists: there
// is something already, and nothing was changed.
func Found(dir, name string) (*Cluster, string, error) {
	if err := vacant(dir); err != nil {
		return nil, "", err
	}
	var id [8]byte
	rand.Read(id[:])
	c := &Cluster{ID: hex.EncodeToString(id[:]), Name: name, Role: RoleHost, Founder: true, GossipKey: make([]byte, 32)}
	rand.Read(c.GossipKey)
	ca, err := newCA(c.ID)
	if err != nil {
		return nil, "", err
	}
	key, err := newKey()
	if err != nil {
		return nil, "", err
	}
	der, err := ca.sign(key.Public(), name, RoleHost)
	if err != nil {
		return nil, "", err
	}
	if err := writeKey(filepath.Join(dir, caKeyFile), ca.key); err != nil {
		return nil, "", err
	}
	if err := writeFile(filepath.Join(dir, caCertFile), encodeCert(ca.cert.Raw), 0o644); err != nil {
		return nil, "", err
	}
	if err := writeKey(filepath.Join(dir, hostKeyFile), key); err != nil {
		return nil, "", err
	}
	if err := writeFile(filepath.Join(dir, hostCertFile), encodeCert(der), 0o644); err != nil {
		return nil, "", err
	}
	// Last: whoever finds it finds the rest.
	if err := c.Store(dir); err != nil {
		return nil, "", err
	}
	return c, Fingerprint(ca.cert), nil
}

// vacant makes the directory and refuses one that holds a cluster's files.
func vacant(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make the directory for certificates: %w", err)
	}
	if _, err := os.Stat(filepath.Join(dir, clusterFile)); err == nil {
		return fmt.Errorf("%w (%s)", ErrExists, filepath.Join(dir, clusterFile))
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
