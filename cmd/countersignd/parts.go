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
	"countersign/appliance/custody"
	"countersign/appliance/keyring"
	"countersign/appliance/store"
	"countersign/appliance/store/sqlite"
	"countersign/hsm"
	"countersign/hsm/failover"
	"countersign/hsm/wire"
	"countersign/hsm/worker"
	"countersign/internal/cli"
	"countersign/internal/config"
	"countersign/protocol"
)

// parts are what every command of the daemon stands on: the store and the token.
type parts struct {
	cfg     config.HSM
	store   store.Store
	seals   *store.Seals       // what the store is unsealed with
	anchor  *anchor.File       // what the store is held against, with root
	root    protocol.PublicKey // trust.root; zero: none
	token   *failover.Set
	escrow  *ecdh.PublicKey // for whom new keys get a sealed copy; nil: nobody
	pools   []pool          // what token is made of
	metrics *prometheus.Registry
	log     hclog.Logger
}

// pool is one token by its name.
type pool struct {
	config.TokenNamed
	*worker.Pool
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
	p, err := newParts(cfg, from)
	if err != nil {
		return nil, err
	}
	if p.store, err = sqlite.Open(ctx, sqlite.Config{Path: cfg.Store.Path, Logger: p.log.Named("store")}); err != nil {
		return nil, fmt.Errorf("opening the store %s: %w", cfg.Store.Path, err)
	}
	if err := p.openTokens(ctx, cfg, from.secrets); err != nil {
		return nil, errors.Join(err, p.close())
	}
	return p, nil
}

// newParts makes and reads what lies beside store and token.
func newParts(cfg *config.Appliance, from surroundings) (*parts, error) {
	p := &parts{cfg: cfg.HSM, metrics: prometheus.NewRegistry(), log: from.log}
	p.seals = store.NewSeals(func(err error) { p.log.Error("record was changed outside of the appliance", "error", err) })
	p.metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	if err := os.MkdirAll(cfg.StateDir, 0o700); err != nil {
		return nil, cli.Fail(cli.IO, fmt.Errorf("state directory: %w", err), "name a directory that this user may write, state_dir")
	}
	var err error
	if p.escrow, err = readRecipient(cfg.Backup.Recipient); err != nil {
		return nil, err
	}
	if p.root, err = parseRoot(cfg.Trust.Root); err != nil {
		return nil, cli.Fail(cli.Config, fmt.Errorf("trust.root: %w", err), "")
	}
	p.anchor, err = anchor.Open(anchorPath(cfg))
	return p, err
}

// readRecipient reads the backup key's public half; "" is that there is none.
func readRecipient(path string) (*ecdh.PublicKey, error) {
	if path == "" {
		return nil, nil
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, cli.Fail(cli.Config, fmt.Errorf("backup.recipient: %w", err), "countersignctl key custodians init writes it, backup.pub")
	}
	key, err := custody.ParsePublicPEM(text)
	if err != nil {
		return nil, cli.Fail(cli.Config, fmt.Errorf("backup.recipient: %s: %w", path, err), "countersignctl key custodians init writes it, backup.pub")
	}
	return key, nil
}

// pins are the roots that the keys in the store are held against.
func (p *parts) pins() keyring.Pins { return keyring.Pins{Anchor: p.anchor, Root: p.root} }

// registry unseals the store and loads its keys, held against pins.
func (p *parts) registry(ctx context.Context, pins keyring.Pins) (*keyring.Keyring, error) {
	if err := keyring.Unseal(ctx, p.token, p.store, p.seals, pins); err != nil {
		return nil, err
	}
	keys, err := keyring.Load(ctx, p.backed(), p.store, pins)
	if err != nil {
		return nil, err
	}
	return keys, keys.Keep(ctx, p.seals)
}

// backed is the token on which keys are made.
func (p *parts) backed() hsm.Token { return keyring.Backed{Token: p.token, Recipient: p.escrow} }

// serving are the keys without which there is no appliance: a module that cannot
// have them is refused at start, not at the first request.
var serving = []hsm.Usage{hsm.SignP256, hsm.DeriveP256, hsm.MACKey}

// openTokens opens each token. With two, one that is not there is waited for while
// the other serves.
func (p *parts) openTokens(ctx context.Context, cfg *config.Appliance, secrets config.SecretSources) error {
	binary, err := siblingOr(cfg.HSM.WorkerBinary, "hsm-worker")
	if err != nil {
		return err
	}
	set := failover.Config{Timeout: cfg.HSM.Timeout.Duration, Logger: p.log.Named("hsm")}
	tokens := cfg.HSM.Tokens()
	for _, t := range tokens {
		guard := worker.GuardOf(cfg.StateDir, t.Name)
		pin, err := readPIN(t, guard, secrets)
		if err != nil && (len(tokens) == 1 || !errors.Is(err, hsm.ErrPIN)) {
			return fmt.Errorf("%s token: %w", t.Name, err)
		}
		opened, err := worker.Open(ctx, worker.Config{
			Binary: binary, Module: t.Module, TokenLabel: t.TokenLabel, TokenSerial: t.TokenSerial,
			InitArgs: t.InitArgs, Require: serving, PIN: pin, Guard: guard, Patient: len(tokens) > 1,
			Workers: cfg.HSM.Workers, Sessions: cfg.HSM.Sessions, Timeout: cfg.HSM.Timeout.Duration,
			Logger:     p.log.Named("hsm").With("token", t.Name),
			Registerer: prometheus.WrapRegistererWith(prometheus.Labels{"token": t.Name}, p.metrics),
		})
		if err != nil {
			return fmt.Errorf("%s token: %w", t.Name, err)
		}
		p.pools = append(p.pools, pool{t, opened})
		set.Members = append(set.Members, failover.Member{Name: t.Name, Token: opened})
	}
	p.token = failover.New(set)
	return p.someToken()
}

// someToken is an error when no token is there and none waits for its PIN.
func (p *parts) someToken() error {
	if p.token.Ready() || p.locked() {
		return nil
	}
	return p.tokenError()
}

// tokenError is why no token is ready.
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

// locked tells that nothing can be served before somebody gives a PIN.
func (p *parts) locked() bool {
	return !p.token.Ready() && slices.ContainsFunc(p.pools, func(t pool) bool { return errors.Is(t.State().Err, hsm.ErrLocked) })
}

// readPIN reads the PIN from where the configuration says; nil is a locked start.
// Nobody is asked for one that would not be tried.
func readPIN(t config.TokenNamed, guard worker.Guard, secrets config.SecretSources) (wire.PIN, error) {
	if t.Pin.Source == config.SourceUnlock {
		return nil, nil
	}
	if when, refused := guard.Refused(); refused {
		return nil, fmt.Errorf("%s: %w since %s", t.TokenLabel, worker.ErrRefusedBefore, when.UTC().Format(time.RFC3339))
	}
	secrets.What = "PIN of token " + t.TokenLabel
	pin, err := t.Pin.Resolve(secrets)
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
	for _, t := range p.pools {
		t.Close()
	}
	if p.store == nil {
		return nil
	}
	return p.store.Close()
}
