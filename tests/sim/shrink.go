package sim

// Shrink looks for a smaller schedule that breaks the same rule: it leaves out faults, guests and disturbances for as
// long as it goes on failing. tries bounds the schedules that it lives through. Leaving something out gives all that
// follows other delays; so each candidate has some environments to fail in.
func Shrink(p Plan, m *Mutant, check string, tries int) Plan {
	const salts = 6
	fails := func(c Plan) (Plan, bool) {
		for salt := range uint64(salts) {
			if tries <= 0 {
				return c, false
			}
			tries--
			d := c
			d.Salt = p.Salt + salt
			w := NewWorld(d, m, false)
			if w.Run() != nil && w.failed.Check == check {
				// Whatever would have come later is not needed.
				for len(d.Faults) > 0 && d.Faults[len(d.Faults)-1].At > w.failed.At {
					d.Faults = d.Faults[:len(d.Faults)-1]
				}
				return d, true
			}
		}
		return c, false
	}
	best, ok := fails(p)
	if !ok {
		return p
	}
	take := func(c Plan) bool {
		d, ok := fails(c)
		if ok {
			best = d
		}
		return ok
	}
	for smaller := true; smaller && tries > 0; {
		smaller = false
		for chunk := max(1, len(best.Faults)/2); chunk >= 1; chunk /= 2 {
			for from := 0; from+chunk <= len(best.Faults); {
				c := best
				c.Faults = append(append([]Fault(nil), best.Faults[:from]...), best.Faults[from+chunk:]...)
				if take(c) {
					smaller = true
				} else {
					from += chunk
				}
			}
		}
		if best.Guests > 1 {
			c := best
			c.Guests = 1
			smaller = take(c) || smaller
		}
		for bit := Calm(1); bit < calmAll; bit <<= 1 {
			if best.Calm&bit == 0 {
				c := best
				c.Calm |= bit
				smaller = take(c) || smaller
			}
		}
		if n := len(best.Faults); n > 0 {
			c := best
			c.Length = best.Faults[n-1].At + 1
			if c.Length < best.Length {
				smaller = take(c) || smaller
			}
		}
	}
	return best
}
