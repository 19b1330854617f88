// Package dev runs a whole installation on loopback for development and tests: a SoftHSM token, a store, a trust
// domain, the appliance and a relay, all in one directory. It continues with a directory that it used before.
package dev

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"countersign/internal/config"
	"countersign/internal/durable"
	"countersign/protocol/enrol"
)

var (
	// ErrInUse means that another process runs in the directory.
	ErrInUse = errors.New("directory is in use by another countersignd dev")
	// ErrForeign means that the directory has files of an appliance that this package did not create.
	ErrForeign = errors.New("directory holds a store or a PIN that countersignd dev did not make")
)

// Options are the command-line flags.
type Options struct {
	Dir          string
	Module       string // PKCS#11 module, "" is SoftHSM itself
	SecondModule string // of a second token; "" is none
	Recipient    string // file of the public backup key; "" is none
	RelayBinary  string // path of relayd
	ProbeBinary  string // path of hsm-probe, which initializes tokens
	StartTimeout time.Duration
}

// Daemon is an appliance on its listeners.
type Daemon interface {
	APIAddr() string
	OpsAddr() string
	// Device returns store.ErrNotFound if no device of this name is enrolled.
	Device(ctx context.Context, name string) error
	// InviteDevice returns an activation code for a new device.
	InviteDevice(ctx context.Context, name, display string) (enrol.ActivationCode, error)
	Run(ctx context.Context) error
	Close() error
}

// Start opens an appliance. It creates keys, store and trust domain if there are none.
type Start func(ctx context.Context, cfg *config.Appliance) (Daemon, error)

// info is DIR/dev.json. It exists while everything runs.
type info struct {
	URL     string `json:"url"`
	CA      string `json:"ca"`
	Link    string `json:"link"`
	Admin   string `json:"admin"`
	Ops     string `json:"ops"`
	Hooklog string `json:"hooklog"`
}

// dir is a directory with its lock.
type dir struct {
	Options
	lock io.Closer // nil: not taken
}

func (d *dir) path(elements ...string) string {
	return filepath.Join(append([]string{d.Dir}, elements...)...)
}

// Run starts everything in a directory and serves until ctx or the relay ends.
func Run(ctx context.Context, o Options, start Start) (err error) {
	d := &dir{Options: o}
	if d.Dir, err = filepath.Abs(o.Dir); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.removeInfo()) }()
	starting, cancel := context.WithTimeout(ctx, o.StartTimeout)
	defer cancel()
	daemon, err := d.start(starting, start)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, daemon.Close()) }()
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	served := make(chan error, 1)
	go func() { served <- daemon.Run(ctx) }()
	relay, err := d.startRelay(starting, daemon)
	if relay != nil {
		defer relay.stop()
	}
	if err == nil {
		err = d.writeInfo(daemon, relay.link)
	}
	if err != nil {
		stop(err)
		<-served
		return err
	}
	return wait(ctx, stop, served, relay)
}

func wait(ctx context.Context, stop context.CancelCauseFunc, served chan error, relay *relay) error {
	select {
	case err := <-served:
		return err
	case err := <-relay.done:
		relay.done <- err
		stop(nil)
		<-served
		return fmt.Errorf("the relay ended by itself: %w", cmp.Or(err, errEnded))
	case <-ctx.Done():
		relay.stop()
		relay.done <- nil
		return <-served
	}
}

// start prepares the directory and the token, and opens the appliance.
func (d *dir) start(ctx context.Context, start Start) (Daemon, error) {
	if err := d.take(); err != nil {
		return nil, err
	}
	if err := errors.Join(os.RemoveAll(d.path("dev.json")), d.removeUnfinished()); err != nil {
		return nil, err
	}
	softhsm, err := d.initTokens(ctx, d.SecondModule != "")
	if err != nil {
		return nil, err
	}
	d.Module = cmp.Or(d.Module, softhsm)
	cfg := d.config()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	daemon, err := start(ctx, cfg)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(d.path(readyMark), nil, 0o600); err != nil {
		return nil, errors.Join(err, daemon.Close())
	}
	return daemon, nil
}

// Config returns the configuration of a directory.
func Config(path string) (*config.Appliance, error) {
	path, err := filepath.Abs(path)
	return (&dir{Options: Options{Dir: path}}).config(), err
}

// Take returns the configuration of a directory that Run used before. It locks the directory until the process ends,
// and makes the token available to this process.
func Take(ctx context.Context, path string) (*config.Appliance, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	d := &dir{Options: Options{Dir: path}}
	if _, err := os.Lstat(d.path(readyMark)); errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", path, ErrForeign)
	}
	if err := d.take(); err != nil {
		return nil, err
	}
	d.Module, err = d.initTokens(ctx, false)
	return d.config(), err
}

func (d *dir) config() *config.Appliance {
	cfg := config.DefaultAppliance()
	cfg.StateDir = d.Dir
	cfg.HSM.Module, cfg.HSM.TokenLabel = d.Module, tokenLabel
	cfg.HSM.Pin = config.Secret{Source: "file", Path: d.path("pin")}
	if d.SecondModule != "" {
		cfg.HSM.Second = config.Token{
			Module: d.SecondModule, TokenLabel: secondLabel, Pin: config.Secret{Source: "file", Path: d.path("pin" + secondSuffix)},
		}
	}
	cfg.Store.Path, cfg.Admin.Socket = d.path("countersign.db"), d.path("admin.sock")
	cfg.API.Listen, cfg.API.Names = "127.0.0.1:0", []string{"localhost"}
	cfg.API.IPs = []netip.Addr{netip.MustParseAddr("127.0.0.1")}
	cfg.Ops.Listen = "127.0.0.1:0"
	cfg.Trust.Domain = "dev.countersign.example"
	cfg.Backup.Recipient = d.Recipient
	return &cfg
}

// take locks the directory until the process ends. The lock file also marks a directory that this package created: it
// touches no other.
func (d *dir) take() error {
	if err := os.MkdirAll(d.Dir, 0o700); err != nil {
		return err
	}
	if _, err := os.Stat(d.path("lock")); errors.Is(err, os.ErrNotExist) {
		for _, name := range []string{"pin", "countersign.db"} {
			if _, err := os.Lstat(d.path(name)); !errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("%s: %w", d.Dir, ErrForeign)
			}
		}
	}
	lock, err := durable.Lock(d.path("lock"))
	if errors.Is(err, durable.ErrLocked) {
		return fmt.Errorf("%s: %w", d.Dir, ErrInUse)
	}
	d.lock = lock
	return err
}

// readyMark is a file that is written when token, store and trust domain are complete. Without it a first start was
// interrupted, and the contents of the directory were never used.
const readyMark = "initialized"

func (d *dir) removeUnfinished() error {
	if _, err := os.Stat(d.path(readyMark)); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	for _, name := range []string{
		"pin", "so-pin", "pin" + secondSuffix, "so-pin" + secondSuffix, "token",
		"countersign.db", "countersign.db-wal", "countersign.db-shm", "anchor", "relay",
	} {
		if err := os.RemoveAll(d.path(name)); err != nil {
			return err
		}
	}
	return nil
}

// removeInfo removes dev.json, but from no directory that this process does not own.
func (d *dir) removeInfo() error {
	if d.lock == nil {
		return nil
	}
	return os.RemoveAll(d.path("dev.json"))
}

// writeInfo writes dev.json in one step, once everything is ready.
func (d *dir) writeInfo(daemon Daemon, link string) error {
	i := info{
		URL: "https://" + daemon.APIAddr(), CA: d.path("ca.pem"), Link: link,
		Admin: "unix:" + d.path("admin.sock"), Ops: "http://" + daemon.OpsAddr(), Hooklog: d.path("hook.log"),
	}
	hooklog, err := os.OpenFile(i.Hooklog, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	raw, err := json.MarshalIndent(i, "", "  ")
	if err := errors.Join(err, hooklog.Close()); err != nil {
		return err
	}
	return durable.Publish(d.path("dev.json"), append(raw, '\n'), 0o600)
}
