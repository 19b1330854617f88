package dev

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
	"strings"
	"time"

	"countersign/appliance/store"
)

// The authorization device.
const (
	deviceName    = "dev-relay"
	deviceDisplay = "Countersign dev box" // 19 bytes
)

// relay is a relayd process. It ends with its standard input, so it cannot outlive this process.
type relay struct {
	cmd   *exec.Cmd
	stdin io.Closer
	done  chan error
	link  string
}

// startRelay enrols the relay, unless it is enrolled, and starts it.
func (d *dir) startRelay(ctx context.Context, daemon Daemon) (*relay, error) {
	url := "https://" + daemon.APIAddr()
	if err := d.enrolRelay(ctx, daemon, url); err != nil {
		return nil, fmt.Errorf("enrolling the relay: %w", err)
	}
	config := d.path("relay", "relay.toml")
	if err := os.WriteFile(config, []byte(d.relayConfig(url)), 0o600); err != nil {
		return nil, err
	}
	ready := d.path("relay", "ready.json")
	if err := os.Remove(ready); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	r := &relay{
		cmd:  exec.Command(d.RelayBinary, "serve", "--config", config, "--ready-file", ready, "--exit-on-stdin-eof"),
		done: make(chan error, 1),
	}
	r.cmd.Stderr = os.Stderr
	var err error
	if r.stdin, err = r.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	if err := r.cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting relayd: %w", err)
	}
	go func() { r.done <- r.cmd.Wait() }()
	return r, r.waitReady(ctx, ready)
}

func (d *dir) enrolRelay(ctx context.Context, daemon Daemon, url string) error {
	state := d.path("relay")
	if err := daemon.Device(ctx, deviceName); !errors.Is(err, store.ErrNotFound) {
		return err
	}
	if err := errors.Join(os.RemoveAll(state), os.Mkdir(state, 0o700)); err != nil {
		return err
	}
	code, err := daemon.InviteDevice(ctx, deviceName, deviceDisplay)
	if err != nil {
		return err
	}
	enrol := exec.CommandContext(ctx, d.RelayBinary, "enrol", "--url", url, "--ca", d.path("ca.pem"), "--state", state)
	enrol.Stdin = strings.NewReader(code.String() + "\n") // no other user sees it
	out, err := enrol.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// relayConfig returns relay.toml: it accepts every service, and its hook appends each event to hook.log.
func (d *dir) relayConfig(url string) string {
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
`, d.path("relay"), url, d.path("ca.pem"), d.path("hook.log"))
}

var errEnded = errors.New("exit status 0")

// readyPoll is the time between two looks for the ready file.
const readyPoll = 5 * time.Millisecond

func (r *relay) waitReady(ctx context.Context, path string) error {
	ticker := time.NewTicker(readyPoll)
	defer ticker.Stop()
	for {
		if raw, err := os.ReadFile(filepath.Clean(path)); err == nil {
			var ready struct {
				Link string `json:"link"`
			}
			err := json.Unmarshal(raw, &ready)
			r.link = ready.Link
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

// stopTimeout is the time that the relay has to end by itself.
const stopTimeout = 1500 * time.Millisecond

func (r *relay) stop() {
	_ = r.stdin.Close() // an error means that it ended already
	select {
	case <-r.done:
	case <-time.After(stopTimeout):
		_ = r.cmd.Process.Kill()
		<-r.done
	}
}
