package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"countersign/softhsm-test/rig"
)

// machine is a further relayd. Its hook writes to a log of its own, unless the
// machine is jammed.
type machine struct {
	*rig.Daemon
	link, hooklog string
}

// machineConfig is what is particular to a machine.
type machineConfig struct {
	name   string
	keys   string // TOML, before all tables
	tables string // TOML, after all tables
}

const machineTOML = `state_dir = %q
%s
[appliance]
url = %q
ca = %q
[[link]]
type = "wire"
listen = "tcp:127.0.0.1:0"
[hook]
command = ["/bin/sh", "-c", "[ ! -e \"$0.jam\" ] && cat >> \"$0\"", %q]
%s`

// openMachine enrols a machine and starts it.
func (s *stage) openMachine(ctx context.Context, c machineConfig) (*machine, error) {
	code, err := s.Invite(ctx, "device", c.name)
	if err != nil {
		return nil, err
	}
	state := filepath.Join(s.dir, c.name)
	r, err := s.Config.Bin.Run(ctx, rig.Call{Program: "relayd", Args: []string{"enrol", "--url", s.URL, "--ca", s.CA, "--state", state, code}})
	if err != nil {
		return nil, err
	}
	s.demand(r.Code == 0, "relayd enrol: exit code %d: %s", r.Code, r.Stderr)
	m := &machine{hooklog: state + ".log"}
	if err := os.WriteFile(m.hooklog, nil, 0o600); err != nil {
		return nil, err
	}
	config, ready := state+".toml", state+".json"
	text := fmt.Sprintf(machineTOML, state, c.keys, s.URL, s.CA, m.hooklog, c.tables)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, err
	}
	m.Daemon, err = s.Config.Bin.Start(rig.Call{Program: "relayd", Args: []string{"serve", "--config", config, "--ready-file", ready}})
	if err != nil {
		return nil, err
	}
	if err := m.waitReady(ctx, ready); err != nil {
		return nil, errors.Join(err, m.Kill())
	}
	s.machines[m.link] = c.name
	return m, nil
}

func (m *machine) waitReady(ctx context.Context, path string) error {
	return rig.Until(ctx, "a machine", func() (bool, error) {
		raw, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) && m.Running() {
			return false, nil
		}
		if err != nil {
			return false, fmt.Errorf("%w: %s", err, m.Log())
		}
		var ready struct{ Link string }
		err = json.Unmarshal(raw, &ready)
		m.link = ready.Link
		return true, err
	})
}

// stop stops it and adds to err what goes wrong.
func (m *machine) stop(err *error) {
	_, stopErr := m.Stop()
	*err = errors.Join(*err, stopErr)
}

// jam makes every act fail, or no longer.
func (m *machine) jam(on bool) error {
	if on {
		return os.WriteFile(m.hooklog+".jam", nil, 0o600)
	}
	return os.Remove(m.hooklog + ".jam")
}

// acts reads the machine's hook log.
func (m *machine) acts() ([]rig.Act, error) { return rig.ReadActs(m.hooklog) }
