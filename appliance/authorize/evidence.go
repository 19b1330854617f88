package authorize

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"countersign/appliance/keyuse"
	"countersign/appliance/store"
	"countersign/policy"
	"countersign/protocol"
	"countersign/protocol/derive"
	"countersign/protocol/message"
	"countersign/protocol/receipt"
	"countersign/protocol/trust"
)

// examined is a countersignature whose signature was verified, before its password is checked.
type examined struct {
	client   store.Client
	evidence policy.Evidence
	code     protocol.Code // not 0: the reason of a refusal
	strict   []issued      // for a strict device: the countersignatures that it verifies, in the order of the statements
}

// issued is a countersignature with its client's certificate.
type issued struct {
	receipt.Evidence
	keys trust.ClientCert // named by the client's record
	held bool             // a strict device can verify the certificate as it is
}

// examine verifies the countersignature with the enrolled key. For an unknown client it does the
// same work with a decoy key, and the code is the same as for a refused one.
func (a *Service) examine(ctx context.Context, c countersigned) (e examined, err error) {
	e.client, err = a.parties.Client(ctx, c.p1.Client)
	known := !errors.Is(err, store.ErrNotFound)
	if err != nil && known {
		return e, err
	}
	err = message.VerifyCountersign(signingKey(e.client, c.p3.Slot), c.statement, c.p3.Approval(), c.p3.Signature[:])
	switch {
	case !known, err != nil && e.client.Status != store.Active:
		e.code = protocol.CodeRefused
		return e, nil
	case err != nil:
		e.code = protocol.CodeSignature
		return e, nil
	}
	e.evidence = policy.Evidence{Verdict: c.p3.Verdict, Signature: true}
	e.evidence.UVKey = c.p3.Slot == protocol.SlotUV && slices.Contains(e.client.Roles, store.RoleUV)
	e.evidence.SecondApprover = c.handle.First != nil // the store requires another client with the role
	if e.strict, err = a.strict(ctx, c, e.client); errors.Is(err, store.ErrForged) {
		e.code, err = protocol.CodeRefused, nil
	}
	return e, err
}

// decoyKey is a point without a known private key: its x coordinate is the first on the curve
// that follows SHA-256("countersign decoy").
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

// signingKey returns the enrolled key of a slot: 1 or, for the UV key, 3.
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

// strict returns the countersignatures that a strict device verifies itself: one, or two with a
// second approver. It runs before anything is decided. An error that wraps [store.ErrForged]
// means that a client's record or certificate is not genuine.
func (a *Service) strict(ctx context.Context, c countersigned, client store.Client) ([]issued, error) {
	if !c.p2.Factors.Has(protocol.FactorStrict) {
		return nil, nil
	}
	own, err := a.issuedTo(client, receipt.Evidence{Statement: c.statement, Approval: c.p3.Approval(), Signature: c.p3.Signature})
	first := c.handle.First
	if err != nil || first == nil {
		return []issued{own}, err
	}
	other, err := a.parties.Client(ctx, first.Client)
	if errors.Is(err, store.ErrNotFound) {
		err = fmt.Errorf("first client %s: %w", first.Client, store.ErrForged)
	}
	if err != nil {
		return nil, err
	}
	approval := message.Approval{Verdict: protocol.Approve, Slot: first.Slot, Proof: first.Proof}
	before, err := a.issuedTo(other, receipt.Evidence{Statement: first.Statement, Approval: approval, Signature: first.Signature})
	return []issued{before, own}, err
}

// issuedTo compares a client's certificate with the keys of its record. It reports a certificate
// that no epoch of client-ca signed for these keys, and never replaces it: an attacker may own
// the keys. A certificate by a compromised epoch proves nothing, because an attacker may have
// signed it; then the record has to do, whose seal fits.
func (a *Service) issuedTo(client store.Client, e receipt.Evidence) (issued, error) {
	i := issued{Evidence: e, keys: trust.ClientCert{Client: client.ID, SigningKey: client.SigningKey, UVKey: client.UVKey}}
	cert, err := a.keys.ReadClientCert(client.Cert, a.now())
	if err == nil && !cert.Doubtful && !cert.SameParty(i.keys) {
		err = errors.New("it names another client or other keys")
	}
	if err != nil {
		return i, a.keys.Seals().Report(fmt.Sprintf("certificate of client %s: %v", client.ID, err))
	}
	i.ClientCert, i.held = client.Cert, cert.Held && cert.SameParty(i.keys)
	return i, nil
}

// strictEvidence returns the evidence for a strict device. If devices no longer get the
// certificate's epoch of client-ca, because the root was replaced or the epoch retired, the epoch
// in use signs a new certificate for the same keys.
func (a *Service) strictEvidence(ctx context.Context, c countersigned) ([]receipt.Evidence, error) {
	var all []receipt.Evidence
	for _, i := range c.seen.strict {
		if !i.held {
			var err error
			if i.ClientCert, err = a.keys.ClientCert(ctx, i.keys, a.now()); err != nil {
				return nil, fmt.Errorf("certificate of client %s: %w", i.keys.Client, err)
			}
		}
		all = append(all, i.Evidence)
	}
	return all, nil
}

// verdict is the result of a password check.
type verdict struct {
	right bool
	code  protocol.Code // 10: wrong; 11, 14 or 23: not checked
	tried store.Tried
}

// checkPassword counts the attempt durably before the token checks it: no crash, race or lost
// answer gives a guess back. Only an outage in which the token compared nothing gives it back, and
// only to the request that began the attempt.
func (a *Service) checkPassword(ctx context.Context, c countersigned) (verdict, error) {
	leave, err := a.checks.enter(ctx, c.key)
	if err != nil {
		return verdict{}, err
	}
	defer leave()
	tried, err := a.store.Try(ctx, store.Attempt{AnswerKey: c.key, Device: c.device.ID, Now: a.now().UTC()})
	if err != nil {
		return verdict{}, fmt.Errorf("counting a password attempt: %w", err)
	}
	if tried.Code != 0 {
		return verdict{code: tried.Code, tried: tried}, nil
	}
	right, err := a.proofIsRight(ctx, c)
	if errors.Is(err, keyuse.ErrUnchecked) && !tried.Repeat {
		a.takeBack(ctx, c, tried)
	}
	if err != nil || right {
		return verdict{right: right}, err
	}
	return verdict{code: protocol.CodePassword, tried: tried}, nil
}

// proofIsRight recomputes the proof inside the token.
func (a *Service) proofIsRight(ctx context.Context, c countersigned) (bool, error) {
	stored := keyuse.Verifier{Wrapped: c.seen.client.Verifier, Input: derive.PasswordProofInput(c.statement.Hash())}
	right, err := a.keys.CheckVerifier(ctx, stored, c.p3.Proof)
	if errors.Is(err, keyuse.ErrDamaged) { // the seal of the verifier fits, so the token has another wrap key
		a.metrics.damaged.Inc()
		a.log.Error("a stored password verifier does not unwrap: is this the token that has the appliance's wrap keys?",
			"client", c.p1.Client.String(), "error", err)
	}
	if err != nil {
		return false, fmt.Errorf("checking a password: %w", err)
	}
	return right, nil
}

// takeBackTime bounds the write that takes an attempt back. The peer may be gone by then.
const takeBackTime = 2 * time.Second

// takeBack takes back an attempt that the token did not check. If that fails it stays counted
// until the same M3 comes again.
func (a *Service) takeBack(ctx context.Context, c countersigned, tried store.Tried) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), takeBackTime)
	defer cancel()
	if err := a.store.TakeBack(ctx, c.key, tried); err != nil {
		a.log.Warn("a password attempt that the HSM did not check stays counted",
			"client", c.p1.Client.String(), "error", err)
	}
}

// checks lets one request check an attempt at a time. A second request with the same M3 waits:
// if it checked beside the first, the first could take back an attempt of which the second has
// learned the result. The store belongs to one process.
type checks struct {
	mu    sync.Mutex
	under map[store.AnswerKey]chan struct{} // guarded by mu; closed at the end of the check
}

func (k *checks) enter(ctx context.Context, key store.AnswerKey) (leave func(), err error) {
	for {
		k.mu.Lock()
		before := k.under[key]
		if before == nil {
			done := make(chan struct{})
			if k.under == nil {
				k.under = map[store.AnswerKey]chan struct{}{}
			}
			k.under[key] = done
			k.mu.Unlock()
			return func() {
				k.mu.Lock()
				defer k.mu.Unlock()
				delete(k.under, key)
				close(done)
			}, nil
		}
		k.mu.Unlock()
		select {
		case <-before:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// wrong answers a wrong password while tries are left. The result 2 is stored, so that the same
// M3 gets the same answer.
func (a *Service) wrong(ctx context.Context, c countersigned, left uint64) (store.Outcome, error) {
	spend := c.spend(a.now(), a.rules.Active(), policy.Ruling{})
	if err := a.store.Wrong(ctx, c.key, left, spend.Refused(protocol.CodePassword)); err != nil {
		return store.Outcome{}, fmt.Errorf("storing a wrong password: %w", err)
	}
	return store.Outcome{Result: protocol.ResultRetry, Reason: protocol.CodePassword, TriesLeft: left}, nil
}
