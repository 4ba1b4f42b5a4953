package access

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

const fingerprint = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"

func add(t *testing.T, table *Table, name string, role Role) (Token, User) {
	t.Helper()
	token, u := NewToken(fingerprint, name, role, 7)
	if why := table.Apply(Change{Add: &u}); why != "" {
		t.Fatal(why)
	}
	return token, u
}

func TestAToken(t *testing.T) {
	var table Table
	token, u := add(t, &table, "jane.doe", Operator)
	parsed, err := ParseToken(token.String() + "\n")
	if err != nil || parsed.Name != "jane.doe" || parsed.CAFingerprint != fingerprint {
		t.Fatalf("%+v %v", parsed, err)
	}
	if got, ok := table.Who(parsed); !ok || got != u {
		t.Errorf("%+v %v", got, ok)
	}
	// The secret is in no place but the token.
	b, err := json.Marshal(table)
	if err != nil || strings.Contains(string(b), token.String()) || strings.Contains(string(b), fmt.Sprintf("%x", token.Secret)) {
		t.Errorf("%s %v", b, err)
	}
	for name, wrong := range map[string]Token{
		"another secret": {Name: "jane.doe", Secret: append([]byte{token.Secret[0] ^ 1}, token.Secret[1:]...)},
		"a longer one":   {Name: "jane.doe", Secret: append(append([]byte{}, token.Secret...), 0)},
		"no secret":      {Name: "jane.doe"},
		"the hash":       {Name: "jane.doe", Secret: token.hash()},
		"another name":   {Name: "jane", Secret: token.Secret},
	} {
		if got, ok := table.Who(wrong); ok {
			t.Errorf("%s: taken for %+v", name, got)
		}
	}
	if got, ok := (&Table{}).Who(Token{}); ok {
		t.Errorf("nobody is %+v", got)
	}
	other, _ := NewToken(fingerprint, "jane.doe", Operator, 7)
	if other.String() == token.String() {
		t.Error("two tokens are one")
	}
}

func TestWhatIsNoToken(t *testing.T) {
	good, _ := NewToken(fingerprint, "x", Viewer, 0)
	text := good.String()
	for _, bad := range []string{
		"", "x", text[1:], text[:len(text)-3], "pollux1." + text[len(tokenPrefix):], text + strings.Repeat("A", tokenMax),
		Token{CAFingerprint: fingerprint, Name: "../x", Secret: good.Secret}.String(), text + " x",
	} {
		if got, err := ParseToken(bad); !errors.Is(err, ErrToken) {
			t.Errorf("%q is %+v, %v", bad, got, err)
		}
	}
}

func TestChanges(t *testing.T) {
	var table Table
	_, first := add(t, &table, "x", Viewer)
	refuse := func(what string, c Change) {
		t.Helper()
		if why := table.Apply(c); why == "" {
			t.Errorf("%s was applied", what)
		}
	}
	_, second := NewToken(fingerprint, "x", Administrator, 8)
	bad := second
	bad.Role = "root"
	refuse("nothing", Change{})
	refuse("two things", Change{Add: &second, Remove: &first})
	refuse("a second user of the name", Change{Add: &second})
	refuse("an unknown role", Change{Add: &bad})
	refuse("a name that is a path", Change{Add: &User{Name: "../x", Role: Viewer, Hash: first.Hash}})
	refuse("no hash", Change{Add: &User{Name: "y", Role: Viewer}})
	refuse("a hash in capitals", Change{Add: &User{Name: "y", Role: Viewer, Hash: strings.ToUpper("ab" + first.Hash[2:])}})
	refuse("nobody's end", Change{Remove: &second})
	// A second copy of what was applied is applied.
	if why := table.Apply(Change{Add: &first}); why != "" {
		t.Error(why)
	}
	for range 2 {
		if why := table.Apply(Change{Remove: &first}); why != "" {
			t.Error(why)
		}
	}
	// A late copy brings nobody back, and removes no later user.
	refuse("a replayed Add", Change{Add: &first})
	if why := table.Apply(Change{Add: &second}); why != "" {
		t.Error(why)
	}
	if why := table.Apply(Change{Remove: &first}); why != "" || len(table.List()) != 1 || table.List()[0] != second {
		t.Errorf("%q %+v", why, table.List())
	}
}

func TestThereIsAnEnd(t *testing.T) {
	var table Table
	for i := range usersMax {
		add(t, &table, fmt.Sprint("u", i), Viewer)
	}
	_, more := NewToken(fingerprint, "more", Viewer, 0)
	if table.Apply(Change{Add: &more}) == "" {
		t.Error("users without end")
	}
	for i := range deadMax + 7 {
		name := fmt.Sprint("u", i%usersMax)
		u := table.Users[name]
		table.Apply(Change{Remove: &u})
		add(t, &table, name, Viewer)
	}
	if len(table.Dead) != deadMax || table.Check() != nil {
		t.Errorf("%d dead, %v", len(table.Dead), table.Check())
	}
}

func TestCheck(t *testing.T) {
	_, u := NewToken(fingerprint, "x", Viewer, 0)
	for name, table := range map[string]Table{
		"under another name": {Users: map[string]User{"y": u}},
		"no role":            {Users: map[string]User{"x": {Name: "x", Hash: u.Hash}}},
		"dead without end":   {Dead: make([]string, deadMax+1)},
	} {
		if table.Check() == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// Whatever comes in whatever order: no token that was taken back is good again, and the table has its form.
func TestNothingComesBack(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		var table Table
		var sent []Change
		tokens := map[string]Token{} // by hash
		dead := map[string]bool{}
		for range rapid.IntRange(1, 40).Draw(rt, "steps") {
			name := rapid.SampledFrom([]string{"x", "y"}).Draw(rt, "name")
			token, u := NewToken(fingerprint, name, rapid.SampledFrom(Roles).Draw(rt, "role"), 0)
			c := Change{Add: &u}
			switch old, known := table.Users[name]; {
			case len(sent) > 0 && rapid.Bool().Draw(rt, "copy"):
				c = rapid.SampledFrom(sent).Draw(rt, "which")
			case known && rapid.Bool().Draw(rt, "remove"):
				c = Change{Remove: &old}
			default:
				tokens[u.Hash] = token
			}
			sent = append(sent, c)
			if table.Apply(c) == "" && c.Remove != nil {
				dead[c.Remove.Hash] = true
			}
			if err := table.Check(); err != nil {
				rt.Fatal(err)
			}
			for hash, token := range tokens {
				who, ok := table.Who(token)
				if ok && (dead[hash] || who.Hash != hash) {
					rt.Fatalf("%s is %+v again", hash, who)
				}
			}
		}
	})
}
