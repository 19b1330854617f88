// Package relay implements an authorization device. It forwards messages between phones on a
// near-field link and the appliance without reading them, verifies the appliance's decision
// down to the pinned root, and acts on it at most once.
package relay

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"countersign/protocol"
	"countersign/protocol/deviceapi"
	"countersign/relay/journal"
	"countersign/relay/link"
	"countersign/relay/uplink"
)

// Errors of [New].
var (
	ErrOrderSocket = errors.New("the order socket cannot be made")
	ErrLink        = errors.New("a link for phones cannot be opened")
)

// Config configures a relay. A zero duration or number stands for the default named beside it.
type Config struct {
	StateDir  string
	URL       string // https://HOST:PORT of the appliance
	CAFile    string // PEM, roots of the appliance's certificate
	Links     []Link
	Orders    Orders
	Floor     protocol.Level // lowest level to act on
	Strict    bool           // ask for the client's countersignature and verify it too
	Hook      Hook
	Display   io.Writer     // shows service and amount before the act; nil: none
	Log       hclog.Logger  // nil: none
	Metrics   *Metrics      // nil: not registered
	Timeout   time.Duration // of a call to the appliance, 10 s
	Idle      time.Duration // after which a link without a message is closed, 2 minutes
	Send      time.Duration // for a phone to take an answer, 10 s
	ActWait   time.Duration // for which an answer waits for the hook, 2 s
	Grace     time.Duration // for exchanges under way when the relay stops, 500 ms
	MaxLinks  int           // at a time; more phones get "link busy", 32
	OrderWait time.Duration // for a phone to take up an order from the socket, 5 minutes
	// ApprovalWait is for a second approver after the first, 5 minutes. The appliance has its
	// own limit.
	ApprovalWait time.Duration
	AskEvery     time.Duration // between questions whether the appliance serves the device, 1 minute
}

// Link is a near-field listener.
type Link struct {
	Listen string // "tcp:HOST:PORT" or "unix:/PATH"
	Class  deviceapi.LinkClass
}

func (c Config) withDefaults() Config {
	c.Timeout = cmp.Or(c.Timeout, uplink.DefaultTimeout)
	c.Idle = cmp.Or(c.Idle, 2*time.Minute)
	c.Send = cmp.Or(c.Send, 10*time.Second)
	c.ActWait = cmp.Or(c.ActWait, 2*time.Second)
	c.Grace = cmp.Or(c.Grace, 500*time.Millisecond)
	c.OrderWait = cmp.Or(c.OrderWait, 5*time.Minute)
	c.ApprovalWait = cmp.Or(c.ApprovalWait, 5*time.Minute)
	c.Hook.Timeout = cmp.Or(c.Hook.Timeout, 10*time.Second)
	c.MaxLinks = cmp.Or(c.MaxLinks, 32)
	if c.Log == nil {
		c.Log = hclog.NewNullLogger()
	}
	if c.Metrics == nil {
		c.Metrics = NewMetrics(nil)
	}
	if c.Display == nil {
		c.Display = io.Discard
	}
	return c
}

// Relay is a running device.
type Relay struct {
	config    Config
	log       hclog.Logger
	metrics   *Metrics
	client    *uplink.Client
	journal   *journal.Journal
	socket    *orderSocket // nil: orders come from the configuration
	status    *statusFile
	listeners []listener
	slots     chan struct{} // one for each link in use
	unsettled chan struct{} // signals that the journal has an outcome to report
	fatal     chan error
	acts      sync.WaitGroup
	display   sync.Mutex // one line at a time
	release   func()

	registry
}

// New opens the listeners and the state directory, which must be enrolled
// ([uplink.ErrNotEnrolled]) and not in use by another process ([uplink.ErrLocked]). The caller
// then calls Serve. Errors are also [ErrOrderSocket] and [ErrLink]; after an error nothing is open.
func New(c Config) (*Relay, error) {
	c = c.withDefaults()
	release, err := uplink.Lock(c.StateDir)
	if err != nil {
		return nil, err
	}
	r := &Relay{
		config: c, log: c.Log, metrics: c.Metrics, slots: make(chan struct{}, c.MaxLinks),
		unsettled: make(chan struct{}, 1), fatal: make(chan error, 1), release: release,
	}
	if err := r.open(); err != nil {
		r.close()
		return nil, err
	}
	return r, nil
}

func (r *Relay) open() error {
	state, err := uplink.Open(r.config.StateDir)
	if err != nil {
		return err
	}
	r.client, err = uplink.NewClient(uplink.Config{
		State: state, URL: r.config.URL, CAFile: r.config.CAFile, Timeout: r.config.Timeout, AskEvery: r.config.AskEvery,
		Log: r.log.Named("uplink"), Changed: func() { r.status.update(nil) },
	})
	if err != nil {
		return err
	}
	if r.journal, err = journal.Open(journal.Config{Path: filepath.Join(r.config.StateDir, "journal")}); err != nil {
		return err
	}
	r.status = newStatusFile(r)
	if r.standing, err = r.config.Orders.standing(); err != nil {
		return err
	}
	if r.standing == nil {
		if r.socket, err = newOrderSocket(r); err != nil {
			return err
		}
	}
	for _, l := range r.config.Links {
		inner, err := link.Listen(l.Listen)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrLink, err)
		}
		r.listeners = append(r.listeners, listener{inner, l.Class})
	}
	r.status.update(nil) // what the last run found does not hold now
	return nil
}

// Links lists the addresses on which phones can connect, ports included.
func (r *Relay) Links() []string {
	addrs := make([]string, len(r.listeners))
	for i, l := range r.listeners {
		addrs[i] = l.Addr()
	}
	return addrs
}

// Identity returns the device's identity.
func (r *Relay) Identity() uplink.Identity { return r.client.Identity() }

// Reachable reports whether the appliance answered the last call.
func (r *Relay) Reachable() bool { return r.client.Reachable() }

// ApplianceProblem returns why the appliance does not serve the device, or "".
func (r *Relay) ApplianceProblem() string { return r.client.Problem() }

// Problem returns why the device cannot authorize now, or "".
func (r *Relay) Problem() string {
	if err := r.CheckHook(); err != nil {
		return err.Error()
	}
	return r.client.Problem()
}

// CheckHook returns an error if the hook cannot be started.
func (r *Relay) CheckHook() error { return r.config.Hook.Check() }

// Serve runs the device until ctx is over, which is not an error, or until the journal cannot
// be written. Exchanges under way have Grace to end. A hook that runs longer keeps running;
// its transaction is unconfirmed.
func (r *Relay) Serve(ctx context.Context) error {
	defer r.close()
	r.reportInterrupted()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// Calls outlive ctx by Grace, so that the device acts on an approval that was granted.
	calls, stopCalls := context.WithCancel(context.WithoutCancel(ctx))
	defer stopCalls()

	var links, upkeep sync.WaitGroup
	for _, l := range r.listeners {
		links.Go(func() { r.accept(ctx, calls, l) })
	}
	upkeep.Go(func() { r.client.Run(ctx) })
	upkeep.Go(func() { r.reportOutcomes(ctx) })
	upkeep.Go(func() { r.status.keep(ctx) })
	if r.socket != nil {
		upkeep.Go(func() { r.socket.run(ctx) })
	}

	var err error
	select {
	case <-ctx.Done():
	case err = <-r.fatal:
	}
	cancel()
	for _, l := range r.listeners {
		_ = l.Close() // accept sees the error
	}
	grace := time.AfterFunc(r.config.Grace, stopCalls)
	defer grace.Stop()
	links.Wait()
	waitFor(&r.acts, calls.Done())
	upkeep.Wait()
	r.status.stop()
	return err
}

// waitFor waits for group or for limit.
func waitFor(group *sync.WaitGroup, limit <-chan struct{}) {
	done := make(chan struct{})
	go func() { group.Wait(); close(done) }()
	select {
	case <-done:
	case <-limit:
	}
}

// fail stops the relay, which must not act without its journal.
func (r *Relay) fail(err error) {
	select {
	case r.fatal <- err:
	default:
	}
}

// reportInterrupted reports each act that a crash has left unconfirmed to the operator, once.
func (r *Relay) reportInterrupted() {
	for _, id := range r.journal.Interrupted() {
		r.log.Error("act unconfirmed: it was started before a crash and is not repeated", "transaction", id.String())
		r.metrics.acts.WithLabelValues(actUnconfirmed).Inc()
		if err := r.journal.MarkUnconfirmed(id); err != nil {
			r.fail(err)
			return
		}
		r.status.update(&Last{Result: "unconfirmed", Transaction: id.String()})
	}
}

func (r *Relay) close() {
	var errs []error
	for _, l := range r.listeners {
		_ = l.Close() // Serve may have closed it
	}
	if r.socket != nil {
		errs = append(errs, r.socket.close())
	}
	if r.client != nil {
		r.client.Close()
	}
	if r.journal != nil {
		errs = append(errs, r.journal.Close())
	}
	r.release()
	if err := errors.Join(errs...); err != nil {
		r.log.Warn("closing failed", "error", fmt.Sprint(err))
	}
}
