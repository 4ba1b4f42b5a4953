package dataplane

import (
	"testing"

	"github.com/pollux-ha/pollux/cluster/pact"
	"github.com/pollux-ha/pollux/vmm/legacy"
)

// TestGeneration: what keeps a guest's generation ID, and what changes it.
func TestGeneration(t *testing.T) {
	a := pact.Assignment{Guest: "g", Created: 7, Term: 3, Mode: pact.Solo}
	id := generation("cluster", a)
	if id.IsZero() {
		t.Fatal("no ID")
	}
	later := a
	later.Term, later.Mode, later.Tenure, later.Primary = 40, pact.Protected, 39, pact.Party{Host: "b", Incarnation: 2}
	if generation("cluster", later) != id {
		t.Error("a later term is another generation")
	}
	seen := map[legacy.GenerationID]string{id: "the guest"}
	for what, make1 := range map[string]func() legacy.GenerationID{
		"another guest":         func() legacy.GenerationID { b := a; b.Guest = "h"; return generation("cluster", b) },
		"its successor in name": func() legacy.GenerationID { b := a; b.Created = 8; return generation("cluster", b) },
		"an old copy":           func() legacy.GenerationID { b := a; b.Rewound = 3; return generation("cluster", b) },
		"an old copy, again":    func() legacy.GenerationID { b := a; b.Rewound = 9; return generation("cluster", b) },
		"another cluster":       func() legacy.GenerationID { return generation("clusterg", a) },
	} {
		id := make1()
		if other, there := seen[id]; there {
			t.Errorf("%s has the generation of %s", what, other)
		}
		seen[id] = what
	}
}
