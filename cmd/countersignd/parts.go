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

	"countersign/appliance/store/sqlite"
	"countersign/cmd/internal/cli"
	"countersign/cmd/internal/config"
	"countersign/hsm"
	"countersign/hsm/wire"
	"countersign/hsm/worker"
)

// parts are what every command of the daemon stands on: the store and the token.
type parts struct {
	cfg     config.HSM
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

// openParts opens the store before the token: it costs nothing, and a PIN is not
// tried before everything else is known to be there.
func openParts(ctx context.Context, cfg *config.Appliance, from surroundings) (*parts, error) {
	p := &parts{cfg: cfg.HSM, metrics: prometheus.NewRegistry(), log: from.log}
	p.metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	if err := os.MkdirAll(cfg.StateDir, 0o700); err != nil {
		return nil, cli.Fail(cli.IO, fmt.Errorf("state directory: %w", err), "name a directory that this user may write, state_dir")
	}
	var err error
	if p.store, err = sqlite.Open(ctx, sqlite.Config{Path: cfg.Store.Path, Logger: p.log.Named("store")}); err != nil {
		return nil, fmt.Errorf("opening the store %s: %w", cfg.Store.Path, err)
	}
	if p.token, err = p.openToken(ctx, cfg, from.secrets); err != nil {
		return nil, errors.Join(err, p.store.Close())
	}
	return p, nil
}

// serving are the keys without which there is no appliance: a module that cannot
// have them is refused at start, not at the first request.
var serving = []hsm.Usage{hsm.SignP256, hsm.DeriveP256, hsm.MACKey}

func (p *parts) openToken(ctx context.Context, cfg *config.Appliance, secrets config.SecretSources) (*worker.Pool, error) {
	binary, err := siblingOr(cfg.HSM.WorkerBinary, "hsm-worker")
	if err != nil {
		return nil, err
	}
	guard := worker.Guard(filepath.Join(cfg.StateDir, worker.GuardFile))
	pin, err := readPIN(cfg.HSM, guard, secrets)
	if err != nil {
		return nil, err
	}
	return worker.Open(ctx, worker.Config{
		Binary: binary, Module: cfg.HSM.Module, TokenLabel: cfg.HSM.TokenLabel, TokenSerial: cfg.HSM.TokenSerial,
		InitArgs: cfg.HSM.InitArgs, Require: serving, PIN: pin, Guard: guard,
		Workers: cfg.HSM.Workers, Sessions: cfg.HSM.Sessions, Timeout: cfg.HSM.Timeout.Duration,
		Logger: p.log.Named("hsm"), Registerer: p.metrics,
	})
}

// readPIN reads the PIN from where the configuration says; nil is a locked start.
// Nobody is asked for one that would not be tried.
func readPIN(cfg config.HSM, guard worker.Guard, secrets config.SecretSources) (wire.PIN, error) {
	if cfg.Pin.Source == config.SourceUnlock {
		return nil, nil
	}
	if when, refused := guard.Refused(); refused {
		return nil, fmt.Errorf("token %s: %w since %s", cfg.TokenLabel, worker.ErrRefusedBefore, when.UTC().Format(time.RFC3339))
	}
	secrets.What = "PIN of token " + cfg.TokenLabel
	pin, err := cfg.Pin.Resolve(secrets)
	return wire.PIN(pin.Bytes()), err
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
