package confine

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
)

// Measure is one part of the confinement.
type Measure string

// The measures.
const (
	OwnFiles       Measure = "own-files"       // a root directory with nothing but what is the process's
	Limits         Measure = "limits"          // on resources
	OwnUser        Measure = "own-user"        // a user and a group that nobody else is
	NoCapabilities Measure = "no-capabilities" // and none to be gained
	SystemCalls    Measure = "system-calls"    // only those on the list
)

// Options say what a process keeps.
type Options struct {
	// User is the process's own user, and group, from now on; 0: it keeps the one that it has, and WithoutUser says why.
	User        uint32
	WithoutUser string
	// Groups are further groups of it.
	Groups []int
	// Root is an empty directory; what the process sees is put together there. Empty: the process has no mounts of
	// its own, and Without says why.
	Root    string
	Without string
	// Dirs are all that is to be seen, at the places where they are.
	Dirs []Dir
	// Kill ends the process at any call that is not on the list, and not only at those that no process of ours
	// could ever mean.
	Kill bool
}

// Dir is a directory that a confined process sees. Devices and programs in it are of no use there.
type Dir struct {
	Path     string // absolute
	Writable bool
}

// Lack is a measure that could not be taken.
type Lack struct {
	Measure Measure
	Reason  string
}

// Report tells which measures are in force.
type Report struct {
	Taken   []Measure
	Missing []Lack
}

// Err is an error that names what is missing, nil if nothing is.
func (r Report) Err() error {
	if len(r.Missing) == 0 {
		return nil
	}
	return errors.New("not confined as it should be: " + r.Gaps())
}

// Gaps are the missing measures with their reasons, in words; "": none.
func (r Report) Gaps() string {
	var all []string
	for _, l := range r.Missing {
		all = append(all, string(l.Measure)+" ("+l.Reason+")")
	}
	return strings.Join(all, ", ")
}

func (r *Report) note(m Measure, err error) {
	if err != nil {
		r.Missing = append(r.Missing, Lack{m, err.Error()})
		return
	}
	r.Taken = append(r.Taken, m)
}

// errHalf says that a measure broke off where the process can neither go on nor back.
var errHalf = errors.New("confinement broke off half way")

// Apply takes the measures, in an order in which none needs what an earlier one has taken away. An error means that the
// process must end; what this machine can't do is no error but in the report.
func Apply(o Options) (Report, error) {
	runtime.LockOSThread() // no_new_privs and the filter begin on one thread
	defer runtime.UnlockOSThread()
	var r Report
	hidden := hideFiles(o)
	if errors.Is(hidden, errHalf) {
		return r, hidden
	}
	r.note(OwnFiles, hidden)
	emptied := dropBounding()
	alone := become(o)
	if errors.Is(alone, errHalf) {
		return r, alone
	}
	r.note(OwnUser, alone)
	r.note(Limits, limit(alone == nil))
	r.note(NoCapabilities, errors.Join(emptied, dropCapabilities()))
	r.note(SystemCalls, restrictCalls(o.Kill))
	return r, nil
}

// namedErr says what was being done when the kernel refused.
func namedErr(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", what, err)
}
