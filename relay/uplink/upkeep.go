package uplink

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"countersign/protocol"
	"countersign/protocol/enrol"
	"countersign/protocol/trust"
)

// Periods of the upkeep.
const (
	trustPeriod = time.Hour        // between refreshes of the trust
	lookPeriod  = time.Minute      // between looks at the clock, which may jump
	firstPause  = 2 * time.Second  // after a failure, doubling up to lastPause
	lastPause   = 10 * time.Minute // after many
	askedPause  = time.Second      // between refreshes that a decision asks for
	askPeriod   = time.Minute      // between questions whether the appliance serves the device
)

// Run fetches the trust at once and then each hour, asks whether the appliance serves the device at
// once and then each AskEvery, and renews the certificate at half its life, until ctx is over.
func (c *Client) Run(ctx context.Context) {
	refresh := task{name: "refreshing trust", do: c.refresh}
	renewal := task{name: "renewing certificate", do: c.renew}
	question := time.NewTicker(c.config.AskEvery) // by a clock that is not set back
	defer question.Stop()
	c.ask(ctx)
	for ctx.Err() == nil {
		at := time.Now()
		if !at.Before(refresh.next) {
			refresh.run(ctx, c, at.Add(trustPeriod))
		}
		if !at.Before(renewalTime(c.Identity(), renewal)) {
			renewal.run(ctx, c, at.Add(firstPause))
		}
		next := renewalTime(c.Identity(), renewal)
		if refresh.next.Before(next) {
			next = refresh.next
		}
		select {
		case <-ctx.Done():
		case <-question.C:
			c.ask(ctx)
		case <-time.After(min(lookPeriod, time.Until(next))):
		}
	}
}

// ask finds out whether the appliance serves this device, which [Client.Problem] then reports: without a phone there
// are no other calls that show it. An appliance that does not know the question says nothing.
func (c *Client) ask(ctx context.Context) {
	question := request{method: http.MethodGet, path: "/v1/device", isRecent: true}
	_, _ = c.call(ctx, question) // callOnce has taken in what it shows
}

// renewalTime returns half the certificate's life, or a later time after a failure.
func renewalTime(i Identity, renewal task) time.Time {
	half := i.NotBefore.Add(i.NotAfter.Sub(i.NotBefore) / 2)
	if half.Before(renewal.next) {
		return renewal.next
	}
	return half
}

// task is repeated, less often while it fails.
type task struct {
	name  string
	do    func(context.Context) error
	next  time.Time
	pause time.Duration
}

func (t *task) run(ctx context.Context, c *Client, next time.Time) {
	err := t.do(ctx)
	if err == nil {
		t.next, t.pause = next, 0
		return
	}
	t.pause = min(max(2*t.pause, firstPause), lastPause)
	wait := t.pause
	var answered *StatusError
	if errors.As(err, &answered) { // the appliance may name a longer one
		wait = max(wait, answered.Retry)
	}
	t.next = time.Now().Add(wait)
	if ctx.Err() == nil {
		c.config.Log.Warn("upkeep failed", "task", t.name, "error", err, "retry_in", wait.String())
	}
}

// RefreshTrust fetches the trust because of an unknown decision key or server. A refresh that
// began after the call suffices; there is at most one per second, for which other callers wait.
// An error leaves the trust unchanged.
func (c *Client) RefreshTrust(ctx context.Context) error {
	asked := time.Now()
	c.refreshing.Lock()
	defer c.refreshing.Unlock()
	if c.refreshed.After(asked) {
		return nil
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(time.Until(c.refreshed.Add(askedPause))):
	}
	c.refreshed = time.Now()
	return c.refreshLocked(ctx)
}

func (c *Client) refresh(ctx context.Context) error {
	c.refreshing.Lock()
	defer c.refreshing.Unlock()
	return c.refreshLocked(ctx)
}

// refreshLocked also asks an unknown server: a trust document is verified by the pinned root's
// signatures, and may be the only way to know the server, whose certificate has to verify by it.
func (c *Client) refreshLocked(ctx context.Context) error {
	pinned := request{method: http.MethodGet, path: "/v1/trust", answer: "application/json", isOpen: true}
	raw, err := c.callOnce(ctx, pinned)
	isOpen := errors.Is(err, errStranger)
	if isOpen {
		raw, err = c.open.call(ctx, pinned)
	}
	if err != nil {
		return err
	}
	document, err := trust.ParseDocument(raw)
	if err != nil {
		return err
	}
	old := c.Trust()
	next, err := follow(old, document)
	if err == nil && isOpen {
		err = c.known(next)
	}
	if err != nil {
		return err
	}
	before, err := json.Marshal(c.config.State.Trust())
	if err != nil {
		return err
	}
	after, err := json.Marshal(next)
	if err != nil || string(before) == string(after) {
		return err
	}
	if err := c.config.State.setTrust(next); err != nil {
		return err
	}
	c.config.Log.Info("trust updated", "root_number", next.RootNumber)
	c.config.Changed()
	return nil
}

// follow adopts the certificates of a document that the pinned root vouches for, by
// [trust.State.Update], as a phone does with MUs: a new root must be the one that the old
// root named, and no key returns to an earlier epoch.
func follow(t trust.State, d trust.Document) (trust.State, error) {
	var roots [][]byte
	for _, raw := range d.RootCerts {
		if r, err := trust.VerifyRootCert(raw); err == nil && r.Number > t.RootNumber {
			roots = append(roots, raw)
		}
	}
	if len(roots) >= trust.MaxCerts {
		return t, fmt.Errorf("appliance is %d roots ahead: enrol this device again: %w", len(roots), protocol.CodeCertificate)
	}
	certs := append(roots, valid(t, d)...)
	for chunk := range slices.Chunk(certs, trust.MaxCerts) {
		var err error
		if t, err = t.Update(trust.KeyUpdate{Certs: chunk}.Marshal(), now(t)); err != nil {
			return t, err
		}
	}
	return t, nil
}

// valid returns the key certificates that are valid now: kem first, without which no root is
// followed, and the epochs of each use in ascending order.
func valid(t trust.State, d trust.Document) [][]byte {
	var keys []trust.Key
	for _, raw := range d.KeyCerts {
		k, err := trust.VerifyKeyCert(raw, d.RootKey)
		if err == nil && k.AcceptableAt(now(t), nil) == nil {
			keys = append(keys, trust.Key{KeyCert: k, Raw: raw})
		}
	}
	slices.SortFunc(keys, func(a, b trust.Key) int {
		return cmp.Or(cmp.Compare(a.Use, b.Use), cmp.Compare(a.Epoch, b.Epoch))
	})
	raw := make([][]byte, len(keys))
	for i, k := range keys {
		raw[i] = k.Raw
	}
	return raw
}

// renew has the appliance certify the same key again.
func (c *Client) renew(ctx context.Context) error {
	csr, err := newRequest(c.config.State.key)
	if err != nil {
		return err
	}
	body, err := json.Marshal(enrol.RenewRequest{CSR: string(csr)})
	if err != nil {
		return err
	}
	raw, err := c.call(ctx, post("/v1/renew", "application/json", body))
	if err != nil {
		return err
	}
	answer, err := enrol.ParseRenewResponse(raw)
	if err != nil {
		return err
	}
	if err := c.config.State.setCertificates(answer.Certificates); err != nil {
		return err
	}
	c.http.closeIdle() // new connections show the new certificate
	c.config.Log.Info("certificate renewed", "not_after", c.Identity().NotAfter)
	c.config.Changed()
	return nil
}
