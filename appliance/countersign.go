package appliance

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	"countersign/appliance/keyring"
	"countersign/appliance/store"
	"countersign/policy"
	"countersign/protocol"
)

// countersigned is an M3 that was opened under its handle.
type countersigned struct {
	device    store.Device
	m3        []byte
	handle    handle
	channel   protocol.Channel
	key       store.AnswerKey
	p1        protocol.P1
	p2        protocol.P2
	p3        protocol.P3
	statement protocol.Statement
}

// Countersign answers a phone's M3 that a device relays. The order is that of
// PROTOCOL.md §4: open, repeat what was answered already, evidence, decision, one
// durable commit, signature, answer. Errors carry a code that is answered over
// HTTP, or wrap [hsm.ErrUnavailable] or [store.ErrUnavailable]; after such an
// error the same M3 may be sent again.
func (a *Appliance) Countersign(ctx context.Context, device store.Device, req protocol.CountersignRequest) (protocol.CountersignResponse, error) {
	c, err := a.openCountersign(ctx, device, req)
	if err != nil {
		return protocol.CountersignResponse{}, err
	}
	out, err := a.store.Answered(ctx, c.key)
	if errors.Is(err, store.ErrNotFound) {
		out, err = a.settle(ctx, c)
	}
	if err != nil {
		return protocol.CountersignResponse{}, err
	}
	return a.answer(ctx, c, out)
}

func (a *Appliance) openCountersign(ctx context.Context, device store.Device, req protocol.CountersignRequest) (countersigned, error) {
	c := countersigned{device: device, m3: req.M3}
	var err error
	if c.handle, err = a.openHandle(ctx, device.ID, req.Handle); err != nil {
		return c, err
	}
	c.channel = c.handle.channel()
	attempt, p3, err := c.channel.OpenM3(req.M3)
	if err != nil {
		return c, fmt.Errorf("opening M3: %w", err)
	}
	if c.p3, err = protocol.ParseP3(p3); err != nil {
		return c, err
	}
	if c.p1, err = protocol.ParseP1(c.handle.P1); err != nil {
		return c, fmt.Errorf("P1 of the handle: %w", err)
	}
	if c.p2, err = protocol.ParseP2(c.handle.P2); err != nil {
		return c, fmt.Errorf("P2 of the handle: %w", err)
	}
	c.statement = protocol.NewStatement(c.handle.Root, c.handle.P1, c.handle.Challenge, c.handle.P2)
	c.key = store.AnswerKey{Client: c.p1.Client, Serial: c.p1.Serial, Attempt: attempt, M3: sha256.Sum256(req.M3)}
	return c, nil
}

// settle decides a countersignature that was not answered before. A refusal here,
// before the transaction, stores nothing.
func (a *Appliance) settle(ctx context.Context, c countersigned) (store.Outcome, error) {
	now := a.now()
	if c.expired(now) {
		return a.refuse(c, protocol.CodeExpired), nil
	}
	if c.key.Attempt != 0 {
		return a.refuse(c, protocol.CodeSerial), nil // nothing was answered 2, so there is no second attempt
	}
	client, evidence, code, err := a.examine(ctx, c)
	if err != nil {
		return store.Outcome{}, err
	}
	if code != 0 {
		return a.refuse(c, code), nil
	}
	pairwise, err := a.keys.MAC(ctx, protocol.PairwiseInput(client.ID, c.device.ID))
	if err != nil {
		return store.Outcome{}, fmt.Errorf("pairwise id: %w", err)
	}
	spend := a.spend(c, policy.Decide(policy.Factors(c.p2.Factors), evidence))
	copy(spend.Decision.Pairwise[:], pairwise)
	out, err := a.store.Spend(ctx, spend)
	if err != nil {
		return store.Outcome{}, fmt.Errorf("committing the decision: %w", err)
	}
	return out, nil
}

// expired compares with the appliance's clock; a clock that went back extends no
// challenge.
func (c countersigned) expired(now time.Time) bool {
	issued := time.UnixMilli(c.handle.Issued)
	return now.Before(issued) || now.After(issued.Add(time.Duration(c.p2.TTL)*time.Second))
}

// examine verifies the countersignature with the enrolled key. For a client that
// is unknown the same work is done with a key that nobody has, and the code is
// the uniform one.
func (a *Appliance) examine(ctx context.Context, c countersigned) (store.Client, policy.Evidence, protocol.Code, error) {
	client, err := a.client(ctx, c.p1.Client)
	known := !errors.Is(err, store.ErrNotFound)
	if err != nil && known {
		return client, policy.Evidence{}, 0, err
	}
	key := signingKey(client, c.p3.Slot)
	err = protocol.VerifyCountersign(key, c.statement, c.p3.Approval(), c.p3.Signature[:])
	switch {
	case !known, err != nil && client.Status != store.Active:
		return client, policy.Evidence{}, protocol.CodeRefused, nil
	case err != nil:
		return client, policy.Evidence{}, protocol.CodeSignature, nil
	}
	choice := policy.Refuse
	if c.p3.Verdict == protocol.Approve {
		choice = policy.Approve
	}
	return client, policy.Evidence{Choice: choice, Signature: true}, 0, nil
}

// decoyKey is a point whose private key nobody has: its x coordinate is the first
// on the curve that follows SHA-256("countersign decoy").
var decoyKey = makeDecoy()

func makeDecoy() protocol.PublicKey {
	x := sha256.Sum256([]byte("countersign decoy"))
	for {
		key, err := protocol.ParsePublicKey(append([]byte{2}, x[:]...))
		if err == nil {
			return key
		}
		x = sha256.Sum256(x[:])
	}
}

// signingKey is the enrolled key of a slot: 1 or, for the UV key, 3.
func signingKey(client store.Client, slot uint64) protocol.PublicKey {
	switch {
	case slot == protocol.SlotUV && client.UVKey != nil:
		return *client.UVKey
	case slot == protocol.SlotSigning && client.Version != 0:
		return client.SigningKey
	default:
		return decoyKey
	}
}

// spend describes the decision to the store.
func (a *Appliance) spend(c countersigned, decided policy.Decision) store.Spend {
	active, now := a.policy.Load(), a.now().UTC()
	s := store.Spend{
		AnswerKey: c.key, PolicyVersion: c.handle.Policy, Salt: store.NewSalt(), Now: now,
		Denial: denial(decided),
		Evidence: store.Evidence{
			Statement: c.statement,
			Approval:  c.p3.Approval(),
			Signature: c.p3.Signature,
			Reference: c.handle.Reference,
		},
		Decision: protocol.Decision{
			Statement: c.statement.Hash(), Transaction: newTransaction(), Level: c.p2.Level,
			Factors: protocol.Factors(decided.Verified()), IssuedAt: uint64(now.Unix()),
			Device: c.device.ID, Service: c.p1.Service, Amount: c.p2.Amount, Policy: active.wireHash(), U: c.handle.U,
		},
	}
	grant, err := active.Level(policy.Request{Service: uint64(c.p1.Service), Amount: policyAmount(c.p2.Amount), Requested: policy.Level(c.p2.Level)})
	if err != nil || grant.Level > policy.Level(c.p2.Level) {
		s.Denial = cmp.Or(s.Denial, protocol.CodePolicy)
		return s
	}
	s.Decision.Lifetime = uint64(grant.Lifetime / time.Second)
	s.Charges = charges(grant, c.p2.Amount, now)
	return s
}

func denial(d policy.Decision) protocol.Code {
	switch {
	case d.Approved():
		return 0
	case d.Refused():
		return protocol.CodeUserRefused
	default:
		return protocol.CodePolicy
	}
}

func charges(grant policy.Grant, amount *protocol.Amount, now time.Time) []store.Charge {
	var out []store.Charge
	for _, limit := range grant.Limits {
		c := store.Charge{
			Service: protocol.Service(grant.Service), Period: limit.Window, Window: limit.Start(now),
			AmountLimit: limit.Amount, CountLimit: limit.Count,
		}
		if amount != nil {
			c.Amount = amount.Minor
		}
		out = append(out, c)
	}
	return out
}

func newTransaction() (id protocol.TransactionID) {
	_, _ = rand.Read(id[:]) // never fails, crypto/rand
	return id
}

// refuse is an outcome that is not stored; the failure is counted for the audit.
func (a *Appliance) refuse(c countersigned, code protocol.Code) store.Outcome {
	a.failures.count(c.device.ID, code)
	return store.Outcome{Result: protocol.ResultDenied, Reason: code}
}

// answer signs what was approved and seals the result for the phone.
func (a *Appliance) answer(ctx context.Context, c countersigned, out store.Outcome) (protocol.CountersignResponse, error) {
	res := protocol.CountersignResponse{Result: out.Result}
	p4 := protocol.P4{Result: out.Result, Reason: out.Reason}
	if out.Result == protocol.ResultApproved {
		signed, err := a.signDecision(ctx, out.Decision)
		if err != nil {
			return protocol.CountersignResponse{}, err
		}
		res.Decision = signed
		if c.p1.Capabilities&protocol.CapabilityFullReceipt != 0 {
			p4.Decision = signed
		}
	}
	var r [8]byte
	_, _ = rand.Read(r[:]) // never fails, crypto/rand
	res.M4 = c.channel.SealM4(c.m3, r, p4.Marshal())
	a.metrics.settled(out)
	return res, nil
}

// signDecision signs a stored decision, with the key of today: what is asked for
// again may be signed by a later epoch than at first.
func (a *Appliance) signDecision(ctx context.Context, d protocol.Decision) ([]byte, error) {
	key, err := a.keys.Current(keyring.Decision, a.now())
	if err != nil {
		return nil, err
	}
	return protocol.SignDecision(ctx, a.keys.Signer(key), key.Version, d)
}
