package pki

import (
	"bytes"
	"strings"
	"testing"
)

// FuzzToken: what is taken for a join token is written as it was read.
func FuzzToken(f *testing.F) {
	f.Add(Token{CAFingerprint: strings.Repeat("ab", 32), Address: "10.0.0.1:7700", Secret: make([]byte, secretBytes)}.String())
	f.Add("pollux1.")
	f.Fuzz(func(t *testing.T, s string) {
		token, err := ParseToken(s)
		if err != nil {
			return
		}
		again, err := ParseToken(token.String())
		if err != nil || again.String() != token.String() || len(again.Secret) != secretBytes {
			t.Fatalf("%+v %v", again, err)
		}
	})
}

// FuzzJoinRequest: what a stranger sends to who lets machines in is bounded, and lets nobody in.
func FuzzJoinRequest(f *testing.F) {
	dir := f.TempDir()
	c, _, err := Found(dir, "a")
	if err != nil {
		f.Fatal(err)
	}
	id, err := Load(dir)
	if err != nil {
		f.Fatal(err)
	}
	issuer, err := NewIssuer(dir, id, c)
	if err != nil {
		f.Fatal(err)
	}
	var good bytes.Buffer
	if err := writeJSON(&good, joinRequest{Secret: make([]byte, secretBytes), CSR: []byte("x"), Name: "b"}); err != nil {
		f.Fatal(err)
	}
	f.Add(good.Bytes())
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Add([]byte("\x02\x00\x00\x00{}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var q joinRequest
		if err := readJSON(bytes.NewReader(b), &q); err != nil {
			return
		}
		if len(b) > joinBytesMax+4 && len(q.Secret)+len(q.CSR)+len(q.Name) > joinBytesMax {
			t.Fatalf("%d bytes were read", len(b))
		}
		if a, err := issuer.admit(q); err == nil {
			t.Fatalf("let in: %+v", a)
		}
	})
}
