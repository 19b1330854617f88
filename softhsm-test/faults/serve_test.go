package faults

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"

	"countersign/softhsm-test/harness"
)

// service is `countersignd serve` on what the stage's appliance, which was stopped,
// has left: token, store, phones.
type service struct {
	*harness.Daemon
	call harness.Call
	url  string
	ops  *ops
}

const serveTOML = `state_dir = %q
[hsm]
module = %q
token_label = "countersign-dev"
pin = { source = "file", path = %q }
sessions = %d
[api]
listen = %q
[ops]
listen = %q
[trust]
domain = "dev.countersign.example"
`

func (s *stage) state() string   { return s.Config.Dir }
func (s *stage) pinFile() string { return filepath.Join(s.state(), "pin") }

// service writes a configuration with so many sessions for each of the two workers.
// Nothing is started.
func (s *stage) service(sessions int) *service {
	harness.Must(s.Stop())
	addresses := []string{harness.FreeAddress(), harness.FreeAddress()}
	path := filepath.Join(s.dir, "serve.toml")
	text := fmt.Sprintf(serveTOML, s.state(), s.Module, s.pinFile(), sessions, addresses[0], addresses[1])
	v := &service{url: "https://" + addresses[0], call: harness.Call{
		Program: "countersignd", Args: []string{"serve", "--config", path},
		Env: append(s.Env(), "SOFTHSM2_CONF="+filepath.Join(s.state(), "softhsm2.conf")),
	}}
	v.ops = newOps("http://"+addresses[1], 0)
	harness.Do(os.WriteFile(path, []byte(text), 0o600))
	return v
}

// start starts it, waits until it is ready and sends all customers there, past any relay.
func (v *service) start(ctx context.Context, s *stage) (err error) {
	if v.Daemon, err = s.Config.Bin.Start(v.call); err != nil {
		return err
	}
	v.ops.pid = v.PID()
	err = harness.Until(ctx, "countersignd serve", func() (bool, error) {
		if !v.Running() {
			return false, fmt.Errorf("it ended: %s", v.Log())
		}
		status, _, err := v.ops.get(ctx, "/readyz")
		return err == nil && status == http.StatusOK, nil // the port is closed at first
	})
	if err != nil {
		return err
	}
	for i := range s.gates {
		s.gates[i].Close()
		s.gates[i] = s.gates[i].At(v.url)
	}
	for i, c := range s.customers {
		c.way = &overAPI{gate: s.gates[i%len(s.gates)], journal: s.journal}
	}
	return nil
}
