package cpu

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// fixtures are the processors under testdata, the oldest of each vendor first.
var fixtures = []string{"sandybridge", "skylake-sp", "icelake-sp", "zen2", "zen3", "zen4"}

// allMSRs is a KVM that has every register.
func allMSRs() (s MSRSet) {
	for _, r := range MSRs {
		s.Add(r.Index)
	}
	return s
}

// fixture reads a processor: lines of "key value", and of CPUID: function, index, EAX, EBX, ECX, EDX.
func fixture(t testing.TB, name string) Host {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name+".cpuid"))
	if err != nil {
		t.Fatal(err)
	}
	facts := Facts{TSCDeadline: true, MSRs: allMSRs(), Kernel: "6.12.0", Microcode: "0x1"}
	var leaves []Leaf
	for i, line := range strings.Split(strings.TrimSpace(string(b)), "\n") {
		key, value, _ := strings.Cut(line, " ")
		n, numberErr := strconv.ParseUint(value, 0, 64)
		switch key {
		case "#":
			continue
		case "brand":
			facts.Brand, numberErr = value, nil
		case "tsc":
			facts.TSCKHz = int(n)
		case "scaling":
			facts.TSCScaling = n == 1
		case "events":
			facts.Events = Events(n)
		case "archcaps":
			facts.ArchCaps, numberErr = strconv.ParseUint(value, 16, 64)
		default:
			numberErr = nil
			var l Leaf
			if _, err := fmt.Sscanf(line, "%x %x %x %x %x %x", &l.Function, &l.Index, &l.EAX, &l.EBX, &l.ECX, &l.EDX); err != nil {
				t.Fatalf("%s:%d: %v", name, i+1, err)
			}
			switch l.Function {
			case 4, 7, 0xd, 0x8000_001d:
				l.Indexed = true
			}
			leaves = append(leaves, l)
		}
		if numberErr != nil {
			t.Fatalf("%s:%d: %v", name, i+1, numberErr)
		}
	}
	h, err := FromLeaves(leaves, facts)
	if err != nil {
		t.Fatal(err)
	}
	h.Name = name
	return h
}

func hosts(t testing.TB, names ...string) []Host {
	var list []Host
	for _, n := range names {
		list = append(list, fixture(t, n))
	}
	return list
}
