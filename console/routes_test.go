package console

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/pollux-ha/pollux/cluster/access"
)

// Who may ask what. Whoever adds an endpoint decides it here, too.
var allowed = map[string]string{
	"GET /api/v1/status":                    "viewer auditor operator administrator",
	"GET /api/v1/guests":                    "viewer auditor operator administrator",
	"POST /api/v1/guests":                   "administrator",
	"GET /api/v1/guests/{name}":             "viewer auditor operator administrator",
	"DELETE /api/v1/guests/{name}":          "administrator",
	"POST /api/v1/guests/{name}/start":      "operator administrator",
	"POST /api/v1/guests/{name}/stop":       "operator administrator",
	"POST /api/v1/guests/{name}/switchover": "operator administrator",
	"POST /api/v1/guests/{name}/protect":    "operator administrator",
	"POST /api/v1/guests/{name}/reset":      "operator administrator",
	"POST /api/v1/guests/{name}/dump":       "administrator",
	"POST /api/v1/guests/{name}/fault":      "administrator",
	"POST /api/v1/guests/{name}/agent":      "operator administrator",
	"POST /api/v1/guests/{name}/balloon":    "operator administrator",
	"POST /api/v1/guests/{name}/cpu":        "administrator",
	"POST /api/v1/tokens":                   "administrator",
	"DELETE /api/v1/members/{name}":         "administrator",
	"POST /api/v1/members/{name}/reset":     "operator administrator",
	"GET /api/v1/fence":                     "viewer auditor operator administrator",
	"POST /api/v1/fence/test":               "administrator",
	"GET /api/v1/events":                    "auditor operator administrator",
	"GET /api/v1/certificates":              "viewer auditor operator administrator",
	"POST /api/v1/certificates/renew":       "administrator",
	"GET /api/v1/users":                     "auditor administrator",
	"POST /api/v1/users":                    "administrator",
	"DELETE /api/v1/users/{name}":           "administrator",
	"GET /livez":                            "anybody",
	"GET /readyz":                           "viewer auditor operator administrator",
	"/":                                     "viewer auditor operator administrator",
}

func TestEveryEndpointHasItsRoles(t *testing.T) {
	seen := map[string]bool{}
	for _, e := range (&Server{}).endpoints() {
		var roles []string
		for _, r := range e.allow {
			if !r.Valid() {
				t.Errorf("%s: there is no role %q", e.pattern, r)
			}
			roles = append(roles, string(r))
		}
		got := strings.Join(roles, " ")
		if e.open {
			got = strings.TrimSpace("anybody " + got)
		}
		switch want, ok := allowed[e.pattern]; {
		case got == "":
			t.Errorf("%s has no role: nobody can ask it but at the Unix socket", e.pattern)
		case !ok:
			t.Errorf("%s (%s) is new: decide here who may ask it", e.pattern, got)
		case got != want:
			t.Errorf("%s is for %q, decided was %q", e.pattern, got, want)
		}
		if e.answer == nil || seen[e.pattern] {
			t.Errorf("%s is there twice, or has no answer", e.pattern)
		}
		seen[e.pattern] = true
		// Nobody who only looks may change anything.
		if !strings.HasPrefix(e.pattern, "GET ") && e.pattern != "/" && (slices.Contains(e.allow, access.Viewer) || slices.Contains(e.allow, access.Auditor)) {
			t.Errorf("%s changes something, and is for %s", e.pattern, got)
		}
	}
	for pattern := range allowed {
		if !seen[pattern] {
			t.Errorf("%s is not there any more", pattern)
		}
	}
}

// There is no way into this package's answers but through the table.
func TestTheTableIsTheOnlyWayIn(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, b, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			s, ok := n.(*ast.SelectorExpr)
			if !ok || !slices.Contains([]string{"HandleFunc", "Handle", "DefaultServeMux", "ListenAndServe", "ListenAndServeTLS"}, s.Sel.Name) {
				return true
			}
			found++
			if name != "routes.go" {
				t.Errorf("%s uses %s beside the table in routes.go", name, s.Sel.Name)
			}
			return true
		})
	}
	if found != 1 {
		t.Errorf("%d ways in, there should be one", found)
	}
}
