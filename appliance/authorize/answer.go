package authorize

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"countersign/appliance/keyring"
	"countersign/appliance/parties"
	"countersign/appliance/store"
	"countersign/protocol"
	"countersign/protocol/deviceapi"
	"countersign/protocol/message"
	"countersign/protocol/receipt"
)

// answer signs an approval, or waits for a second approver, and seals the result for the phone.
func (a *Service) answer(ctx context.Context, c countersigned, out store.Outcome) (deviceapi.CountersignResponse, error) {
	res := deviceapi.CountersignResponse{Result: out.Result}
	p4 := message.P4{Result: out.Result, Reason: out.Reason, Asked: out.Asked}
	if c.wantsPassword() && (out.Result == protocol.ResultRetry || out.Result == protocol.ResultDenied) {
		p4.TriesLeft = &out.TriesLeft // a denial has it too, 0, so that both have the same size
	}
	var err error
	switch {
	case out.Reason == protocol.CodeLocked:
		p4.Retry, err = a.lockedFor(ctx, c)
	case out.Result == protocol.ResultApproved && c.p1.Service != protocol.ServiceDryRun && c.p1.Service != protocol.ServiceStatus:
		res.Decision, err = a.signDecision(ctx, c, out)
		if c.p1.Capabilities&message.CapabilityFullReceipt != 0 {
			p4.Decision = res.Decision
		}
	case out.Asked != nil && out.Asked.Result == protocol.ResultApproved:
		// Asked for now, also for a repeat: the device may have reported meanwhile.
		p4.Performed, err = a.store.Performed(ctx, c.p1.Client, *c.p1.Asked)
	case out.Result == protocol.ResultPending:
		if res.Decision, err = a.signDecision(ctx, c, out); err == nil {
			res.NextHandle, err = a.sealPending(ctx, c, out.Decision)
		}
	}
	if parties.Forged(err) {
		return a.answer(ctx, c, a.refuseForged(c))
	}
	if err != nil {
		return deviceapi.CountersignResponse{}, err
	}
	var r message.ReceiptNonce
	_, _ = rand.Read(r[:]) // never fails, crypto/rand
	res.M4 = c.channel.SealM4(c.m3, r, p4.Marshal())
	a.metrics.settled(c.p1.Service, out)
	return res, nil
}

// lockedFor returns how long the password is locked, in whole seconds rounded up; 0 if it no
// longer is, nil if only an administrator can unlock it.
func (a *Service) lockedFor(ctx context.Context, c countersigned) (*uint64, error) {
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

// refuseForged is the outcome when a record does not fit its seal, or a stored decision is not
// the one that follows from its sources: an ordinary refusal.
func (a *Service) refuseForged(c countersigned) store.Outcome {
	a.failures.add(c.device.ID, protocol.CodeRefused, 1)
	return store.Outcome{Result: protocol.ResultDenied, Reason: protocol.CodeRefused}
}

// signDecision signs a stored decision with the key in use, so that a later epoch may sign a
// repeated answer. It makes the decision again from handle, evidence and policy, and signs it
// only if the stored one is equal. A strict device also gets the evidence.
func (a *Service) signDecision(ctx context.Context, c countersigned, out store.Outcome) ([]byte, error) {
	d, err := a.rebuilt(ctx, c, out)
	if err != nil {
		return nil, err
	}
	key, err := a.keys.Current(keyring.Decision, a.now())
	if err != nil {
		return nil, err
	}
	if d.Evidence, err = a.strictEvidence(ctx, c); err != nil {
		return nil, err
	}
	return receipt.Sign(ctx, a.keys.Signer(key), key.Version, d)
}

// rebuilt makes the decision again with describe: statement, level, factors, device, service,
// amount, pairwise id, u, lifetime and policy hash. It takes transaction id, issued-at, result
// and the fact that the password was right from the stored outcome, whose seal binds them to this
// M3. If the stored decision differs, it raises the alarm and returns an error that wraps
// [store.ErrForged].
func (a *Service) rebuilt(ctx context.Context, c countersigned, out store.Outcome) (d receipt.Decision, err error) {
	if c.seen.code != 0 {
		return d, a.keys.Seals().Report(fmt.Sprintf("serial %v is approved, and its evidence is refused with code %d", c.key.Serial, c.seen.code))
	}
	s, err := a.describe(ctx, c, judged{decision: c.decided(c.hasPassword()), password: verdict{right: c.hasPassword()}})
	if errors.Is(err, store.ErrNotFound) {
		return d, a.keys.Seals().Report(fmt.Sprintf("the policy of serial %v: %v", c.key.Serial, err))
	}
	if err != nil {
		return d, err
	}
	want := s.Unopposed()
	d = want.Decision
	if d.IssuedAt = out.Decision.IssuedAt; c.handle.First == nil {
		d.Transaction = out.Decision.Transaction
	}
	if want.Result != out.Result || want.Reason != out.Reason || !bytes.Equal(d.Marshal(), out.Decision.Marshal()) {
		return d, a.keys.Seals().Report(fmt.Sprintf("the decision of serial %v does not follow from its evidence", c.key.Serial))
	}
	return d, nil
}
