package pki

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// ErrToken says that a token is not good for joining. It does not say why to whoever has no good one.
var ErrToken = errors.New("the token is wrong, used up or expired; have a new one issued")

const (
	tokenPrefix = "pollux1."
	secretBytes = 32
	// tokensMax bounds the tokens that are open at once.
	tokensMax = 64
)

// Token is what a machine needs to join: whom to ask, how to know that it is the right cluster, and
// the secret that lets it in.
type Token struct {
	CAFingerprint string // hexadecimal SHA-256 of the CA's certificate
	Address       string // cluster address of the issuing host
	Secret        []byte
}

// String encodes the token. It holds a secret.
func (t Token) String() string {
	fp, _ := hex.DecodeString(t.CAFingerprint)
	return tokenPrefix + base64.RawURLEncoding.EncodeToString(slices.Concat(fp, t.Secret, []byte(t.Address)))
}

// ParseToken decodes a token.
func ParseToken(s string) (Token, error) {
	b64, ok := strings.CutPrefix(strings.TrimSpace(s), tokenPrefix)
	if !ok {
		return Token{}, fmt.Errorf("this is no join token: it does not begin with %q", tokenPrefix)
	}
	b, err := base64.RawURLEncoding.DecodeString(b64)
	if err != nil || len(b) <= sha256.Size+secretBytes || len(b) > 512 {
		return Token{}, errors.New("this is no join token: part of it is missing or changed")
	}
	address := string(b[sha256.Size+secretBytes:])
	if _, err := netip.ParseAddrPort(address); err != nil {
		return Token{}, errors.New("this is no join token: part of it is missing or changed")
	}
	return Token{
		CAFingerprint: hex.EncodeToString(b[:sha256.Size]),
		Secret:        b[sha256.Size : sha256.Size+secretBytes],
		Address:       address,
	}, nil
}

type storedToken struct {
	Hash    string    `json:"hash"` // hexadecimal SHA-256 of the secret
	Name    string    `json:"name"`
	Role    Role      `json:"role"`
	Expires time.Time `json:"expires"`
}

// tokens keeps the open tokens of an issuer.
type tokens struct {
	path string
	mu   sync.Mutex
}

func (t *tokens) read(now time.Time) ([]storedToken, error) {
	b, err := os.ReadFile(t.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all []storedToken
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&all); err != nil {
		return nil, fmt.Errorf("%s: %w", t.path, err)
	}
	return slices.DeleteFunc(all, func(s storedToken) bool { return !now.Before(s.Expires) }), nil
}

func (t *tokens) write(all []storedToken) error {
	b, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		return fmt.Errorf("encode tokens: %w", err)
	}
	return writeFile(t.path, append(b, '\n'), 0o600)
}

// issue makes a secret for one machine. An earlier open token for the same name dies.
func (t *tokens) issue(name string, role Role, valid time.Duration) ([]byte, time.Time, error) {
	secret := make([]byte, secretBytes)
	rand.Read(secret)
	sum := sha256.Sum256(secret)
	now := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	all, err := t.read(now)
	if err != nil {
		return nil, time.Time{}, err
	}
	all = slices.DeleteFunc(all, func(s storedToken) bool { return s.Name == name })
	if len(all) >= tokensMax {
		return nil, time.Time{}, fmt.Errorf("%d tokens are open; let some be used or expire first", len(all))
	}
	st := storedToken{Hash: hex.EncodeToString(sum[:]), Name: name, Role: role, Expires: now.Add(valid).UTC().Truncate(time.Second)}
	if err := t.write(append(all, st)); err != nil {
		return nil, time.Time{}, err
	}
	return secret, st.Expires, nil
}

// redeem takes a secret out, durably, so that nobody can use it again.
func (t *tokens) redeem(secret []byte) (storedToken, error) {
	sum := sha256.Sum256(secret)
	want := []byte(hex.EncodeToString(sum[:]))
	t.mu.Lock()
	defer t.mu.Unlock()
	all, err := t.read(time.Now())
	if err != nil {
		return storedToken{}, err
	}
	i := slices.IndexFunc(all, func(s storedToken) bool { return subtle.ConstantTimeCompare([]byte(s.Hash), want) == 1 })
	if i < 0 {
		return storedToken{}, ErrToken
	}
	st := all[i]
	if err := t.write(slices.Delete(all, i, i+1)); err != nil {
		return storedToken{}, err
	}
	return st, nil
}

func newTokens(dir string) *tokens { return &tokens{path: filepath.Join(dir, tokensFile)} }
