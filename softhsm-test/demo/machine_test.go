package demo

import (
	"context"

	"countersign/softhsm-test/harness"
)

// openMachine enrols a machine and starts it.
func (s *stage) openMachine(ctx context.Context, c harness.MachineConfig) *harness.Machine {
	c.Dir = s.dir
	m := harness.Must(s.OpenMachine(ctx, c))
	s.machines[m.Link] = c.Name
	return m
}

// stop stops a machine.
func stop(m *harness.Machine) { harness.Must(m.Stop()) }
