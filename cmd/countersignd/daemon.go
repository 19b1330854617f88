package main

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"countersign/appliance"
	"countersign/appliance/adminapi/server"
	"countersign/appliance/api"
	"countersign/appliance/enrol"
	"countersign/appliance/keylife"
	"countersign/appliance/keyplan"
	"countersign/appliance/keyring"
	"countersign/appliance/keyuse"
	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/internal/config"
	"countersign/internal/durable"
	"countersign/internal/fault"
	"countersign/internal/harden"
	"countersign/protocol"
	protoenrol "countersign/protocol/enrol"
)

// daemon runs an appliance on its listeners.
type daemon struct {
	*parts
	keys      *keyuse.Keys
	appliance *appliance.Appliance
	identity  *api.Identity
	limits    api.Limits
	filesErr  error // why limits was lowered; nil if it was not
	listeners listeners
	config    *config.Appliance
	storeDir  string
	started   time.Time
	waits     bool          // it started locked
	loaded    chan struct{} // closed once there is an appliance
	caFile    string
}

// errOtherDomain means that config.toml names another trust domain than init created.
var errOtherDomain = errors.New("another trust domain")

// startTimeout bounds everything before the listeners answer.
const startTimeout = 30 * time.Second

// newDaemon opens the listeners and, unless the HSM is locked, loads keys and policy. It serves nothing yet.
func newDaemon(ctx context.Context, cfg *config.Appliance, p *parts) (d *daemon, err error) {
	d = &daemon{parts: p, config: cfg, storeDir: filepath.Dir(cfg.Store.Path), started: time.Now(), loaded: make(chan struct{})}
	if err = d.fitLimits(); err != nil {
		return nil, err
	}
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

// fitLimits reads the limits of the API, and lowers and reports them if they do not fit the open files. The Go runtime
// has raised the soft limit to the hard one.
func (d *daemon) fitLimits() error {
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		return fmt.Errorf("limit of open files: %w", err)
	}
	cfg := d.config.API
	d.limits, d.filesErr = api.Limits{
		Strangers: cfg.Strangers, PerAddress: cfg.StrangersPerAddress, PerDevice: cfg.ConnectionsPerDevice, Requests: cfg.RequestsPerDevice,
	}.Fit(files.Cur)
	if d.filesErr != nil {
		d.log.Error("limits of the API were lowered", "error", d.filesErr, "strangers", d.limits.Strangers, "devices", d.limits.Devices)
	}
	return nil
}

// load creates the appliance from store and token.
func (d *daemon) load(ctx context.Context) (err error) {
	cfg := d.config
	if d.keys, err = d.registry(ctx, d.pins()); err != nil {
		return err
	}
	if err := keylife.SelfTest(ctx, d.keys, time.Now()); err != nil {
		return err
	}
	if domain := d.keys.Domain(); domain != cfg.Trust.Domain {
		return fmt.Errorf("%w: trust.domain is %q, the store's is %q", errOtherDomain, cfg.Trust.Domain, domain)
	}
	if err := d.upgrade(ctx); err != nil {
		return err
	}
	d.appliance, err = appliance.New(ctx, appliance.Config{
		Store: d.store, Keys: d.keys, Token: cfg.HSM.TokenLabel, Schedule: schedule(cfg.Keys), Logger: d.log, Metrics: d.metrics,
		Attest: attestBy(cfg.UV),
	})
	if err != nil {
		return err
	}
	if d.identity, err = api.NewIdentity(ctx, d.keys, tlsNames(cfg.API), d.log); err != nil {
		return err
	}
	d.caFile = filepath.Join(cfg.StateDir, "ca.pem")
	return d.writeCA(ctx)
}

// upgrade brings the database to the form of this release, and says so in the log before and after.
func (d *daemon) upgrade(ctx context.Context) error {
	from, to, err := d.store.Schema()
	if err != nil || from == to {
		return err
	}
	d.log.Info("upgrading the database: earlier releases will refuse it",
		"from_schema", from, "to_schema", to, "path", d.config.Store.Path)
	rec := audit.Act(ctx, audit.KindStore, "store", map[string]any{"event": "upgraded", "from_schema": from, "to_schema": to})
	if err := d.store.Upgrade(ctx, rec); err != nil {
		return err
	}
	d.log.Info("the database is upgraded", "schema", to)
	return nil
}

func schedule(k config.KeySchedule) keyplan.Schedule {
	return keyplan.Schedule{
		Notice: k.Notice.Duration, Auto: k.Auto,
		Periods: map[string]time.Duration{
			keyring.Root: k.Root.Duration, keyring.KEM: k.KEM.Duration, keyring.Decision: k.Decision.Duration,
			keyring.CA: k.CA.Duration, keyring.ClientCA: k.ClientCA.Duration, keyring.Enrol: k.Enrol.Duration,
			keyring.Wrap: k.Wrap.Duration, keyring.MAC: k.MAC.Duration,
		},
	}
}

// writeCA writes the authorities for devices that enrol: relayd enrol --ca. If no version of ca is in use the file
// stays as it is.
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
	return fault.WriteCA.Of(durable.WriteFile(d.caFile, text, 0o644))
}

func tlsNames(cfg config.API) []string {
	names := append([]string{}, cfg.Names...)
	for _, ip := range cfg.IPs {
		names = append(names, ip.String())
	}
	return names
}

// run serves until ctx ends.
func (d *daemon) run(ctx context.Context) error {
	ctx = audit.By(ctx, audit.Appliance)
	if d.waits {
		return d.runLocked(ctx)
	}
	return d.runServers(ctx, d.apiServer(), d.adminServer(d.adminAPI().Handler()), d.opsServer())
}

// runServers serves and does the background work of an appliance.
func (d *daemon) runServers(ctx context.Context, servers ...api.Server) error {
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
	err := api.Serve(ctx, d.log, servers...)
	stop(nil)
	<-finished
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	d.appliance.Authorize.FlushCounts(last) // of requests that ended after Run
	if cause := context.Cause(ctx); err == nil && !errors.Is(cause, context.Canceled) {
		err = cause
	}
	return err
}

// followPause is the time between attempts to follow a change of the keys.
const followPause = 10 * time.Second

// followKeys renews the TLS identity and the file of authorities whenever the keys have changed.
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

// watchDisk stops the daemon when an fsync failed. The content of the disk is unknown then, and only a new process
// can read it.
func (d *daemon) watchDisk(ctx context.Context, stop context.CancelCauseFunc) {
	select {
	case err := <-d.store.Fatal():
		stop(fmt.Errorf("%w: %w", errDisk, err))
	case <-ctx.Done():
	}
}

// checks returns the checks of /readyz. They look at the last results of the heartbeat and of the HSM's own checks, and
// wait for neither store nor token.
func (d *daemon) checks() map[string]api.Check {
	return map[string]api.Check{
		"store": func(ctx context.Context) error {
			if err := d.spaceLeft(); err != nil {
				return err
			}
			return d.onceLoaded(func(ctx context.Context) error { return d.appliance.CheckStore(ctx) })(ctx)
		},
		"hsm": func(ctx context.Context) error {
			if !d.token.Ready() {
				return d.tokenError()
			}
			return d.onceLoaded(func(ctx context.Context) error { return d.appliance.CheckToken(ctx) })(ctx)
		},
		"keys_in_use": d.onceLoaded(func(ctx context.Context) error { return d.appliance.Keys.CheckInUse(ctx) }),
	}
}

// warnings returns checks that /readyz shows without making the daemon unready.
func (d *daemon) warnings() map[string]api.Check {
	return map[string]api.Check{
		"tokens":      d.checkTokens,
		"keys":        d.onceLoaded(func(ctx context.Context) error { return d.appliance.Keys.CheckDue(ctx) }),
		"records":     d.onceLoaded(func(ctx context.Context) error { return d.appliance.RecordsFit(ctx) }),
		"key_objects": d.onceLoaded(func(ctx context.Context) error { return d.appliance.Keys.CheckAttested(ctx) }),
		"open_files":  func(context.Context) error { return d.filesErr },
	}
}

// onceLoaded returns a check that succeeds before there is an appliance.
func (d *daemon) onceLoaded(check api.Check) api.Check {
	return func(ctx context.Context) error {
		if !d.isLoaded() {
			return nil
		}
		return check(ctx)
	}
}

// leastFree is the free space, in bytes, that commits need. With less the daemon is not ready.
const leastFree = 1 << 20

// spaceLeft returns an error if the disk of the store has no space for commits.
func (d *daemon) spaceLeft() error {
	var disk unix.Statfs_t
	if err := unix.Statfs(d.storeDir, &disk); err != nil {
		return fmt.Errorf("%s: %w", d.storeDir, err)
	}
	if free := disk.Bavail * uint64(disk.Bsize); free < leastFree {
		return fmt.Errorf("%s: %d bytes free, want %d: %w", d.storeDir, free, leastFree, store.ErrUnavailable)
	}
	return nil
}

// listeners are the daemon's three.
type listeners struct{ api, admin, ops net.Listener }

// listen opens the listeners. It serves nothing yet.
func listen(ctx context.Context, cfg *config.Appliance) (l listeners, err error) {
	var lc net.ListenConfig
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	if l.api, err = lc.Listen(ctx, "tcp", cfg.API.Listen); err != nil {
		return l, fmt.Errorf("api.listen: %w", err)
	}
	if l.ops, err = lc.Listen(ctx, "tcp", cfg.Ops.Listen); err != nil {
		return l, fmt.Errorf("ops.listen: %w", err)
	}
	if l.admin, err = server.Listen(cfg.Admin.Socket); err != nil {
		return l, fmt.Errorf("admin.socket: %w", err)
	}
	return l, nil
}

func (l listeners) close() {
	for _, one := range []net.Listener{l.api, l.admin, l.ops} {
		if one != nil {
			_ = one.Close() // it served nothing, or it is closed already
		}
	}
}

// adminAPI returns the admin API. Before the appliance is loaded only its LockedHandler works.
func (d *daemon) adminAPI() *server.Server {
	return &server.Server{
		Appliance: d.appliance,
		HSM:       server.HSM{Summary: d.hsmStatus, Status: d.hsmKeys, Unlock: d.unlock, Drain: d.drain},
		Logger:    d.log.Named("admin"), StartedAt: d.started,
	}
}

func (d *daemon) adminServer(h http.Handler) api.Server {
	return api.Server{Name: "admin", Listener: d.listeners.admin, Handler: h, ConnContext: server.PeerContext}
}

func (d *daemon) opsServer() api.Server {
	ops := &api.Ops{Checks: d.checks(), Warnings: d.warnings(), Gatherer: d.metrics}
	return api.Server{Name: "ops", Listener: d.listeners.ops, Handler: ops.Handler()}
}

func (d *daemon) apiServer() api.Server {
	metrics := api.NewMetrics(d.metrics)
	a := &api.API{
		Devices: d.appliance.Parties, Judge: d.identity, Authorizer: d.appliance.Authorize, Enroller: d.appliance.Enrol,
		Limits: d.limits, Metrics: metrics, Logger: d.log.Named("api"),
	}
	return api.Server{
		Name: "api", Listener: d.listeners.api, Handler: a.Handler(), Identity: d.identity, Limits: d.limits, Metrics: metrics,
	}
}

// devDaemon is a daemon as package dev runs it.
type devDaemon struct{ *daemon }

func (d devDaemon) APIAddr() string               { return d.listeners.api.Addr().String() }
func (d devDaemon) OpsAddr() string               { return d.listeners.ops.Addr().String() }
func (d devDaemon) Run(ctx context.Context) error { return d.run(ctx) }
func (d devDaemon) Close() error                  { return d.close() }

func (d devDaemon) Device(ctx context.Context, name string) error {
	_, err := d.appliance.Parties.DeviceNamed(ctx, name)
	return err
}

func (d devDaemon) InviteDevice(ctx context.Context, name, display string) (protoenrol.ActivationCode, error) {
	code, _, err := d.appliance.Enrol.Invite(ctx, enrol.Invite{Kind: store.KindDevice, Name: name, Display: display})
	return code, err
}

// attestation is the input of the command uv.attest.
type attestation struct {
	Client    string          `json:"client"` // hex, 8 bytes
	UVKey     string          `json:"uv_key"` // hex, 33 bytes
	Statement protocol.Base64 `json:"attestation"`
}

// maxFormat bounds the output of the command, in bytes.
const maxFormat = 64

// attestBy returns a verifier of attestations that runs a command, or nil without a command.
func attestBy(cfg config.UV) enrol.Attest {
	if len(cfg.Attest) == 0 {
		return nil
	}
	return func(ctx context.Context, a enrol.Attestation) (string, error) {
		ctx, cancel := context.WithTimeout(ctx, cfg.Timeout.Duration)
		defer cancel()
		asked, err := json.Marshal(attestation{Client: a.Client.String(), UVKey: a.UVKey.String(), Statement: a.Statement})
		if err != nil {
			return "", err
		}
		cmd := exec.CommandContext(ctx, cfg.Attest[0], cfg.Attest[1:]...) //nolint:gosec // the operator's own
		cmd.Stdin, cmd.Env = bytes.NewReader(asked), harden.Environment(cfg.Environment)
		cmd.WaitDelay = cfg.Timeout.Duration // for children that keep its output open
		out, err := cmd.Output()
		if err != nil {
			return "", fmt.Errorf("uv.attest: %w", err)
		}
		format := strings.TrimSpace(string(out))
		if format == "" || len(format) > maxFormat {
			return "", fmt.Errorf("uv.attest printed %d bytes: want the name of a format", len(out))
		}
		return format, nil
	}
}
