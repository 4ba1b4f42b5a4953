package images

import (
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
)

// suite is the Debian release that guests and clients run.
const suite = "bookworm"

// treeFormat changes with the code that makes trees, so that they are made anew.
const treeFormat = "2"

// mirror serves Debian's packages.
const mirror = "http://deb.debian.org"

//go:embed recipe/*.sh
var scripts embed.FS

// recipe is how a tree is made from another.
type recipe struct {
	name   string
	parent *recipe // nil: debootstrap
	steps  []step
	env    []string // of its scripts; part of the digest
}

// step is a script that runs in the tree.
type step struct {
	script string
	// offline runs it without any network, and alone: what it starts ends with it.
	offline bool
}

var (
	baseRecipe     = &recipe{name: "base", steps: []step{{script: "base.sh"}}}
	guestRecipe    = &recipe{name: "guest", parent: baseRecipe, steps: []step{{script: "guest.sh"}}, env: []string{"CMDLINE=" + cmdline}}
	postgresRecipe = &recipe{name: "postgres", parent: guestRecipe, steps: []step{{script: "postgres.sh"}, {"postgres-data.sh", true}, {script: "finish.sh"}}}
	orthancRecipe  = &recipe{name: "orthanc", parent: guestRecipe, steps: []step{{script: "orthanc.sh"}, {script: "finish.sh"}}, env: []string{"CLIENT_ADDRESS=" + ClientAddress}}
	clientRecipe   = &recipe{name: "client", parent: baseRecipe, steps: []step{{script: "client.sh"}}}
)

// with is the recipe with variables for the scripts of the whole chain but the base.
func (r *recipe) with(env ...string) *recipe {
	if r == baseRecipe {
		return r
	}
	c := *r
	c.env = slices.Concat(r.env, env)
	c.parent = r.parent.with(env...)
	return &c
}

// digest names all that goes into the tree, save the state of Debian's archive.
func (r *recipe) digest() string {
	parts := []string{treeFormat, suite, mirror, r.name, strings.Join(r.env, "\n")}
	if r.parent != nil {
		parts = append(parts, r.parent.digest())
	}
	for _, s := range r.steps {
		parts = append(parts, s.text(), fmt.Sprint(s.offline))
	}
	return digest(parts...)
}

func (s step) text() string {
	text, err := scripts.ReadFile("recipe/" + s.script)
	if err != nil {
		panic(err) // it is in the program
	}
	return string(text)
}

// digest is 16 hexadecimal digits that stand for the strings.
func digest(parts ...string) string {
	h := sha256.New()
	for _, p := range parts {
		fmt.Fprintf(h, "%d:%s", len(p), p)
	}
	return hex.EncodeToString(h.Sum(nil))[:16]
}
