// Package world provides an appliance in process, with its phones, devices, administrators,
// invitations, change requests and decisions. It is built once through the product's own API. The
// result is a database file, to be copied and altered, and the token that belongs to it.
package world

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"

	"countersign/appliance"
	"countersign/appliance/anchor"
	"countersign/appliance/keylife"
	"countersign/appliance/keyuse"
	"countersign/appliance/store"
	"countersign/appliance/store/sqlite"
	"countersign/hsm"
	"countersign/hsm/memory"
	"countersign/protocol"
	"countersign/protocol/trust"
)

// Domain is the trust domain of every appliance here.
const Domain = "test.example"

// House is an appliance that is open: one database file and its anchor, one token.
type House struct {
	*appliance.Appliance
	Store  store.Store
	Keys   *keyuse.Keys
	Seals  *store.Seals
	Anchor *anchor.File
	Token  *memory.Token
	Clock  *Clock

	before  float64 // alarms of the house that stood here
	log     *journal
	metrics *prometheus.Registry
}

// Place is where a house stands.
type Place struct {
	Path   string             // of the database; the anchor is beside it, see AnchorOf
	Root   protocol.PublicKey // trust.root; zero: the anchor alone pins
	Token  *memory.Token
	Escrow *ecdh.PublicKey // the backup key
	Clock  *Clock
}

// AnchorOf is the anchor that goes with a database.
func AnchorOf(path string) string { return path + ".anchor" }

// Clock is a clock that is set by hand.
type Clock struct {
	mu  sync.Mutex
	now time.Time // guarded by mu
}

// NewClock returns a clock that stands at a time.
func NewClock(now time.Time) *Clock { return &Clock{now: now} }

// Now is the time of the clock.
func (c *Clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

// Advance sets the clock forward.
func (c *Clock) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// Unix is the time of the clock in seconds.
func (c *Clock) Unix() uint64 { return uint64(c.Now().Unix()) }

// Open starts an appliance, as `countersignd serve` does: anchor, seals, registry, policy.
// The caller calls Close, where there is a house.
func Open(ctx context.Context, p Place) (*House, error) {
	h := &House{Token: p.Token, Clock: p.Clock, log: &journal{}, metrics: prometheus.NewRegistry()}
	logger := hclog.New(&hclog.LoggerOptions{Level: hclog.Warn, Output: h.log})
	var err error
	if h.Anchor, err = anchor.Open(AnchorOf(p.Path)); err != nil {
		return nil, err
	}
	if h.Store, err = sqlite.Open(ctx, sqlite.Config{Path: p.Path, Logger: logger}); err != nil {
		return nil, err
	}
	h.Seals = store.NewSeals(h.Alarm)
	if err := h.load(ctx, p, logger); err != nil {
		return h, errors.Join(err, h.Store.Close())
	}
	return h, nil
}

func (h *House) load(ctx context.Context, p Place, logger hclog.Logger) (err error) {
	token := keylife.Backed{Token: hsm.Token(p.Token), Recipient: p.Escrow}
	pins := keyuse.Pins{Anchor: h.Anchor, Root: p.Root}
	if err := keyuse.Unseal(ctx, token, h.Store, h.Seals, pins); err != nil {
		return err
	}
	if h.Keys, err = keyuse.Load(ctx, token, h.Store, pins); err != nil {
		return err
	}
	if err := h.Keys.Keep(ctx, h.Seals); err != nil {
		return err
	}
	h.Appliance, err = appliance.New(ctx, appliance.Config{
		Store: h.Store, Keys: h.Keys, Token: "first", Logger: logger, Metrics: h.metrics, Now: p.Clock.Now,
	})
	return err
}

// Close ends the appliance.
func (h *House) Close() error { return h.Store.Close() }

// Work runs the appliance's background until a condition holds, at most a few seconds.
func (h *House) Work(ctx context.Context, until func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, workLimit)
	var running sync.WaitGroup
	running.Go(func() { h.Run(ctx) })
	defer running.Wait()
	defer cancel()
	poll := time.NewTicker(2 * time.Millisecond)
	defer poll.Stop()
	for !until() {
		select {
		case <-poll.C:
		case <-ctx.Done():
			return fmt.Errorf("background work: %w", ctx.Err())
		}
	}
	return nil
}

const workLimit = 5 * time.Second

// Quiet makes what hears alarms, of a house that is not open.
func (h *House) Quiet() { h.log, h.metrics = &journal{}, prometheus.NewRegistry() }

// Alarm is of the seals while there is no appliance to hear it.
func (h *House) Alarm(err error) { _, _ = h.log.Write([]byte(err.Error() + "\n")) } // to memory

// Alarms counts what the appliance reported as forged: its metrics of that name, or its
// log where it did not start.
func (h *House) Alarms() float64 { return h.before + h.alarms() }

// Heard is its log.
func (h *House) Heard() string {
	if h.log == nil {
		return ""
	}
	h.log.mu.Lock()
	defer h.log.mu.Unlock()
	return h.log.text.String()
}

// Remember counts alarms of an appliance that was here before.
func (h *House) Remember(alarms float64) { h.before = alarms }

func (h *House) alarms() (n float64) {
	families, _ := h.metrics.Gather() // what there is
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if strings.Contains(f.GetName(), "forged") {
				n += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	if n == 0 && h.log.tells() {
		return 1
	}
	return n
}

// journal is a log that is searched.
type journal struct {
	mu   sync.Mutex
	text bytes.Buffer // guarded by mu
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.Write(p)
}

func (j *journal) tells() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return tells(j.text.String())
}

// Told reports whether an error names a forgery.
func Told(err error) bool { return err != nil && tells(err.Error()) }

func tells(text string) bool {
	for _, words := range []string{"changed outside of the appliance", "does not fit its seal", "forged"} {
		if strings.Contains(text, words) {
			return true
		}
	}
	return false
}

// Verify follows the house's trust document from the true root, as a phone does.
func (h *House) Verify(root protocol.RootHash) (trust.State, error) {
	return h.Enrol.Trust().Resolve(root, h.Clock.Unix())
}

// DeviceOf reads a device as it stands.
func (h *House) device(ctx context.Context, name string) (store.Device, error) {
	return h.Parties.Device(ctx, h.Keys.SPIFFEID("device", name).String())
}

// CopyHouse copies a database that is closed, with its anchor.
func CopyHouse(to, from string) error {
	return errors.Join(CopyFile(to, from), CopyFile(AnchorOf(to), AnchorOf(from)))
}

// CopyFile copies a database that is closed.
func CopyFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }() // it was read only
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
