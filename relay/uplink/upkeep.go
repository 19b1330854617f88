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

// The periods of the upkeep.
const (
	trustPeriod = time.Hour        // between refreshes of the trust
	lookPeriod  = time.Minute      // between looks at the clock, which may jump
	firstPause  = 2 * time.Second  // after a failure, doubling up to lastPause
	lastPause   = 10 * time.Minute // after many
	askedPause  = time.Second      // between refreshes that a decision asks for
)

// Run keeps the trust fresh and the certificate valid until ctx is over: the
// trust is fetched at once and then each hour, the certificate renewed at half its
// life.
func (c *Client) Run(ctx context.Context) {
	pinned := task{name: "refreshing trust", do: c.refresh}
	renewal := task{name: "renewing certificate", do: c.renew}
	for ctx.Err() == nil {
		at := time.Now()
		if !at.Before(pinned.next) {
			pinned.run(ctx, c, at.Add(trustPeriod))
		}
		if !at.Before(renewalTime(c.Identity(), renewal)) {
			renewal.run(ctx, c, at.Add(firstPause))
		}
		next := renewalTime(c.Identity(), renewal)
		if pinned.next.Before(next) {
			next = pinned.next
		}
		timer := time.NewTimer(min(lookPeriod, time.Until(next)))
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
	}
}

// renewalTime is half the certificate's life, or later after a failure.
func renewalTime(i Identity, renewal task) time.Time {
	half := i.NotBefore.Add(i.NotAfter.Sub(i.NotBefore) / 2)
	if half.Before(renewal.next) {
		return renewal.next
	}
	return half
}

// task is something to be done again and again, less often while it fails.
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
	t.next = time.Now().Add(t.pause)
	if ctx.Err() == nil {
		c.config.Log.Warn("upkeep failed", "task", t.name, "error", err, "retry_in", t.pause.String())
	}
}

// RefreshTrust fetches the trust for a decision by a key that is not known, or for a
// server that is not. One that began after this was called will do; at most one a
// second is made, and who comes in between waits. An error leaves the trust as it is.
func (c *Client) RefreshTrust(ctx context.Context) error {
	asked := time.Now()
	c.refreshing.Lock()
	defer c.refreshing.Unlock()
	if c.refreshed.After(asked) {
		return nil
	}
	timer := time.NewTimer(time.Until(c.refreshed.Add(askedPause)))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
	}
	c.refreshed = time.Now()
	return c.refreshLocked(ctx)
}

func (c *Client) refresh(ctx context.Context) error {
	c.refreshing.Lock()
	defer c.refreshing.Unlock()
	return c.refreshLocked(ctx)
}

// refreshLocked asks a server that is not known as well: what a trust document says is
// believed for the pinned root's signatures, and the server may be known by nothing but
// what it says.
func (c *Client) refreshLocked(ctx context.Context) error {
	pinned := request{method: http.MethodGet, path: "/v1/trust"}
	raw, err := c.callOnce(ctx, pinned)
	if errors.Is(err, errStranger) {
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

// follow takes over what a document has that the pinned root vouches for. It goes
// through [trust.State.Update], as a phone does with MUs: a new root must be the
// one that the old root named, and no key goes back to an earlier epoch.
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

// valid gives the key certificates that can be taken now, those of kem first,
// without which no root is followed, and each use from its lowest epoch up.
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

// renew has the same key certified again.
func (c *Client) renew(ctx context.Context) error {
	csr, err := newRequest(c.config.State.key)
	if err != nil {
		return err
	}
	body, err := json.Marshal(enrol.RenewRequest{CSR: string(csr)})
	if err != nil {
		return err
	}
	raw, err := c.post(ctx, "/v1/renew", "application/json", body)
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
