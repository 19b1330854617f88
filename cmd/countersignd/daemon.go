package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"countersign/appliance"
	"countersign/appliance/admin"
	"countersign/appliance/httpapi"
	"countersign/appliance/keyring"
	"countersign/appliance/store/sqlite"
	"countersign/cmd/internal/config"
	"countersign/hsm"
	"countersign/hsm/wire"
	"countersign/hsm/worker"
)

// parts are what every command of the daemon stands on: the store and the token.
type parts struct {
	store   *sqlite.Store
	token   *worker.Pool
	metrics *prometheus.Registry
	log     hclog.Logger
}

// surroundings are what opening needs of the process: the logger and where secrets
// may come from.
type surroundings struct {
	log     hclog.Logger
	secrets config.SecretSources
}

// openParts opens the store first: it costs nothing, and a PIN is not tried
// before everything else is known to be there.
func openParts(ctx context.Context, cfg *config.Appliance, from surroundings) (*parts, error) {
	p := &parts{metrics: prometheus.NewRegistry(), log: from.log}
	p.metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	if err := os.MkdirAll(cfg.StateDir, 0o700); err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	var err error
	if p.store, err = sqlite.Open(ctx, sqlite.Config{Path: cfg.Store.Path, Logger: p.log.Named("store")}); err != nil {
		return nil, fmt.Errorf("opening the store %s: %w", cfg.Store.Path, err)
	}
	from.secrets.What = "PIN of token " + cfg.HSM.TokenLabel
	pin, err := cfg.HSM.Pin.Resolve(from.secrets)
	if err != nil {
		return nil, errors.Join(err, p.store.Close())
	}
	if p.token, err = p.openToken(ctx, cfg.HSM, wire.PIN(pin.Bytes())); err != nil {
		return nil, errors.Join(err, p.store.Close())
	}
	return p, nil
}

func (p *parts) openToken(ctx context.Context, cfg config.HSM, pin wire.PIN) (*worker.Pool, error) {
	binary, err := siblingOr(cfg.WorkerBinary, "hsm-worker")
	if err != nil {
		return nil, err
	}
	return worker.Open(ctx, worker.Config{
		Binary: binary, Module: cfg.Module, TokenLabel: cfg.TokenLabel, TokenSerial: cfg.TokenSerial, PIN: pin,
		Workers: cfg.Workers, Sessions: cfg.Sessions, Timeout: cfg.Timeout.Duration,
		Logger: p.log.Named("hsm"), Registerer: p.metrics,
	})
}

// siblingOr is the path, or the program of that name beside this one.
func siblingOr(path, name string) (string, error) {
	if path != "" {
		return path, nil
	}
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("finding %s: %w", name, err)
	}
	return filepath.Join(filepath.Dir(self), name), nil
}

func (p *parts) close() error {
	p.token.Close()
	return p.store.Close()
}

// daemon is the appliance on its listeners.
type daemon struct {
	*parts
	keys      *keyring.Keyring
	appliance *appliance.Appliance
	identity  *httpapi.Identity
	servers   []httpapi.Server
}

// newDaemon loads keys and policy and opens the listeners; nothing is served yet.
func newDaemon(ctx context.Context, cfg *config.Appliance, p *parts) (*daemon, error) {
	d := &daemon{parts: p}
	var err error
	if d.keys, err = keyring.Load(ctx, p.token, p.store); err != nil {
		return nil, err
	}
	d.appliance, err = appliance.New(ctx, appliance.Config{Store: p.store, Keys: d.keys, Logger: p.log, Metrics: p.metrics})
	if err != nil {
		return nil, err
	}
	if d.identity, err = httpapi.NewIdentity(ctx, d.keys, tlsNames(cfg.API), p.log); err != nil {
		return nil, err
	}
	return d, d.listen(ctx, cfg)
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
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		d.appliance.Run(ctx)
	}()
	go d.identity.Run(ctx)
	go d.watchDisk(ctx, stop)
	err := httpapi.Serve(ctx, d.log, d.servers...)
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

func (d *daemon) hsmStatus() admin.HSM {
	s := d.token.State()
	return admin.HSM{Ready: s.Ready, Workers: s.Alive, Wanted: s.Want}
}

func (d *daemon) checks() map[string]httpapi.Check {
	return map[string]httpapi.Check{
		"store": d.appliance.Ready,
		"hsm": func(context.Context) error {
			if s := d.token.State(); !s.Ready {
				return errors.Join(hsm.ErrUnavailable, s.Err)
			}
			return nil
		},
	}
}

// startTimeout bounds everything before the listeners answer.
const startTimeout = 30 * time.Second
