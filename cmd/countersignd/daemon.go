package main

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"countersign/appliance"
	"countersign/appliance/httpapi"
	"countersign/appliance/keyring"
	"countersign/appliance/store"
	"countersign/internal/cli"
	"countersign/internal/config"

	"countersign/internal/durable"
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
	waits     bool          // started locked
	loaded    chan struct{} // closed when there is an appliance
	caFile    string
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
	if d.waits = d.locked(); d.waits {
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
	if d.keys, err = d.registry(ctx, d.pins()); err != nil {
		return err
	}
	if err := d.keys.SelfTest(ctx, time.Now()); err != nil {
		return err
	}
	if domain := d.keys.Domain(); domain != cfg.Trust.Domain {
		return fmt.Errorf("%w: trust.domain is %q, the store's is %q", errOtherDomain, cfg.Trust.Domain, domain)
	}
	d.appliance, err = appliance.New(ctx, appliance.Config{
		Store: d.store, Keys: d.keys, Token: cfg.HSM.TokenLabel, Schedule: schedule(cfg.Keys), Logger: d.log, Metrics: d.metrics, Attest: attestBy(cfg.UV),
	})
	if err != nil {
		return err
	}
	if d.identity, err = httpapi.NewIdentity(ctx, d.keys, tlsNames(cfg.API), d.log); err != nil {
		return err
	}
	d.caFile = filepath.Join(cfg.StateDir, "ca.pem")
	return d.writeCA(ctx)
}

func schedule(k config.KeySchedule) keyring.Schedule {
	return keyring.Schedule{
		Notice: k.Notice.Duration, Auto: k.Auto,
		Periods: map[string]time.Duration{
			keyring.Root: k.Root.Duration, keyring.KEM: k.KEM.Duration, keyring.Decision: k.Decision.Duration,
			keyring.CA: k.CA.Duration, keyring.ClientCA: k.ClientCA.Duration, keyring.Enrol: k.Enrol.Duration,
			keyring.Wrap: k.Wrap.Duration, keyring.MAC: k.MAC.Duration,
		},
	}
}

// writeCA writes the authorities for devices that enrol: relayd enrol --ca. With no ca
// in use the file stays as it is.
func (d *daemon) writeCA(ctx context.Context) error {
	authorities, err := d.keys.Authorities(ctx, time.Now())
	if errors.Is(err, keyring.ErrNoKey) {
		return nil
	}
	if err != nil {
		return err
	}
	var text []byte
	for _, cert := range authorities {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})...)
	}
	// As a whole: a device may be reading it, and a kill may fall in between.
	return cli.Fail(cli.IO, durable.WriteFile(d.caFile, text, 0o644), "state_dir must be writable")
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
	if d.waits {
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
	go d.followKeys(ctx)
	go d.watchDisk(ctx, stop)
	err := httpapi.Serve(ctx, d.log, servers...)
	stop(nil)
	<-finished
	if cause := context.Cause(ctx); err == nil && !errors.Is(cause, context.Canceled) {
		err = cause
	}
	return err
}

// followPause is between attempts to follow a change of the keys.
const followPause = 10 * time.Second

// followKeys gives the listener and the file of authorities what follows from the keys,
// whenever those have changed.
func (d *daemon) followKeys(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-d.keys.Changed():
		}
		for err := d.follow(ctx); err != nil && ctx.Err() == nil; err = d.follow(ctx) {
			d.log.Error("TLS identity could not follow the keys", "error", err, "retry_in", followPause.String())
			select {
			case <-ctx.Done():
			case <-d.keys.Changed():
			case <-time.After(followPause):
			}
		}
	}
}

func (d *daemon) follow(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, followPause)
	defer cancel()
	return errors.Join(d.identity.Renew(ctx), d.writeCA(ctx))
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
		"keys_in_use": d.onceLoaded(func(ctx context.Context) error { return d.appliance.KeysInUse(ctx) }),
	}
}

// warnings tell what is to be done, and make the daemon no less ready.
func (d *daemon) warnings() map[string]httpapi.Check {
	return map[string]httpapi.Check{
		"keys":        d.onceLoaded(func(ctx context.Context) error { return d.appliance.KeysReady(ctx) }),
		"records":     d.onceLoaded(func(ctx context.Context) error { return d.appliance.RecordsFit(ctx) }),
		"key_objects": d.onceLoaded(func(ctx context.Context) error { return d.appliance.KeysAttested(ctx) }),
	}
}

// onceLoaded has nothing to say before there is an appliance.
func (d *daemon) onceLoaded(check httpapi.Check) httpapi.Check {
	return func(ctx context.Context) error {
		select {
		case <-d.loaded:
			return check(ctx)
		default:
			return nil
		}
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
	if errors.Is(err, store.ErrSealed) && d.waits { // for the PIN, which the check of the HSM says
		return nil
	}
	return err
}

// startTimeout bounds everything before the listeners answer.
const startTimeout = 30 * time.Second
