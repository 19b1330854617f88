package appliance

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"countersign/appliance/keyring"
	"countersign/appliance/store"
	"countersign/protocol"
)

// answer signs what was approved, or waits for a second approver, and seals the
// result for the phone.
func (a *Appliance) answer(ctx context.Context, c countersigned, out store.Outcome) (protocol.CountersignResponse, error) {
	res := protocol.CountersignResponse{Result: out.Result}
	p4 := protocol.P4{Result: out.Result, Reason: out.Reason, Asked: out.Asked}
	if c.wantsPassword() && (out.Result == protocol.ResultRetry || out.Result == protocol.ResultDenied) {
		p4.TriesLeft = &out.TriesLeft // a denial has it too, 0, so that their sizes are one
	}
	var err error
	switch {
	case out.Reason == protocol.CodeLocked:
		p4.Retry, err = a.lockedFor(ctx, c)
	case out.Result == protocol.ResultApproved && c.p1.Service != protocol.ServiceDryRun && c.p1.Service != protocol.ServiceStatus:
		res.Decision, err = a.signDecision(ctx, c, out.Decision)
		if c.p1.Capabilities&protocol.CapabilityFullReceipt != 0 {
			p4.Decision = res.Decision
		}
	case out.Result == protocol.ResultPending:
		if res.Decision, err = a.signDecision(ctx, c, out.Decision); err == nil {
			res.NextHandle, err = a.sealPending(ctx, c, out.Decision)
		}
	}
	if err != nil {
		return protocol.CountersignResponse{}, err
	}
	var r protocol.ReceiptNonce
	_, _ = rand.Read(r[:]) // never fails, crypto/rand
	res.M4 = c.channel.SealM4(c.m3, r, p4.Marshal())
	a.metrics.settled(out)
	return res, nil
}

// lockedFor is how long the password is locked, whole seconds rounded up, 0 where
// it is no more; nil until an administrator unlocks it.
func (a *Appliance) lockedFor(ctx context.Context, c countersigned) (*uint64, error) {
	guard, err := a.store.Guard(ctx, c.p1.Client)
	if err != nil {
		return nil, fmt.Errorf("password guard of client %s: %w", c.p1.Client, err)
	}
	code, wait := guard.Locked(a.now())
	if code != 0 && wait == 0 {
		return nil, nil
	}
	seconds := uint64((wait + time.Second - 1) / time.Second)
	return &seconds, nil
}

// errDenied is a defect of this package: nothing that was denied reaches the signer.
var errDenied = errors.New("a denied decision was to be signed")

// signDecision signs a stored decision, with the key of today: what is asked for
// again may be signed by a later epoch than at first. A strict device gets the
// evidence with it.
func (a *Appliance) signDecision(ctx context.Context, c countersigned, d protocol.Decision) ([]byte, error) {
	if d.Result != protocol.ResultApproved && d.Result != protocol.ResultPending {
		return nil, errDenied
	}
	key, err := a.keys.Current(keyring.Decision, a.now())
	if err != nil {
		return nil, err
	}
	if d.Evidence, err = a.strictEvidence(ctx, c); err != nil {
		return nil, err
	}
	return protocol.SignDecision(ctx, a.keys.Signer(key), key.Version, d)
}
