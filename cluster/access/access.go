// Package access is who may use the cluster's API from outside, and for what: users with one role each. It is
// pure: a table that Raft replicates, changes in, refusals out.
//
// Who reaches the daemon's Unix socket is no user: that is root of a member, who may do everything anyway.
package access

import (
	"cmp"
	"encoding/hex"
	"fmt"
	"regexp"
	"slices"
)

// Role is what a user may do. Roles are no ladder: an auditor reads what an operator does, and does nothing.
type Role string

const (
	Viewer        Role = "viewer"        // looks at the cluster and its guests
	Auditor       Role = "auditor"       // a viewer who also reads the event log and who the users are
	Operator      Role = "operator"      // runs guests: starts, stops, moves them, and reads the event log
	Administrator Role = "administrator" // everything, users and members included
)

// Roles are all of them.
var Roles = []Role{Viewer, Auditor, Operator, Administrator}

// Valid says whether there is such a role.
func (r Role) Valid() bool { return slices.Contains(Roles, r) }

// User is one who may use the API.
type User struct {
	Name string `json:"name"`
	Role Role   `json:"role"`
	// Hash is the SHA-256 of the secret in the user's token, hexadecimal. It needs neither salt nor a slow
	// function: those protect what people think up, and nobody can guess, or tabulate, 256 random bits.
	Hash string `json:"hash"`
	// CreatedUnix is when it was made, by the clock of the member that made it.
	CreatedUnix int64 `json:"created_unix"`
}

var nameSyntax = regexp.MustCompile(`^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$`)

// ValidName says whether a name can be a user's.
func ValidName(name string) bool { return nameSyntax.MatchString(name) }

func (u User) check() error {
	if !ValidName(u.Name) {
		return fmt.Errorf("%q can't be a user's name: lower-case letters, digits, dots, hyphens and underscores, at most 63, a letter or digit first and last", u.Name)
	}
	if !u.Role.Valid() {
		return fmt.Errorf("there is no role %q; there are %v", u.Role, Roles)
	}
	if b, err := hex.DecodeString(u.Hash); err != nil || len(b) != hashBytes || hex.EncodeToString(b) != u.Hash {
		return fmt.Errorf("the hash of user %s is none", u.Name)
	}
	return nil
}

// Change is one log entry. Exactly one of Add and Remove is set.
type Change struct {
	Add *User `json:"add,omitempty"`
	// Remove names the user as well as the hash of the token that dies: a late copy of the entry does not
	// touch a later user of the same name.
	Remove   *User  `json:"remove,omitempty"`
	Operator string `json:"operator,omitempty"`
}

const (
	usersMax = 256
	// deadMax bounds the hashes that are remembered after their users: a late or replayed copy of an Add
	// must not bring one back.
	deadMax = 1024
)

// Table is all users. Its zero value is empty, and usable.
type Table struct {
	Users map[string]User `json:"users,omitempty"` // by name
	// Dead are the hashes of removed users, oldest first.
	Dead []string `json:"dead,omitempty"`
}

// Apply carries out one change, or says why it is refused. A copy of a change that was applied counts as
// applied, as long as the table is still its result.
func (t *Table) Apply(c Change) (refused string) {
	switch {
	case (c.Add == nil) == (c.Remove == nil):
		return "the change says nothing, or two things"
	case c.Add != nil:
		return t.add(*c.Add)
	}
	return t.remove(*c.Remove)
}

func (t *Table) add(u User) string {
	if err := u.check(); err != nil {
		return err.Error()
	}
	if old, ok := t.Users[u.Name]; ok {
		if old == u {
			return ""
		}
		return fmt.Sprintf("there is a user %q already (%s); remove it first", u.Name, old.Role)
	}
	if slices.Contains(t.Dead, u.Hash) {
		return fmt.Sprintf("the token of user %q was taken back", u.Name)
	}
	if len(t.Users) >= usersMax {
		return fmt.Sprintf("there are %d users already", len(t.Users))
	}
	if t.Users == nil {
		t.Users = map[string]User{}
	}
	t.Users[u.Name] = u
	return ""
}

func (t *Table) remove(u User) string {
	old, ok := t.Users[u.Name]
	if ok && old.Hash == u.Hash {
		delete(t.Users, u.Name)
		if len(t.Dead) >= deadMax {
			t.Dead = slices.Delete(t.Dead, 0, len(t.Dead)-deadMax+1)
		}
		t.Dead = append(t.Dead, u.Hash)
		return ""
	}
	if slices.Contains(t.Dead, u.Hash) {
		return ""
	}
	return fmt.Sprintf("there is no user %q with that token", u.Name)
}

// List returns all users, by name.
func (t *Table) List() []User {
	all := make([]User, 0, len(t.Users))
	for _, u := range t.Users {
		all = append(all, u)
	}
	slices.SortFunc(all, func(a, b User) int { return cmp.Compare(a.Name, b.Name) })
	return all
}

// Check says what is wrong with a table that was read from somewhere.
func (t *Table) Check() error {
	if len(t.Users) > usersMax || len(t.Dead) > deadMax {
		return fmt.Errorf("%d users and %d that were removed; at most %d and %d are kept", len(t.Users), len(t.Dead), usersMax, deadMax)
	}
	for name, u := range t.Users {
		if err := u.check(); err != nil {
			return err
		}
		if name != u.Name {
			return fmt.Errorf("user %q is filed under %q", u.Name, name)
		}
	}
	return nil
}
