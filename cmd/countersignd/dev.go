package main

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

	"countersign/internal/config"

	"countersign/internal/durable"
)

// dev is everything on loopback for development and tests: token, store, trust
// domain, appliance and a relay, all in one directory. A directory that was used
// before is used on.
type dev struct {
	dir    string
	module string // "" is SoftHSM itself
	second string // module of the second token; "" is none
	// recipient is the file of the backup key's public half; "" is none
	recipient string
	from      surroundings
	daemon    *daemon
	locked    io.Closer // keeps the directory's lock
}

// devInfo is DIR/dev.json, written once all are ready.
type devInfo struct {
	URL     string `json:"url"`
	CA      string `json:"ca"`
	Link    string `json:"link"`
	Admin   string `json:"admin"`
	Ops     string `json:"ops"`
	Hooklog string `json:"hooklog"`
}

func (d *dev) path(elements ...string) string {
	return filepath.Join(append([]string{d.dir}, elements...)...)
}

func (d *dev) url() string { return "https://" + d.daemon.listeners.api.Addr().String() }

// run serves until ctx ends or the relay does.
func (d *dev) run(ctx context.Context) (err error) {
	defer func() { err = errors.Join(err, d.forgetInfo()) }()
	start, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	p, err := d.prepare(start)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.close()) }()
	if d.daemon, err = newDaemon(start, d.config(), p); err != nil {
		return err
	}
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	served := make(chan error, 1)
	go func() { served <- d.daemon.run(ctx) }()
	relay, err := d.startRelay(start)
	if relay != nil {
		defer relay.stop()
	}
	if err == nil {
		err = d.writeInfo(relay.Link)
	}
	if err != nil {
		stop(err)
		<-served
		return err
	}
	return d.wait(ctx, stop, served, relay)
}

func (d *dev) wait(ctx context.Context, stop context.CancelCauseFunc, served chan error, relay *devRelay) error {
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

// prepare makes the directory, the token and, the first time, the trust domain.
func (d *dev) prepare(ctx context.Context) (*parts, error) {
	if err := d.lock(); err != nil {
		return nil, err
	}
	if err := os.RemoveAll(d.path("dev.json")); err != nil {
		return nil, err
	}
	if err := d.forgetUnfinished(); err != nil {
		return nil, err
	}
	softhsm, err := devTokens(ctx, d.dir, d.second != "")
	if err != nil {
		return nil, err
	}
	if d.module == "" {
		d.module = softhsm
	}
	cfg := d.config()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	p, err := openParts(ctx, cfg, d.from)
	if err != nil {
		return nil, err
	}
	claims, err := p.store.Claims(ctx)
	if err == nil && !claims.Founded && len(claims.Settings) == 0 {
		err = initialize(ctx, p, cfg)
	}
	if err == nil {
		err = os.WriteFile(d.path(readyMark), nil, 0o600)
	}
	if err != nil {
		_ = p.close()
		return nil, err
	}
	return p, nil
}

// devConfig is the configuration of a directory of dev that nobody else has open, with its
// token at hand.
func devConfig(ctx context.Context, dir string) (*config.Appliance, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	d := &dev{dir: dir}
	if !exists(d.path(readyMark)) {
		return nil, fmt.Errorf("%s: %w", dir, errNotDev)
	}
	if err := d.lock(); err != nil {
		return nil, err
	}
	d.module, err = devTokens(ctx, d.dir, false)
	return d.config(), err
}

func (d *dev) config() *config.Appliance {
	cfg := config.DefaultAppliance()
	cfg.StateDir = d.dir
	cfg.HSM.Module, cfg.HSM.TokenLabel = d.module, devLabel
	cfg.HSM.Pin = config.Secret{Source: "file", Path: d.path("pin")}
	if d.second != "" {
		cfg.HSM.Second = config.Token{
			Module: d.second, TokenLabel: devSecondLabel, Pin: config.Secret{Source: "file", Path: d.path("pin" + secondSuffix)},
		}
	}
	cfg.Store.Path, cfg.Admin.Socket = d.path("countersign.db"), d.path("admin.sock")
	cfg.API = config.API{Listen: "127.0.0.1:0", Names: []string{"localhost"}, IPs: []netip.Addr{netip.MustParseAddr("127.0.0.1")}}
	cfg.Ops.Listen = "127.0.0.1:0"
	cfg.Trust.Domain = "dev.countersign.example"
	cfg.Backup.Recipient = d.recipient
	return &cfg
}

// forgetInfo: what does not run is not announced. A directory that was never ours
// keeps what it has.
func (d *dev) forgetInfo() error {
	if d.locked == nil {
		return nil
	}
	return os.RemoveAll(d.path("dev.json"))
}

// writeInfo tells that all are ready; whoever sees the file sees it whole.
func (d *dev) writeInfo(link string) error {
	info := devInfo{
		URL: d.url(), CA: d.path("ca.pem"), Link: link,
		Admin: "unix:" + d.path("admin.sock"), Ops: "http://" + d.daemon.listeners.ops.Addr().String(), Hooklog: d.path("hook.log"),
	}
	hooklog, err := os.OpenFile(info.Hooklog, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if err := hooklog.Close(); err != nil {
		return err
	}
	raw, err := json.MarshalIndent(info, "", "  ")
	if err != nil {
		return err
	}
	return durable.WriteFile(d.path("dev.json"), append(raw, '\n'), 0o600)
}
