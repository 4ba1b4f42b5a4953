// Package layout checks the house plan of ARCHITECTURE.md: which room may know of which.
package layout

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/pollux-ha/pollux/"

type pkg struct {
	ImportPath string
	Imports    []string
	Deps       []string
	CgoFiles   []string
	Standard   bool
}

// list runs go list on the product's packages, and all that they depend on.
func list(t *testing.T) map[string]pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-deps", "-json=ImportPath,Imports,Deps,CgoFiles,Standard", module+"...")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=1") // so that cgo files count where there are any
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	pkgs := make(map[string]pkg)
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return pkgs
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs[p.ImportPath] = p
	}
}

func in(path, room string) bool {
	return path == module+room || strings.HasPrefix(path, module+room+"/")
}

// Dependencies run one way: a room may not know, not even by way of another, of the rooms named here.
func TestRoomsDependOneWay(t *testing.T) {
	forbidden := map[string][]string{
		"vmm":          {"checkpoint", "lockstep", "replica", "cluster", "fencing", "audit", "console", "cmd"},
		"checkpoint":   {"lockstep", "replica", "fencing", "audit", "console", "cmd"},
		"lockstep":     {"replica", "console", "cmd"},
		"replica":      {"console", "cmd"},
		"cluster":      {"vmm", "checkpoint", "lockstep", "replica", "cmd"},
		"cluster/pact": {"vmm", "checkpoint", "lockstep", "replica", "fencing", "audit", "console", "cmd"},
		"audit":        {"vmm", "checkpoint", "lockstep", "replica", "cluster", "console", "cmd"},
		"console":      {"vmm", "checkpoint", "lockstep", "replica", "cmd"},
	}
	for path, p := range list(t) {
		for room, others := range forbidden {
			if !in(path, room) {
				continue
			}
			for _, dep := range p.Deps {
				if dep == module+"vmm/cpu" && room != "cluster/pact" {
					continue // arithmetic on CPUID as data: the cluster refuses a host that can't run a guest
				}
				for _, other := range others {
					if in(dep, other) {
						t.Errorf("%s depends on %s: %s must not know of %s", path, dep, room, other)
					}
				}
			}
		}
	}
}

// The decisions are pure: no I/O, no clock, no goroutines, no chance.
func TestCoresArePure(t *testing.T) {
	cores := []string{"cluster/pact", "lockstep/core", "replica/core", "vmm/cpu"}
	impure := []string{"os", "net", "time", "sync", "sync/atomic", "context", "math/rand", "math/rand/v2", "crypto/rand", "io/fs", "os/exec", "syscall"}
	pkgs := list(t)
	for _, core := range cores {
		p, ok := pkgs[module+core]
		if !ok {
			t.Errorf("%s is not there", core)
		}
		for _, imp := range p.Imports {
			if slices.Contains(impure, imp) {
				t.Errorf("%s imports %s", core, imp)
			}
		}
	}
}

// The product is one static binary: nothing that it links is built with cgo.
func TestNoCgo(t *testing.T) {
	for path, p := range list(t) {
		if len(p.CgoFiles) > 0 && !p.Standard {
			t.Errorf("%s uses cgo", path)
		}
	}
}
