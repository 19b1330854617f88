package main

import (
	"context"
	"crypto/ecdh"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"countersign/appliance/anchor"
	"countersign/appliance/keylife"
	"countersign/appliance/keyuse"
	"countersign/appliance/recovery/custody"
	"countersign/appliance/recovery/restore"
	"countersign/appliance/store"
	"countersign/appliance/store/sqlite"
	"countersign/hsm"
	"countersign/hsm/failover"
	"countersign/hsm/pool"
	"countersign/internal/config"
	"countersign/internal/fault"
	"countersign/protocol"
)

// parts are the opened store and token, which every command of the daemon uses.
type parts struct {
	cfg     config.HSM
	store   store.Store
	seals   *store.Seals       // of the store
	anchor  *anchor.File       // the store is compared with it and with root
	root    protocol.PublicKey // trust.root; zero: none
	token   *failover.Set
	escrow  *ecdh.PublicKey // new keys get a copy sealed for it; nil: they get none
	pools   []tokenPool     // the members of token
	metrics *prometheus.Registry
	log     hclog.Logger
}

// tokenPool is one token with its name.
type tokenPool struct {
	config.TokenNamed
	*pool.Pool
}

// environment is the logger and the sources of secrets.
type environment struct {
	log     hclog.Logger
	secrets config.SecretSources
}

// openParts opens store and token of an existing appliance. Without a store it creates nothing: an empty one would be in
// the way of a restore.
func openParts(ctx context.Context, cfg *config.Appliance, env environment) (*parts, error) {
	if _, err := os.Lstat(cfg.Store.Path); errors.Is(err, os.ErrNotExist) {
		return nil, fault.NoStore.With("path", cfg.Store.Path).Error()
	}
	return openOrNew(ctx, cfg, env)
}

// openOrNew is openParts for an appliance that may be new: without a store p.store is nil. It opens the store before the
// token, so that a PIN is only tried when everything else works.
func openOrNew(ctx context.Context, cfg *config.Appliance, env environment) (*parts, error) {
	p, err := newParts(cfg, env)
	if err != nil {
		return nil, err
	}
	if exists(cfg.Store.Path) {
		if err := p.openStore(ctx, cfg.Store.Path); err != nil {
			return nil, err
		}
	}
	if err := p.openTokens(ctx, cfg, env.secrets); err != nil {
		return nil, errors.Join(err, p.close())
	}
	return p, nil
}

// openStore opens the store, or creates an empty one.
func (p *parts) openStore(ctx context.Context, path string) (err error) {
	if p.store, err = sqlite.Open(ctx, sqlite.Config{
		Path: path, Logger: p.log.Named("store"), Recorded: logActs(p.log.Named("admin")),
	}); err != nil {
		return fmt.Errorf("opening the store %s: %w", path, err)
	}
	return nil
}

// newParts creates the state directory and reads the files in it.
func newParts(cfg *config.Appliance, env environment) (*parts, error) {
	if err := os.MkdirAll(cfg.StateDir, 0o700); err != nil {
		return nil, fault.StateDir.Of(err)
	}
	return readParts(cfg, env)
}

// readParts reads the files that the configuration names.
func readParts(cfg *config.Appliance, env environment) (*parts, error) {
	p := &parts{cfg: cfg.HSM, metrics: prometheus.NewRegistry(), log: env.log}
	p.seals = store.NewSeals(func(err error) { p.log.Error("record was changed outside of the appliance", "error", err) })
	p.metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	var err error
	if p.escrow, err = readRecipient(cfg.Backup.Recipient); err != nil {
		return nil, err
	}
	if p.root, err = parseRoot(cfg.Trust.Root); err != nil {
		return nil, fault.BadTrustRoot.Of(err)
	}
	p.anchor, err = anchor.Open(anchorPath(cfg))
	return p, err
}

// readRecipient reads the public half of the backup key. It returns nil for the path "".
func readRecipient(path string) (*ecdh.PublicKey, error) {
	if path == "" {
		return nil, nil
	}
	text, err := os.ReadFile(path)
	var key *ecdh.PublicKey
	if err == nil {
		key, err = custody.ParsePublicPEM(text)
	}
	if err != nil {
		err = fmt.Errorf("%s: %w", path, err)
	}
	return key, fault.BadRecipient.Of(err)
}

// pins are the roots that the keys in the store are held against.
func (p *parts) pins() keyuse.Pins { return keyuse.Pins{Anchor: p.anchor, Root: p.root} }

// registry unseals the store and loads its keys, held against pins.
func (p *parts) registry(ctx context.Context, pins keyuse.Pins) (*keyuse.Keys, error) {
	if err := keyuse.Unseal(ctx, p.token, p.store, p.seals, pins); err != nil {
		return nil, err
	}
	keys, err := keyuse.Load(ctx, p.backed(), p.store, pins)
	if err != nil {
		return nil, err
	}
	return keys, keys.Keep(ctx, p.seals)
}

// host describes this host for a restore or a migration.
func (p *parts) host(cfg *config.Appliance, from environment) restore.Host {
	return restore.Host{
		StateDir: cfg.StateDir, Store: cfg.Store.Path, Label: cfg.HSM.TokenLabel, Root: p.root,
		Anchor: p.anchor, Seals: p.seals, Log: p.log,
		Token: func(ctx context.Context) (hsm.Token, error) {
			err := p.openTokens(ctx, cfg, from.secrets)
			if err == nil && p.locked() {
				err = p.tokenError()
			}
			return p.token, err
		},
	}
}

// backed is the token on which keys are made.
func (p *parts) backed() hsm.Token { return keylife.Backed{Token: p.token, Recipient: p.escrow} }

// serving are the usages that every appliance needs. A module without them is refused at the start, not at the first
// request.
var serving = []hsm.Usage{hsm.SignP256, hsm.DeriveP256, hsm.MACKey}

// openTokens opens each token. Of two, one may be unavailable: it is opened later, while the other serves.
func (p *parts) openTokens(ctx context.Context, cfg *config.Appliance, secrets config.SecretSources) error {
	binary, err := workerBinary(cfg)
	if err != nil {
		return err
	}
	set := failover.Config{Timeout: cfg.HSM.Timeout.Duration, Logger: p.log.Named("hsm")}
	tokens := cfg.HSM.Tokens()
	for _, t := range tokens {
		guard := pool.GuardOf(cfg.StateDir, t.Name)
		pin, err := readPIN(t, guard, secrets)
		if err != nil && (len(tokens) == 1 || !errors.Is(err, hsm.ErrPIN)) {
			return fmt.Errorf("%s token: %w", t.Name, err)
		}
		opened, err := pool.Open(ctx, pool.Config{
			Binary: binary, Module: t.Module, TokenLabel: t.TokenLabel, TokenSerial: t.TokenSerial,
			InitArgs: t.InitArgs, Require: serving, PIN: pin, Guard: guard, Patient: len(tokens) > 1,
			HostCheck: cfg.HSM.PasswordCheck == config.PasswordOnHost,
			Workers:   cfg.HSM.Workers, Sessions: cfg.HSM.Sessions, Timeout: cfg.HSM.Timeout.Duration,
			Logger:     p.log.Named("hsm").With("token", t.Name),
			Registerer: prometheus.WrapRegistererWith(prometheus.Labels{"token": t.Name}, p.metrics),
		})
		if err != nil {
			return fmt.Errorf("%s token: %w", t.Name, config.TokenError(t.Module, err))
		}
		p.pools = append(p.pools, tokenPool{t, opened})
		set.Members = append(set.Members, failover.Member{Name: t.Name, Token: opened})
	}
	p.token = failover.New(set)
	return p.someToken()
}

// someToken returns an error if no token is ready and none waits for its PIN.
func (p *parts) someToken() error {
	if p.token.Ready() || p.locked() {
		return nil
	}
	return p.tokenError()
}

// tokenError returns the reasons why no token is ready.
func (p *parts) tokenError() error {
	var reasons []error
	for _, t := range p.pools {
		if err := t.State().Err; err != nil {
			reasons = append(reasons, fmt.Errorf("%s token: %w", t.Name, err))
		}
	}
	if len(reasons) == 0 {
		return fmt.Errorf("every token is drained: %w", hsm.ErrUnavailable)
	}
	return errors.Join(reasons...)
}

// locked reports whether no token is ready before an administrator enters its PIN.
func (p *parts) locked() bool {
	return !p.token.Ready() && slices.ContainsFunc(p.pools, func(t tokenPool) bool { return errors.Is(t.State().Err, hsm.ErrLocked) })
}

// readPIN reads the PIN from its configured source. It returns nil for a locked start, and does not ask for a PIN that
// would not be tried.
func readPIN(t config.TokenNamed, guard pool.Guard, secrets config.SecretSources) (hsm.PIN, error) {
	if t.Pin.Source == config.SourceUnlock {
		return nil, nil
	}
	if when, refused := guard.Refused(); refused {
		return nil, fmt.Errorf("%s: %w since %s", t.TokenLabel, pool.ErrRefusedBefore, when.UTC().Format(time.RFC3339))
	}
	secrets.What = "PIN of token " + t.TokenLabel
	pin, err := t.Pin.Resolve(secrets)
	return pin, err
}

// workerBinary returns the path of hsm-pool.
func workerBinary(cfg *config.Appliance) (string, error) {
	return siblingOr(cfg.HSM.WorkerBinary, "hsm-worker")
}

// siblingOr returns the path, or if it is "" the program of that name in the directory of this one.
func siblingOr(path, name string) (string, error) {
	if path != "" {
		return path, nil
	}
	self, err := os.Executable()
	if err != nil {
		return "", fault.NoProc.With("program", name).Of(err)
	}
	return filepath.Join(filepath.Dir(self), name), nil
}

func (p *parts) close() error {
	for _, t := range p.pools {
		t.Close()
	}
	if p.store == nil {
		return nil
	}
	return p.store.Close()
}
