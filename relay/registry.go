package relay

import (
	"context"
	"crypto/sha256"
	"slices"
	"sync"
	"time"

	"countersign/protocol"
	"countersign/protocol/receipt"
)

// Limits of what the device remembers.
const (
	maxChallenges = 128
	maxSent       = 8 // different M3s for one challenge; an honest phone sends three
)

func (c *challenge) isReady() bool {
	select {
	case <-c.ready:
		return true
	default:
		return false
	}
}

// await waits until the appliance has answered M1.
func (c *challenge) await(ctx context.Context) error {
	select {
	case <-c.ready:
		return c.err
	case <-ctx.Done():
		return protocol.CodeTimeout
	}
}

// isLive reports whether an M3 can answer the challenge.
func (c *challenge) isLive() bool {
	return c.isReady() && c.handle != nil && time.Now().Before(c.expires)
}

// sentAtLocked notes that an M3 is being sent and returns when it was first sent. Beyond
// maxSent it returns when the first M3 was: too early is on the safe side.
func (c *challenge) sentAtLocked(m3 []byte) time.Time {
	hash := sha256.Sum256(m3)
	if at, isKnown := c.sent[hash]; isKnown {
		return at
	}
	at := time.Now()
	if c.first.IsZero() {
		c.first = at
	}
	if len(c.sent) >= maxSent {
		return c.first
	}
	c.sent[hash] = at
	return at
}

// registry has the challenges and authorizations of the device.
type registry struct {
	// mu guards the following fields, the progress and owner of every authorization, and
	// the marked fields of every challenge. It is never held during a call or a write.
	mu         sync.Mutex
	challenges []*challenge     // newest last
	orders     []*authorization // that programs placed, oldest first
	newest     *authorization   // the approval that came last to wait for a second approver

	standing *authorization // to copy for each M1; nil: programs place the orders
}

// challengeLocked returns the challenge of x's M1. A new one gets an order; the caller then
// sets the answer and closes ready. [protocol.CodeLinkBusy] if too many are under way.
func (g *registry) challengeLocked(x *exchange) (c *challenge, isNew bool, err error) {
	now, hash := time.Now(), sha256.Sum256(x.frame)
	g.challenges = slices.DeleteFunc(g.challenges, func(c *challenge) bool {
		return c.isReady() && !now.Before(c.expires)
	})
	if i := slices.IndexFunc(g.challenges, func(c *challenge) bool { return c.m1 == hash }); i >= 0 {
		return g.challenges[i], false, nil
	}
	if len(g.challenges) >= maxChallenges {
		oldest := slices.IndexFunc(g.challenges, (*challenge).isReady)
		if oldest < 0 {
			return nil, false, protocol.Retry{Code: protocol.CodeLinkBusy, After: busyPause}
		}
		g.forgetLocked(g.challenges[oldest])
	}
	c = &challenge{m1: hash, ready: make(chan struct{}), sent: map[[sha256.Size]byte]time.Time{}}
	g.challenges = append(g.challenges, c)
	g.assignLocked(c)
	x.challenge = c
	return c, true, nil
}

// assignLocked gives a challenge its order: the one that waits for a second approver, else the
// next. Without an order a phone can still ask for a status or a dry run.
func (g *registry) assignLocked(c *challenge) {
	if w := g.newest; w != nil && w.isOffered() {
		c.second = w.pending
		if w.isOnce {
			c.authorization = w
			return
		}
	}
	switch next := slices.IndexFunc(g.orders, func(a *authorization) bool { return a.state == offered }); {
	case g.standing != nil:
		c.authorization = &authorization{order: g.standing.order, isExact: g.standing.isExact}
	case next >= 0:
		c.authorization = g.orders[next]
	default:
		c.authorization = &authorization{isExact: true}
		c.lack = g.lackLocked()
	}
	c.authorization.owner = c
}

// lackLocked returns why a phone gets no order: another phone has the last one, or there is nothing to approve.
func (g *registry) lackLocked() error {
	if slices.ContainsFunc(g.orders, func(a *authorization) bool { return a.state != settled }) {
		return protocol.Retry{Code: protocol.CodeLinkBusy, After: busyPause}
	}
	return protocol.CodeNothingToApprove
}

// liveLocked returns the challenge that an M3 answers; nil if it has expired. An M3 on a link
// without an M1 belongs to the challenge for which it was sent before, else to the newest: a
// phone that lost its link need not send M1 again.
func (g *registry) liveLocked(ofLink *challenge, m3 []byte) (newest *challenge) {
	switch {
	case ofLink != nil && ofLink.isLive():
		return ofLink
	case ofLink != nil:
		return nil
	}
	hash := sha256.Sum256(m3)
	for _, c := range slices.Backward(g.challenges) {
		if !c.isLive() {
			continue
		}
		if _, wasSent := c.sent[hash]; wasSent {
			return c
		}
		if newest == nil {
			newest = c
		}
	}
	return newest
}

func (g *registry) forgetLocked(c *challenge) {
	g.challenges = slices.DeleteFunc(g.challenges, func(other *challenge) bool { return other == c })
}

// place offers an order of a program to the next phone.
func (g *registry) place(a *authorization) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.orders = append(g.orders, a)
}

// remove forgets an order for which no program waits any longer.
func (g *registry) remove(a *authorization) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.orders = slices.DeleteFunc(g.orders, func(other *authorization) bool { return other == a })
}

// pend keeps a verified decision of result 3 for a second approver and returns its event.
func (r *Relay) pend(x *exchange, d receipt.Decision) (eventKind, *pending) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := x.challenge
	if c.waits != nil {
		return repeated, c.waits
	}
	c.waits = &pending{authorization: c.authorization, handle: x.answer.NextHandle, chal: c.chal, root: c.root, first: d}
	return pended, c.waits
}

// await names the approval of a in each later apply until it ends or a newer one replaces it.
func (r *Relay) await(a *authorization, res result) {
	r.log.Info("awaiting a second approver", res.logFields("wait", r.config.ApprovalWait.String())...)
	r.mu.Lock()
	if before := r.newest; before != nil && before != a && !a.isOnce {
		before.moveLocked(nil, event{kind: superseded})
	}
	r.newest = a
	p := a.pending
	r.mu.Unlock()
	if p.handle == nil {
		r.log.Warn("no second approver can be asked: the answer has no handle",
			"transaction", res.Decision.Transaction.String())
	}
	time.AfterFunc(r.config.ApprovalWait, func() { r.step(nil, a, event{kind: waitEnded, pending: p}) })
}

// relist names the approval of a again if no newer one is named.
func (r *Relay) relist(a *authorization) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.newest == nil || !r.newest.isOffered() {
		r.newest = a
	}
}
