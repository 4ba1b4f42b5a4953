package access

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"slices"
	"strings"
)

const (
	tokenPrefix = "pollux-api1."
	hashBytes   = sha256.Size
	secretBytes = 32
	tokenMax    = 256 // characters
)

// ErrToken says that a text is no user's token.
var ErrToken = errors.New("this is no user's token: it is another one, or part of it is missing or changed")

// Token is what a user shows. It names the cluster too, so that a client can tell whether it talks to the
// right one before it shows the secret.
type Token struct {
	CAFingerprint string // hexadecimal SHA-256 of the CA's certificate
	Name          string
	Secret        []byte
}

// NewToken draws a token, and makes the user who shows it.
func NewToken(caFingerprint, name string, role Role, nowUnix int64) (Token, User) {
	t := Token{CAFingerprint: caFingerprint, Name: name, Secret: make([]byte, secretBytes)}
	rand.Read(t.Secret) // never fails
	return t, User{Name: name, Role: role, Hash: hex.EncodeToString(t.hash()), CreatedUnix: nowUnix}
}

func (t Token) hash() []byte {
	sum := sha256.Sum256(t.Secret)
	return sum[:]
}

// String encodes the token. It holds a secret. Its characters are those that RFC 6750 allows behind "Bearer".
func (t Token) String() string {
	fp, _ := hex.DecodeString(t.CAFingerprint)
	return tokenPrefix + base64.RawURLEncoding.EncodeToString(slices.Concat(fp, t.Secret, []byte(t.Name)))
}

// ParseToken decodes a token.
func ParseToken(s string) (Token, error) {
	b64, ok := strings.CutPrefix(strings.TrimSpace(s), tokenPrefix)
	if !ok || len(s) > tokenMax {
		return Token{}, ErrToken
	}
	b, err := base64.RawURLEncoding.DecodeString(b64)
	if err != nil || len(b) <= hashBytes+secretBytes {
		return Token{}, ErrToken
	}
	t := Token{
		CAFingerprint: hex.EncodeToString(b[:hashBytes]), Secret: b[hashBytes : hashBytes+secretBytes],
		Name: string(b[hashBytes+secretBytes:]),
	}
	if !ValidName(t.Name) {
		return Token{}, ErrToken
	}
	return t, nil
}

// Who finds the user that a token belongs to. How long it takes depends on the name in the token, which is no
// secret, and on nothing of the hash.
func (t *Table) Who(token Token) (User, bool) {
	u, known := t.Users[token.Name]
	stored, err := hex.DecodeString(u.Hash)
	if !known || err != nil || len(stored) != hashBytes {
		stored, known = make([]byte, hashBytes), false
	}
	if subtle.ConstantTimeCompare(stored, token.hash()) != 1 || !known {
		return User{}, false
	}
	return u, true
}
