package main

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"countersign/appliance"
	"countersign/appliance/httpapi"
	"countersign/appliance/keyring"
	"countersign/appliance/store"
	"countersign/cmd/internal/cli"
	"countersign/cmd/internal/config"
)

// daemon is the appliance on its listeners.
type daemon struct {
	*parts
	keys      *keyring.Keyring
	appliance *appliance.Appliance
	identity  *httpapi.Identity
	listeners listeners
	config    *config.Appliance
	storeDir  string
	loaded    chan struct{} // closed when there is an appliance
}

// errOtherDomain: config.toml names another trust domain than init made.
var errOtherDomain = errors.New("another trust domain")

// newDaemon opens the listeners and, unless the HSM is locked, loads keys and
// policy; nothing is served yet.
func newDaemon(ctx context.Context, cfg *config.Appliance, p *parts) (d *daemon, err error) {
	d = &daemon{parts: p, config: cfg, storeDir: filepath.Dir(cfg.Store.Path), loaded: make(chan struct{})}
	if d.listeners, err = listen(ctx, cfg); err != nil {
		return nil, err
	}
	if d.locked() {
		return d, nil
	}
	if err = d.load(ctx); err != nil {
		d.listeners.close()
		return nil, err
	}
	close(d.loaded)
	return d, nil
}

// load makes the appliance from what store and token hold.
func (d *daemon) load(ctx context.Context) (err error) {
	cfg := d.config
	if d.keys, err = keyring.Load(ctx, d.token, d.store); err != nil {
		return err
	}
	if domain := d.keys.Domain(); domain != cfg.Trust.Domain {
		return fmt.Errorf("%w: trust.domain is %q, the store's is %q", errOtherDomain, cfg.Trust.Domain, domain)
	}
	d.appliance, err = appliance.New(ctx, appliance.Config{
		Store: d.store, Keys: d.keys, Logger: d.log, Metrics: d.metrics, Attest: attestBy(cfg.UV),
	})
	if err != nil {
		return err
	}
	if d.identity, err = httpapi.NewIdentity(ctx, d.keys, tlsNames(cfg.API), d.log); err != nil {
		return err
	}
	return d.writeCA(ctx, filepath.Join(cfg.StateDir, "ca.pem"))
}

// writeCA writes the authorities for devices that enrol: relayd enrol --ca.
func (d *daemon) writeCA(ctx context.Context, path string) error {
	authorities, err := d.keys.Authorities(ctx, time.Now())
	if err != nil {
		return err
	}
	var text []byte
	for _, cert := range authorities {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})...)
	}
	if err := os.WriteFile(path, text, 0o644); err != nil { //nolint:gosec // it is public
		return cli.Fail(cli.IO, err, "state_dir must be writable")
	}
	return nil
}

func tlsNames(api config.API) []string {
	names := append([]string{}, api.Names...)
	for _, ip := range api.IPs {
		names = append(names, ip.String())
	}
	return names
}

// run serves until ctx ends.
func (d *daemon) run(ctx context.Context) error {
	if d.locked() {
		return d.runLocked(ctx)
	}
	return d.runServers(ctx, d.apiServer(), d.adminServer(d.adminHandler()), d.opsServer())
}

// runServers is what is done while there is an appliance.
func (d *daemon) runServers(ctx context.Context, servers ...httpapi.Server) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		d.appliance.Run(ctx)
	}()
	go d.identity.Run(ctx)
	go d.watchDisk(ctx, stop)
	err := httpapi.Serve(ctx, d.log, servers...)
	stop(nil)
	<-finished
	if cause := context.Cause(ctx); err == nil && !errors.Is(cause, context.Canceled) {
		err = cause
	}
	return err
}

// watchDisk stops the daemon when an fsync failed: what is on the disk is unknown
// then, and only a new process can find out.
func (d *daemon) watchDisk(ctx context.Context, stop context.CancelCauseFunc) {
	select {
	case err := <-d.store.Fatal():
		stop(fmt.Errorf("%w: %w", errDisk, err))
	case <-ctx.Done():
	}
}

func (d *daemon) checks() map[string]httpapi.Check {
	return map[string]httpapi.Check{
		"store": d.storeReady,
		"hsm": func(context.Context) error {
			if d.token.Ready() {
				return nil
			}
			return d.tokenError()
		},
	}
}

// leastFree is the room that commits need; with less the daemon is not ready.
const leastFree = 1 << 20

// storeReady: the store answers, and the disk below it has room for commits.
func (d *daemon) storeReady(ctx context.Context) error {
	var disk unix.Statfs_t
	if err := unix.Statfs(d.storeDir, &disk); err != nil {
		return fmt.Errorf("%s: %w", d.storeDir, err)
	}
	if free := disk.Bavail * uint64(disk.Bsize); free < leastFree {
		return fmt.Errorf("%s: %d bytes free, want %d: %w", d.storeDir, free, leastFree, store.ErrUnavailable)
	}
	_, err := d.store.ActivePolicy(ctx)
	return err
}

// startTimeout bounds everything before the listeners answer.
const startTimeout = 30 * time.Second
