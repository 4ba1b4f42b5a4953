package cpu

import (
	"errors"
	"fmt"
	"strings"
)

// Policy is how a guest's model is chosen.
type Policy string

const (
	Pair   Policy = "pair" // what all of the guest's hosts have
	HostP  Policy = "host" // all that the host has on which the guest starts
	Level2 Policy = "x86-64-v2"
	Level3 Policy = "x86-64-v3"
	Level4 Policy = "x86-64-v4"
)

// Policies lists them, the default first.
var Policies = []Policy{Pair, HostP, Level2, Level3, Level4}

// ParsePolicy reads a policy's name; "" is Pair.
func ParsePolicy(s string) (Policy, error) {
	if s == "" {
		return Pair, nil
	}
	var known []string
	for _, p := range Policies {
		if s == string(p) {
			return p, nil
		}
		known = append(known, string(p))
	}
	return "", fmt.Errorf("cpu = %q: one of %s", s, strings.Join(known, ", "))
}

func (p Policy) level() int {
	switch p {
	case Level2:
		return 2
	case Level3:
		return 3
	case Level4:
		return 4
	}
	return 0
}

// ErrRefused says that there is no model of that kind for these hosts.
var ErrRefused = errors.New("no CPU model fits")

// For computes the model of a guest that may run on these hosts, the first of which starts it. Its
// errors wrap ErrRefused and say which host lacks what.
func For(p Policy, hosts []Host) (Model, error) {
	if len(hosts) == 0 {
		return Model{}, fmt.Errorf("%w: no host is named", ErrRefused)
	}
	first := &hosts[0]
	all := first.Model
	khz := 0
	for i := range hosts {
		h := &hosts[i]
		if h.Vendor != first.Vendor {
			return Model{}, fmt.Errorf("%w: %s has a CPU of %s, %s one of %s: no guest can move between vendors",
				ErrRefused, first.Name, first.Vendor, h.Name, h.Vendor)
		}
		all = common(&all, &h.Model)
		if !h.TSCScaling && h.TSCKHz > 0 && (khz == 0 || h.TSCKHz < khz) {
			khz = h.TSCKHz // who can't scale decides
		}
	}
	if khz == 0 {
		khz = first.TSCKHz
	}
	m := all
	switch n := p.level(); {
	case n > 0:
		must, may := upTo(n)
		for _, h := range hosts {
			if lacks := must.Without(h.Features); !lacks.IsEmpty() {
				return Model{}, fmt.Errorf("%w: %s is not of %s: it lacks %s", ErrRefused, h.Name, p, lacks)
			}
		}
		m.Features = all.Features.And(must.Or(may))
		m.Brand = brand(m.Vendor, string(p))
		m.settle()
		if lacks := must.Without(m.Features); !lacks.IsEmpty() {
			return Model{}, fmt.Errorf("%w: the hosts keep the state of %s in different places: a guest of %s can't move between them", ErrRefused, lacks, p)
		}
	case p == HostP:
		m = first.Model
	}
	m.TSCKHz = khz
	for i := range hosts {
		if err := hosts[i].Check(&m); err != nil {
			hint := ""
			if p == HostP && len(hosts) > 1 {
				hint = "; --cpu pair gives the guest what all its hosts have"
			}
			return Model{}, fmt.Errorf("%w: %s %w%s", ErrRefused, hosts[i].Name, err, hint)
		}
	}
	return m, nil
}
