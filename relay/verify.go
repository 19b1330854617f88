package relay

import (
	"errors"
	"fmt"
	"time"

	"countersign/protocol"
	"countersign/protocol/deviceapi"
	"countersign/protocol/receipt"
	"countersign/protocol/trust"
)

// verify checks a decision, PROTOCOL.md §3.1. If the device does not know the key yet, it
// refreshes its trust. If it no longer knows the key, because it has just followed to a new
// root, it asks again: the same M3 gets the same decision, signed by the current key.
func (r *Relay) verify(x *exchange) (receipt.Decision, error) {
	d, err := r.check(x, x.answer.Decision)
	if !errors.Is(err, protocol.CodeCertificate) {
		return d, err
	}
	if err := r.client.RefreshTrust(x.ctx); err != nil {
		r.log.Warn("refreshing trust failed", "error", err)
	}
	if d, err = r.check(x, x.answer.Decision); !errors.Is(err, protocol.CodeCertificate) {
		return d, err
	}
	again, askErr := r.client.Countersign(x.ctx, deviceapi.CountersignRequest{Handle: x.challenge.handle, M3: x.frame})
	if askErr != nil || again.Decision == nil {
		return d, err
	}
	return r.check(x, again.Decision)
}

func (r *Relay) check(x *exchange, decision []byte) (receipt.Decision, error) {
	c, pinned := x.challenge, r.client.Trust()
	order := c.authorization.order
	challenges, roots := []protocol.Challenge{c.chal}, []protocol.RootID{c.root}
	if c.second != nil {
		challenges, roots = []protocol.Challenge{c.second.chal, c.chal}, []protocol.RootID{c.second.root, c.root}
	}
	d, err := receipt.Check{
		Root: pinned.Root, KeyCerts: append(pinned.KeyCerts(trust.UseDecision), pinned.KeyCerts(trust.UseClientCA)...),
		Now:   pinned.Time(uint64(time.Now().Unix())),
		Begun: roots, Device: r.client.Identity().ID, Nonce: c.nonce, Challenges: challenges,
		Services: order.Services, Amount: order.Amount, Floor: r.config.Floor, Elapsed: time.Since(x.sent),
		Strict: r.config.Strict,
	}.Verify(decision)
	if err != nil {
		return d, err
	}
	if err := c.checkSecond(d); err != nil {
		return d, err
	}
	if c.authorization.isExact && order.Amount == nil && d.Amount != nil {
		return d, fmt.Errorf("decision for %v, ordered without an amount: %w", *d.Amount, protocol.CodePolicy)
	}
	return d, nil
}

// checkSecond returns CodeReplayed if a second approver's decision is for another first
// approval than the one that was applied for, or is pending itself.
func (c *challenge) checkSecond(d receipt.Decision) error {
	p := c.secondFor(d)
	switch {
	case p == nil:
		return nil
	case d.Result == protocol.ResultPending:
		return fmt.Errorf("decision of a second approver is pending: %w", protocol.CodeReplayed)
	case d.Statement != p.first.Statement || d.Transaction != p.first.Transaction:
		return fmt.Errorf("decision of a second approver on another statement than transaction %v: %w",
			p.first.Transaction, protocol.CodeReplayed)
	}
	return nil
}

// secondFor returns the approval that a decision completes; nil if it is an ordinary decision.
func (c *challenge) secondFor(d receipt.Decision) *pending {
	if d.SecondStatement == nil {
		return nil
	}
	return c.second
}
