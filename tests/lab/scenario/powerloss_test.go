package scenario

import (
	"context"
	"testing"
)

// Both hosts lose power at once. The guest starts again from the disk of the last primary, and has all that it has
// acknowledged.
func TestPowerLossOfBothHosts(t *testing.T) {
	s := newStage(t, options{})
	s.databaseUp()
	w := s.startWriter()
	l := s.startLoad()
	l.more(60)
	w.more(30)
	primary, twin := s.hosts()
	// The replica first: what it has not yet written to its disk is lost as well, and the primary still runs for the moment
	// between the two.
	if err := twin.PowerCut(); err != nil {
		t.Fatal(err)
	}
	s.must("the plugs of both hosts are pulled", primary.PowerCut())
	files := w.acknowledged()

	s.coldStart(primary, twin)
	s.databaseUp()
	// The server has forgotten the connections, and says so as soon as pgbench sends something.
	<-l.over
	s.step("pgbench has seen its connections break")
	s.check(files)
	ctx, cancel := context.WithTimeout(s.Context(), 2*patience)
	defer cancel()
	l.check(ctx)
	s.amcheck(ctx)
	s.protected()

	again := s.startLoad()
	again.more(20)
	again.end()
	s.stopGuest()
	s.sound(s.disks())
}
