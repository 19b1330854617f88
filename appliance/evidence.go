package appliance

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"

	"countersign/appliance/keyuse"
	"countersign/appliance/store"
	"countersign/hsm"
	"countersign/policy"
	"countersign/protocol"
	"countersign/protocol/derive"
	"countersign/protocol/enrol"
	"countersign/protocol/message"
	"countersign/protocol/receipt"
	"countersign/protocol/trust"
)

// examined is what is known of a countersignature before its password is checked.
type examined struct {
	client   store.Client
	evidence policy.Evidence
	code     protocol.Code // not 0: it is refused for that
	strict   []issued      // of a strict device: what it verifies, in the order of the statements
}

// issued is a countersignature with what was found out of its client's certificate.
type issued struct {
	receipt.Evidence
	keys trust.ClientCert // that the client's record names
	held bool             // a strict device can verify the certificate as it is
}

// examine verifies the countersignature with the enrolled key. For a client that
// is unknown the same work is done with a key that nobody has, and the code is
// the uniform one.
func (a *Appliance) examine(ctx context.Context, c countersigned) (e examined, err error) {
	e.client, err = a.client(ctx, c.p1.Client)
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
	e.evidence.UVKey = c.p3.Slot == protocol.SlotUV && slices.Contains(e.client.Roles, RoleUV)
	e.evidence.SecondApprover = c.handle.First != nil // the store holds it to be another client with the role
	if e.strict, err = a.strict(ctx, c, e.client); errors.Is(err, ErrForged) {
		e.code, err = protocol.CodeRefused, nil
	}
	return e, err
}

// RoleUV marks a client whose UV key counts as a factor: policy accepted its
// attestation at enrolment. The client's seal covers its roles.
const RoleUV = "uv"

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

// strict is what a strict device verifies by itself: one countersignature, or two with a
// second approver. It is looked at before anything is decided, and an error that wraps
// [ErrForged] is of a client whose record or certificate is nobody's.
func (a *Appliance) strict(ctx context.Context, c countersigned, client store.Client) ([]issued, error) {
	if !c.p2.Factors.Has(protocol.FactorStrict) {
		return nil, nil
	}
	own, err := a.issuedTo(client, receipt.Evidence{Statement: c.statement, Approval: c.p3.Approval(), Signature: c.p3.Signature})
	first := c.handle.First
	if err != nil || first == nil {
		return []issued{own}, err
	}
	other, err := a.client(ctx, first.Client)
	if errors.Is(err, store.ErrNotFound) {
		err = fmt.Errorf("first client %s: %w", first.Client, ErrForged)
	}
	if err != nil {
		return nil, err
	}
	approval := message.Approval{Verdict: protocol.Approve, Slot: first.Slot, Proof: first.Proof}
	before, err := a.issuedTo(other, receipt.Evidence{Statement: first.Statement, Approval: approval, Signature: first.Signature})
	return []issued{before, own}, err
}

// issuedTo puts a client's certificate to what he countersigned. A certificate that no
// epoch of client-ca has signed for these very keys is reported, and never made good by a
// new one: the keys may be anybody's. One by an epoch that was compromised says nothing,
// for anybody may have signed it. Then the record itself has to do, whose seal fits.
func (a *Appliance) issuedTo(client store.Client, e receipt.Evidence) (issued, error) {
	i := issued{Evidence: e, keys: trust.ClientCert{Client: client.ID, SigningKey: client.SigningKey, UVKey: client.UVKey}}
	cert, err := a.keys.ReadClientCert(client.Cert, a.now())
	if err == nil && !cert.Doubtful && !cert.SameParty(i.keys) {
		err = errors.New("it names another client or other keys")
	}
	if err != nil {
		return i, a.seals.Report(fmt.Sprintf("certificate of client %s: %v", client.ID, err))
	}
	i.ClientCert, i.held = client.Cert, cert.Held && cert.SameParty(i.keys)
	return i, nil
}

// strictEvidence is what a strict device gets. A certificate whose epoch of client-ca is
// no longer given to devices, because the root was replaced or the epoch retired, is
// signed anew by the epoch in use, for the same keys.
func (a *Appliance) strictEvidence(ctx context.Context, c countersigned) ([]receipt.Evidence, error) {
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

// verdict is what the check of a password came to.
type verdict struct {
	right bool
	code  protocol.Code // 10 where it is wrong; 11, 14 or 23 where it was not checked
	tried store.Tried
}

// checkPassword counts the attempt, durably, and only then lets the token check
// it: a crash, a race or a lost answer never gives a guess back.
func (a *Appliance) checkPassword(ctx context.Context, c countersigned) (verdict, error) {
	tried, err := a.store.Try(ctx, store.Attempt{AnswerKey: c.key, Device: c.device.ID, Now: a.now().UTC()})
	if err != nil {
		return verdict{}, fmt.Errorf("counting a password attempt: %w", err)
	}
	if tried.Code != 0 {
		return verdict{code: tried.Code, tried: tried}, nil
	}
	right, err := a.proofIsRight(ctx, c)
	if err != nil || right {
		return verdict{right: right}, err
	}
	return verdict{code: protocol.CodePassword, tried: tried}, nil
}

// proofIsRight recomputes the proof inside the token.
func (a *Appliance) proofIsRight(ctx context.Context, c countersigned) (bool, error) {
	stored := keyuse.Verifier{Wrapped: c.seen.client.Verifier, Input: derive.PasswordProofInput(c.statement.Hash())}
	right, err := a.keys.CheckVerifier(ctx, stored, c.p3.Proof)
	if errors.Is(err, hsm.ErrInput) {
		a.log.Error("a stored password verifier does not unwrap", "client", c.p1.Client.String())
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("checking a password: %w", err)
	}
	return right, nil
}

// wrong answers a wrong password that leaves more tries: result 2, stored, so that
// the same M3 is answered the same.
func (a *Appliance) wrong(ctx context.Context, c countersigned, left uint64) (store.Outcome, error) {
	spend := c.spend(a.now(), a.policy.Load(), policy.Ruling{})
	if err := a.store.Wrong(ctx, c.key, left, spend.Refused(protocol.CodePassword)); err != nil {
		return store.Outcome{}, fmt.Errorf("storing a wrong password: %w", err)
	}
	return store.Outcome{Result: protocol.ResultRetry, Reason: protocol.CodePassword, TriesLeft: left}, nil
}

// importVerifier takes the password of an enrolment into the token's custody.
func (a *Appliance) importVerifier(ctx context.Context, req enrol.Request) ([]byte, error) {
	p := req.Password
	ephemeral, err := p.Ephemeral.ECDH()
	if err != nil {
		return nil, fmt.Errorf("password.ephemeral: %w", err)
	}
	wrapped, err := a.keys.ImportVerifier(ctx, keyuse.VerifierImport{
		Ephemeral: ephemeral, Point: p.Ephemeral, SigningKey: req.SigningKey, Wrapped: p.Wrapped[:],
	}, a.now())
	if errors.Is(err, hsm.ErrInput) {
		return nil, fmt.Errorf("password.wrapped does not unwrap: %w", protocol.CodeFormat)
	}
	return wrapped, err
}
