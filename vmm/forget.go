package vmm

import "fmt"

// ForgetDirty is Pause.Forget for a machine that does not run: whoever knows that the memory is
// somewhere else already, as after a switchover, begins with an empty record.
func (m *Machine) ForgetDirty() error {
	m.Lock()
	defer m.Unlock()
	if err := m.mustBeIdle(); err != nil {
		return fmt.Errorf("forget what was written: %w", err)
	}
	if _, _, err := m.dirty.harvest(m); err != nil {
		return err
	}
	return m.dirty.clear(m)
}
