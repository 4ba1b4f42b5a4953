package scenario

import (
	"context"
	"fmt"
	"strings"
	"testing"
)

// A Debian server boots to a login, protected, reboots protected, and shuts down on its power button.
func TestBoots(t *testing.T) {
	for _, o := range []options{{cpus: 1}, {cpus: 2}, {cpus: 4, memory: 4096}, {cpus: 1, uefi: true}} {
		o.protectedBoot = true
		name := fmt.Sprintf("%d-cpu", o.cpus)
		if o.uefi {
			name += "-uefi"
		}
		t.Run(name, func(t *testing.T) { boots(newStage(t, o), o) })
	}
}

func boots(s *stage, o options) {
	ctx, cancel := context.WithTimeout(s.Context(), 2*patience)
	defer cancel()
	out, err := s.ssh(ctx, "nproc; cat /proc/sys/kernel/random/boot_id; systemctl is-system-running --wait; systemd-analyze | head -n 1")
	s.must("the system is up", err)
	said := strings.Split(out, "\n")
	s.Log(said)
	if said[0] != fmt.Sprint(o.cpus) {
		s.Errorf("the guest has %s CPUs, not %d", said[0], o.cpus)
	}
	before, err := s.cluster.Status(ctx, guestName)
	s.must("it has a status", err)

	_, err = s.ssh(ctx, "systemd-run --quiet --on-active=1 systemctl reboot")
	s.must("it is told to reboot", err)
	s.eventually("it has rebooted", func(ctx context.Context) error {
		id, err := s.ssh(ctx, "cat /proc/sys/kernel/random/boot_id")
		if err == nil && strings.TrimSpace(id) == said[1] {
			return fmt.Errorf("it is the same boot")
		}
		return err
	})
	s.protected()
	after, err := s.cluster.Status(ctx, guestName)
	s.must("it has a status", err)
	if after.Primary != before.Primary || after.Replica != before.Replica || after.Term != before.Term {
		s.Errorf("a reboot is the guest's own affair, and yet primary, replica and term went from %s, %s, %d to %s, %s, %d",
			before.Primary, before.Replica, before.Term, after.Primary, after.Replica, after.Term)
	}
	s.stopGuest()
}
