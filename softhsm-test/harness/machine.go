package harness

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Machine is another relayd, beside the one of `countersignd dev`. Its hook writes to a log of its
// own, unless the machine is jammed.
type Machine struct {
	*Daemon
	Link, Hooklog string
	bin           Bin
	state         string // path of its state directory, and of its files with a suffix
}

// MachineConfig configures a machine.
type MachineConfig struct {
	Dir    string // of everything that it keeps
	Name   string
	Keys   string // TOML, before all tables
	Tables string // TOML, after all tables
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

// OpenMachine enrols a machine and starts it.
func (a *Appliance) OpenMachine(ctx context.Context, c MachineConfig) (*Machine, error) {
	code, err := a.Invite(ctx, "device", c.Name)
	if err != nil {
		return nil, err
	}
	m := &Machine{bin: a.Config.Bin, state: filepath.Join(c.Dir, c.Name)}
	m.Hooklog = m.state + ".log"
	r, err := m.bin.Run(ctx, Call{Program: "relayd", Args: []string{"enrol", "--url", a.URL, "--ca", a.CA, "--state", m.state}, Stdin: code + "\n"})
	if err != nil {
		return nil, err
	}
	if r.Code != 0 {
		return nil, fmt.Errorf("relayd enrol: exit code %d: %s", r.Code, r.Stderr)
	}
	text := fmt.Sprintf(machineTOML, m.state, c.Keys, a.URL, a.CA, m.Hooklog, c.Tables)
	if err := errors.Join(os.WriteFile(m.Hooklog, nil, 0o600), os.WriteFile(m.state+".toml", []byte(text), 0o600)); err != nil {
		return nil, err
	}
	return m, m.Restart(ctx)
}

// Restart starts a machine that was stopped. Its link is another one.
func (m *Machine) Restart(ctx context.Context) (err error) {
	ready := m.state + ".json"
	if err := os.RemoveAll(ready); err != nil {
		return err
	}
	m.Daemon, err = m.bin.Start(Call{Program: "relayd", Args: []string{"serve", "--config", m.state + ".toml", "--ready-file", ready}})
	if err != nil {
		return err
	}
	if err := m.waitReady(ctx, ready); err != nil {
		return errors.Join(err, m.Kill())
	}
	return nil
}

func (m *Machine) waitReady(ctx context.Context, path string) error {
	return Until(ctx, "a machine", func() (bool, error) {
		raw, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) && m.Running() {
			return false, nil
		}
		if err != nil {
			return false, fmt.Errorf("%w: %s", err, m.Log())
		}
		var ready struct{ Link string }
		err = json.Unmarshal(raw, &ready)
		m.Link = ready.Link
		return true, err
	})
}

// Jam makes every act fail, or no longer.
func (m *Machine) Jam(on bool) error {
	if on {
		return os.WriteFile(m.Hooklog+".jam", nil, 0o600)
	}
	return os.Remove(m.Hooklog + ".jam")
}

// Acts reads the machine's hook log.
func (m *Machine) Acts() ([]Act, error) { return ReadActs(m.Hooklog) }
