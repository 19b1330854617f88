package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"countersign/appliance"
	"countersign/appliance/store"
)

// Of the authorization device that dev runs.
const (
	devDevice  = "dev-relay"
	devDisplay = "Countersign dev box" // 19 bytes
)

// devRelay is a relayd process; it ends with its standard input, so that it
// outlives this process in no case.
type devRelay struct {
	cmd   *exec.Cmd
	stdin io.Closer
	done  chan error
	Link  string
}

// startRelay enrols the relay, unless it is, and starts it.
func (d *dev) startRelay(ctx context.Context) (*devRelay, error) {
	binary, err := siblingOr("", "relayd")
	if err != nil {
		return nil, err
	}
	if err := d.enrolRelay(ctx, binary); err != nil {
		return nil, fmt.Errorf("enrolling the relay: %w", err)
	}
	config := d.path("relay", "relay.toml")
	if err := os.WriteFile(config, []byte(d.relayConfig()), 0o600); err != nil {
		return nil, err
	}
	ready := d.path("relay", "ready.json")
	if err := os.Remove(ready); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	r := &devRelay{cmd: exec.Command(binary, "serve", "--config", config, "--ready-file", ready, "--exit-on-stdin-eof"), done: make(chan error, 1)}
	r.cmd.Stderr = os.Stderr
	if r.stdin, err = r.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	if err := r.cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting relayd: %w", err)
	}
	go func() { r.done <- r.cmd.Wait() }()
	return r, r.waitReady(ctx, ready)
}

func (d *dev) enrolRelay(ctx context.Context, binary string) error {
	state := d.path("relay")
	if _, err := d.daemon.appliance.DeviceNamed(ctx, devDevice); !errors.Is(err, store.ErrNotFound) {
		return err
	}
	if err := os.RemoveAll(state); err != nil {
		return err
	}
	if err := os.Mkdir(state, 0o700); err != nil {
		return err
	}
	code, _, err := d.daemon.appliance.Invite(ctx, appliance.Invite{Kind: store.KindDevice, Name: devDevice, Display: devDisplay})
	if err != nil {
		return err
	}
	out, err := exec.CommandContext(ctx, binary, "enrol", "--url", d.url(), "--ca", d.path("ca.pem"), "--state", state, code.String()).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// relayConfig is the relay's relay.toml: every service, and a hook that appends
// what it is told to hook.log.
func (d *dev) relayConfig() string {
	return fmt.Sprintf(`state_dir = %q
accept = [100, 200, 300]
[appliance]
url = %q
ca = %q
[[link]]
type = "wire"
listen = "tcp:127.0.0.1:0"
[hook]
command = ["/bin/sh", "-c", "cat >> \"$0\"", %q]
[log]
level = "info"
`, d.path("relay"), d.url(), d.path("ca.pem"), d.path("hook.log"))
}

var errEnded = errors.New("exit status 0")

// readyPoll is how often the ready file is looked for.
const readyPoll = 5 * time.Millisecond

func (r *devRelay) waitReady(ctx context.Context, path string) error {
	ticker := time.NewTicker(readyPoll)
	defer ticker.Stop()
	for {
		if raw, err := os.ReadFile(filepath.Clean(path)); err == nil {
			var ready struct {
				Link string `json:"link"`
			}
			err := json.Unmarshal(raw, &ready)
			r.Link = ready.Link
			return err
		}
		select {
		case err := <-r.done:
			r.done <- err
			return fmt.Errorf("relayd ended before it was ready: %w", cmp.Or(err, errEnded))
		case <-ctx.Done():
			return fmt.Errorf("waiting for relayd: %w", ctx.Err())
		case <-ticker.C:
		}
	}
}

// stopTimeout is what the relay has to end by itself.
const stopTimeout = 1500 * time.Millisecond

func (r *devRelay) stop() {
	_ = r.stdin.Close() // an error means that it is gone already
	select {
	case <-r.done:
	case <-time.After(stopTimeout):
		_ = r.cmd.Process.Kill()
		<-r.done
	}
}
