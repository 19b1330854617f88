package main

import (
	"context"
	"errors"

	"countersign/softhsm-test/harness"
)

// openMachine enrols a machine and starts it.
func (s *stage) openMachine(ctx context.Context, c harness.MachineConfig) (*harness.Machine, error) {
	c.Dir = s.dir
	m, err := s.OpenMachine(ctx, c)
	if err == nil {
		s.machines[m.Link] = c.Name
	}
	return m, err
}

// stop stops a machine and adds to err what goes wrong.
func stop(m *harness.Machine, err *error) {
	_, stopErr := m.Stop()
	*err = errors.Join(*err, stopErr)
}
