package authorize

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"countersign/appliance/rules"
	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/policy"
	"countersign/protocol"
	"countersign/protocol/receipt"
)

// settle decides a countersignature. A refusal here, before the transaction, spends nothing. The
// transaction itself finds an M3 that was answered before; a refusal looks for one first.
func (a *Service) settle(ctx context.Context, c countersigned) (store.Outcome, error) {
	if c.handle.expired(a.now(), a.boot(), time.Duration(c.p2.TTL)*time.Second) {
		return a.refuse(ctx, c, protocol.CodeExpired)
	}
	if c.key.Attempt != 0 && !c.p2.Factors.Has(protocol.FactorPassword) {
		return a.refuse(ctx, c, protocol.CodeSerial) // no attempt was answered 2, so there is no second one
	}
	if c.seen.code != 0 {
		return a.refuse(ctx, c, c.seen.code)
	}
	if !c.hasPassword() || c.seen.client.Status != store.Active {
		return a.conclude(ctx, c, judged{decision: policy.Decide(c.required(), c.seen.evidence)})
	}
	if out, err := a.store.Answered(ctx, c.key); !errors.Is(err, store.ErrNotFound) {
		return out, err // before the guard counts it as another try
	}
	checked, err := a.checkPassword(ctx, c)
	if err != nil {
		return store.Outcome{}, err
	}
	return a.conclude(ctx, c, judged{decision: c.decided(checked.right), password: checked})
}

// decided judges the evidence, with the password right or wrong.
func (c countersigned) decided(right bool) policy.Ruling {
	evidence := c.seen.evidence
	evidence.Password = right
	return policy.Decide(c.required(), evidence)
}

// judged is a countersignature with its ruling and the result of the password check.
type judged struct {
	decision policy.Ruling
	password verdict
}

// conclude commits a ruling. It refuses an attempt that is locked or out of turn without spending
// the serial.
func (a *Service) conclude(ctx context.Context, c countersigned, j judged) (store.Outcome, error) {
	switch code, tried := j.password.code, j.password.tried; {
	case code == protocol.CodePassword && tried.Answered:
		return store.Outcome{Result: protocol.ResultRetry, Reason: code, TriesLeft: tried.TriesLeft, Replayed: true}, nil
	case code == protocol.CodePassword && tried.TriesLeft > 0:
		return a.wrong(ctx, c, tried.TriesLeft)
	case code != 0 && code != protocol.CodePassword:
		if out, err := a.store.Answered(ctx, c.key); !errors.Is(err, store.ErrNotFound) {
			return out, err // the same M3 was decided meanwhile
		}
		return a.refuseVerified(ctx, c, code)
	}
	spend, err := a.describe(ctx, c, j)
	if errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrForged) {
		return a.refuseVerified(ctx, c, protocol.CodePolicy) // the policy of the challenge is gone
	}
	if err != nil {
		return store.Outcome{}, err
	}
	out, err := a.store.Spend(ctx, spend)
	if err != nil {
		return store.Outcome{}, fmt.Errorf("committing the decision: %w", err)
	}
	if out.Unspent {
		return a.refuseUnspent(ctx, spend, out.Reason)
	}
	return out, nil
}

func (c countersigned) required() policy.Requirement {
	return policy.Requirement{Factors: c.p2.Factors}
}

// wantsPassword reports whether the challenge asks for a password and the user did not refuse.
func (c countersigned) wantsPassword() bool {
	return c.p2.Factors.Has(protocol.FactorPassword) && c.p3.Verdict == protocol.Approve
}

// hasPassword reports whether there is a proof and a verifier to check it against.
func (c countersigned) hasPassword() bool {
	return c.wantsPassword() && c.p3.Proof != nil && c.seen.client.Verifier != nil
}

// describe returns what the store commits: the decision, if nothing in the transaction rules it
// out. Only describe makes decisions, from the handle, the evidence and the policy of the
// challenge: once to be stored, and again before it is signed.
func (a *Service) describe(ctx context.Context, c countersigned, j judged) (store.Spend, error) {
	rules, err := a.rules.At(ctx, c.handle.Policy)
	if err != nil {
		return store.Spend{}, err
	}
	s := c.spend(a.now(), rules, j.decision)
	s.Denial = c.denial(j)
	s.Right = j.password.right
	switch {
	case c.p1.Service == protocol.ServiceDryRun:
		s.Dry = true
	case c.p1.Service == protocol.ServiceStatus:
		s.Dry, s.Asks = true, c.p1.Asked
	case j.decision.Pending() && c.handle.First == nil:
		approval := rules.Approval()
		s.Pending = &store.Pending{Role: approval.Role, Expires: s.Now.Add(approval.Expires)}
	}
	c.grant(rules, &s)
	if first := c.handle.First; first != nil {
		c.approve(&s, *first)
		return s, nil
	}
	s.Decision.Pairwise, err = a.pairwise(ctx, pair{c.p1.Client, c.device.ID})
	return s, err
}

// spend returns what every description has in common.
func (c countersigned) spend(now time.Time, rules *rules.Version, decided policy.Ruling) store.Spend {
	now = now.UTC()
	return store.Spend{
		AnswerKey: c.key, PolicyVersion: c.handle.Policy, Salt: audit.NewSalt(), Now: now,
		Evidence: store.Evidence{
			Statement: c.statement, Approval: c.p3.Approval(), Signature: c.p3.Signature, Reference: c.handle.Reference,
		},
		Decision: receipt.Decision{
			Statement: c.statement.Hash(), Transaction: newTransaction(), Level: c.p2.Level,
			Factors: decided.Verified(), IssuedAt: uint64(now.Unix()),
			Device: c.device.ID, Service: c.p1.Service, Amount: c.p2.Amount, Policy: rules.WireHash(), U: c.handle.U,
		},
	}
}

// grant asks the policy for limits, bounds and lifetime. It denies if the policy now demands more
// than was signed. The transaction does so for cumulated amounts, which only it can read.
func (c countersigned) grant(rules *rules.Version, s *store.Spend) {
	service := c.p1.Service
	if c.p2.FirstService != nil {
		service = *c.p2.FirstService
	}
	grant, err := rules.Level(policy.Request{
		Service: service, Amount: c.p2.Amount, Requested: c.p2.Level,
	})
	if err != nil || grant.Level > c.p2.Level {
		s.Denial = cmp.Or(s.Denial, protocol.CodePolicy)
		return
	}
	s.Decision.Lifetime = uint64(grant.Lifetime / time.Second)
	if !s.Dry {
		s.Charges = charges(grant, c.p2.Amount, s.Now)
	}
}

// approve turns the description into a second approval's: the decision is the first client's,
// proved by both statements.
func (c countersigned) approve(s *store.Spend, first pending) {
	second := c.statement.Hash()
	s.Approves = &store.Approves{Client: first.Client, Serial: first.Serial}
	d := &s.Decision
	d.Statement, d.SecondStatement = first.Statement.Hash(), &second
	d.Transaction, d.Pairwise = first.Transaction, first.Pairwise
	d.Service = *c.p2.FirstService
	d.Factors = first.Factors | protocol.FactorSecondApprover
}

// denial returns the reason for which the evidence does not approve, 0 if it does.
func (c countersigned) denial(j judged) protocol.Code {
	missing := j.decision.Missing()
	switch {
	case j.decision.Approved() || j.decision.Pending():
		return 0
	case j.decision.Refused():
		return protocol.CodeUserRefused
	case j.password.code == protocol.CodePassword && j.password.tried.Guarded:
		return protocol.CodeLocked
	case missing.Has(protocol.FactorPassword) && c.seen.client.Verifier != nil:
		return protocol.CodePassword
	default:
		return protocol.CodePolicy
	}
}

// charges returns a charge for each limit and each bound of the grant.
func charges(grant policy.Grant, amount *protocol.Amount, now time.Time) []store.Charge {
	var out []store.Charge
	for _, limit := range grant.Limits {
		c := charge(grant.Service, amount, limit.Window, now)
		c.AmountLimit, c.CountLimit = limit.Amount, limit.Count
		out = append(out, c)
	}
	for _, bound := range grant.Bounds {
		c := charge(grant.Service, amount, bound.Window, now)
		c.Below = bound.Below
		out = append(out, c)
	}
	return out
}

// charge is a use of a window without a limit.
func charge(service protocol.Service, amount *protocol.Amount, window time.Duration, now time.Time) store.Charge {
	c := store.Charge{Service: service, Period: window, At: now}
	if amount != nil {
		c.Amount, c.Currency = amount.Minor, amount.Currency
	}
	return c
}

func newTransaction() (id protocol.TransactionID) {
	_, _ = rand.Read(id[:]) // never fails, crypto/rand
	return id
}

// refuse returns an outcome that is not stored, unless this M3 was answered before. It counts the
// failure for the audit.
func (a *Service) refuse(ctx context.Context, c countersigned, code protocol.Code) (store.Outcome, error) {
	if out, err := a.store.Answered(ctx, c.key); !errors.Is(err, store.ErrNotFound) {
		return out, err
	}
	a.failures.add(c.device.ID, code, 1)
	return store.Outcome{Result: protocol.ResultDenied, Reason: code}, nil
}

// refuseVerified refuses a genuine countersignature before its transaction.
func (a *Service) refuseVerified(ctx context.Context, c countersigned, code protocol.Code) (store.Outcome, error) {
	return a.refuseUnspent(ctx, c.spend(a.now(), a.rules.Active(), policy.Ruling{}), code)
}

// refuseUnspent refuses a genuine countersignature that did not spend its serial. It writes an audit
// record of the first refusal of a client, serial and code, and counts the others.
func (a *Service) refuseUnspent(ctx context.Context, s store.Spend, code protocol.Code) (store.Outcome, error) {
	out, one := store.Outcome{Result: protocol.ResultDenied, Reason: code}, refusal{s.Serial, code}
	if first := a.refusals.add(s.Client, one); !first {
		return out, nil
	}
	if err := a.store.Append(ctx, s.Refused(code)); err != nil {
		a.refusals.lost(s.Client, one)
		return store.Outcome{}, fmt.Errorf("recording a refusal: %w", err)
	}
	return out, nil
}
