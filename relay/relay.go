// Package relay is what an authorization device does: it carries messages
// between phones on a near-field link and the appliance, without reading them, verifies
// the appliance's decision down to the pinned root, and acts on it at most once.
package relay

import (
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

// Config is what a relay needs. Zero values of durations and numbers are the
// defaults named beside them.
type Config struct {
	StateDir  string
	URL       string // https://HOST:PORT of the appliance
	CAFile    string // PEM, what the appliance's certificate chains to
	Links     []Link
	Orders    Orders
	Floor     protocol.Level // least level to act on
	Strict    bool           // ask for the client's countersignature and verify that too
	Hook      Hook
	Display   io.Writer     // where service and amount are shown before the act; nil: nowhere
	Log       hclog.Logger  // nil: none
	Metrics   *Metrics      // nil: not registered
	Timeout   time.Duration // of a call to the appliance, 10 s
	Idle      time.Duration // after which a link without a message is closed, 2 minutes
	Send      time.Duration // for a phone to take an answer, 10 s
	ActWait   time.Duration // by which an answer waits for the hook, 2 s
	Grace     time.Duration // for what is under way when the relay is stopped, 500 ms
	MaxLinks  int           // at a time; one more is told "link busy", 32
	OrderWait time.Duration // for a phone to take up an order from the socket, 5 minutes
	// ApprovalWait is for a second approver after the first, 5 minutes. The
	// appliance has a limit of its own.
	ApprovalWait time.Duration
}

// Link is a near-field listener.
type Link struct {
	Listen string // "tcp:HOST:PORT" or "unix:/PATH"
	Class  deviceapi.LinkClass
}

func (c Config) withDefaults() Config {
	for _, d := range []struct {
		value    *time.Duration
		standard time.Duration
	}{
		{&c.Timeout, uplink.DefaultTimeout},
		{&c.Idle, 2 * time.Minute},
		{&c.Send, 10 * time.Second},
		{&c.ActWait, 2 * time.Second},
		{&c.Grace, 500 * time.Millisecond},
		{&c.OrderWait, 5 * time.Minute},
		{&c.ApprovalWait, 5 * time.Minute},
		{&c.Hook.Timeout, 10 * time.Second},
	} {
		if *d.value == 0 {
			*d.value = d.standard
		}
	}
	if c.MaxLinks == 0 {
		c.MaxLinks = 32
	}
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
	orders    source
	table     *table
	pendings  *pendings
	status    *statusFile
	listeners []*link.Listener
	slots     chan struct{} // one for each link in use
	unsettled chan struct{} // says that the journal has an outcome to report
	fatal     chan error
	acts      sync.WaitGroup
	display   sync.Mutex // one line at a time
	release   func()
}

// New opens the state directory, which no other process may use
// ([uplink.ErrLocked]) and which must be enrolled ([uplink.ErrNotEnrolled]), and the
// listeners. The caller calls Serve.
func New(c Config) (*Relay, error) {
	c = c.withDefaults()
	release, err := uplink.Lock(c.StateDir)
	if err != nil {
		return nil, err
	}
	r := &Relay{
		config: c, log: c.Log, metrics: c.Metrics, table: newTable(), pendings: newPendings(c.ApprovalWait), slots: make(chan struct{}, c.MaxLinks),
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
		State: state, URL: r.config.URL, CAFile: r.config.CAFile, Timeout: r.config.Timeout,
		Log: r.log.Named("uplink"), Changed: func() { r.status.update(nil) },
	})
	if err != nil {
		return err
	}
	if r.journal, err = journal.Open(journal.Config{Path: filepath.Join(r.config.StateDir, "journal")}); err != nil {
		return err
	}
	r.status = newStatusFile(r)
	if r.orders, err = newSource(r.config); err != nil {
		return err
	}
	for _, l := range r.config.Links {
		listener, err := link.Listen(l.Listen)
		if err != nil {
			return err
		}
		r.listeners = append(r.listeners, listener)
	}
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

// Identity tells who the device is.
func (r *Relay) Identity() uplink.Identity { return r.client.Identity() }

// Reachable says whether the appliance answered the last call.
func (r *Relay) Reachable() bool { return r.client.Reachable() }

// Serve runs the device until ctx is over, which is no error, or until the
// journal cannot be written. It gives what is under way the grace to end; a hook
// that runs longer goes on by itself, and its transaction is unconfirmed.
func (r *Relay) Serve(ctx context.Context) error {
	defer r.close()
	r.reportLeftOver()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// Calls outlive ctx by the grace: an approval that was granted is acted on.
	calls, stopCalls := context.WithCancel(context.WithoutCancel(ctx))
	defer stopCalls()

	var links, upkeep sync.WaitGroup
	for i, l := range r.listeners {
		class := r.config.Links[i].Class
		links.Go(func() { r.accept(calls, l, class) })
	}
	upkeep.Go(func() { r.client.Run(ctx) })
	upkeep.Go(func() { r.reportOutcomes(ctx) })
	upkeep.Go(func() { r.orders.run(ctx) })

	var err error
	select {
	case <-ctx.Done():
	case err = <-r.fatal:
	}
	cancel()
	for _, l := range r.listeners {
		_ = l.Close() // its own goroutine sees that it is closed
	}
	grace := time.AfterFunc(r.config.Grace, stopCalls)
	defer grace.Stop()
	r.table.close()
	links.Wait()
	waitFor(&r.acts, calls.Done())
	upkeep.Wait()
	return err
}

// waitFor waits for group, or for limit.
func waitFor(group *sync.WaitGroup, limit <-chan struct{}) {
	done := make(chan struct{})
	go func() { group.Wait(); close(done) }()
	select {
	case <-done:
	case <-limit:
	}
}

// fail stops the relay: without a journal it must not act, and so is of no use.
func (r *Relay) fail(err error) {
	select {
	case r.fatal <- err:
	default:
	}
}

// reportLeftOver tells the operator what a crash has left unconfirmed, once.
func (r *Relay) reportLeftOver() {
	for _, id := range r.journal.LeftOver() {
		r.log.Error("act unconfirmed: it was started before a crash and is not repeated", "transaction", id.String())
		r.metrics.acts.WithLabelValues("unconfirmed").Inc()
		if err := r.journal.Told(id); err != nil {
			r.fail(err)
			return
		}
		r.status.update(&Last{Result: "unconfirmed", Transaction: id.String()})
	}
}

func (r *Relay) close() {
	var errs []error
	for _, l := range r.listeners {
		_ = l.Close() // closed already where Serve ran
	}
	r.pendings.close()
	if r.orders != nil {
		errs = append(errs, r.orders.close())
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
