package images

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestDigestNamesAllThatGoesIn(t *testing.T) {
	with := func(env string) string { return postgresRecipe.with(env).digest() }
	if a, b := with("AUTHORIZED_KEY=a"), with("AUTHORIZED_KEY=b"); a == b {
		t.Error("another key makes the same image")
	}
	if once, again := with("AUTHORIZED_KEY=a"), with("AUTHORIZED_KEY=a"); once != again {
		t.Error("the same recipe has two digests")
	}
	seen := make(map[string]string)
	for _, r := range []*recipe{baseRecipe, guestRecipe, postgresRecipe, orthancRecipe, clientRecipe} {
		if other, ok := seen[r.digest()]; ok {
			t.Errorf("%s and %s have one digest", r.name, other)
		}
		seen[r.digest()] = r.name
	}
	changed := *guestRecipe
	changed.env = []string{"CMDLINE=other"}
	child := *postgresRecipe
	child.parent = &changed
	if child.digest() == postgresRecipe.digest() {
		t.Error("a change of the parent does not show in the digest")
	}
	if guestRecipe.with("X=1").parent != baseRecipe {
		t.Error("the base is built again for each key")
	}
}

func TestOnceIsWholeOrNotAtAll(t *testing.T) {
	b := builder{t.TempDir(), t.Logf}
	dir := filepath.Join(b.cache, "thing-0123456789abcdef")
	write := func(name string, fail error) func(string) error {
		return func(dir string) error {
			if err := os.WriteFile(filepath.Join(dir, name), nil, 0o644); err != nil {
				t.Fatal(err)
			}
			return fail
		}
	}
	broken := errors.New("broken")
	if err := b.once(dir, write("half", broken)); !errors.Is(err, broken) {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Error("a failed build left its directory under the final name")
	}
	if err := b.once(dir, write("whole", nil)); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "half")); err == nil {
		t.Error("the second build has the first one's leftovers")
	}
	if err := b.once(dir, func(string) error { t.Error("built twice"); return nil }); err != nil {
		t.Fatal(err)
	}

	old := filepath.Join(b.cache, "thing-fedcba9876543210")
	for _, path := range []string{old, old + ".new", filepath.Join(b.cache, "other-fedcba9876543210")} {
		if err := os.Mkdir(path, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	b.forget(dir)
	left, err := filepath.Glob(filepath.Join(b.cache, "*"))
	if err != nil {
		t.Fatal(err)
	}
	if len(left) != 3 { // thing, its lock, other
		t.Errorf("left: %v", left)
	}
}
