package appliance

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"

	"countersign/appliance/keyring"
	"countersign/appliance/store"
	"countersign/hsm"
	"countersign/policy"
	"countersign/protocol"
)

// examine verifies the countersignature with the enrolled key. For a client that
// is unknown the same work is done with a key that nobody has, and the code is
// the uniform one.
func (a *Appliance) examine(ctx context.Context, c countersigned) (store.Client, policy.Evidence, protocol.Code, error) {
	client, err := a.client(ctx, c.p1.Client)
	known := !errors.Is(err, store.ErrNotFound)
	if err != nil && known {
		return client, policy.Evidence{}, 0, err
	}
	err = protocol.VerifyCountersign(signingKey(client, c.p3.Slot), c.statement, c.p3.Approval(), c.p3.Signature[:])
	switch {
	case !known, err != nil && client.Status != store.Active:
		return client, policy.Evidence{}, protocol.CodeRefused, nil
	case err != nil:
		return client, policy.Evidence{}, protocol.CodeSignature, nil
	}
	evidence := policy.Evidence{Choice: policy.Refuse, Signature: true}
	if c.p3.Verdict == protocol.Approve {
		evidence.Choice = policy.Approve
	}
	evidence.UVKey = c.p3.Slot == protocol.SlotUV && slices.Contains(client.Roles, RoleUV)
	evidence.SecondApprover = c.handle.First != nil // the store holds it to be another client with the role
	return client, evidence, 0, nil
}

// RoleUV marks a client whose UV key counts as a factor: policy accepted its
// attestation at enrolment. Roles are covered by the record MAC.
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

// strictEvidence is what a strict device verifies by itself: one countersignature,
// or two with a second approver.
func (a *Appliance) strictEvidence(ctx context.Context, c countersigned) ([]protocol.Evidence, error) {
	if !c.p2.Factors.Has(protocol.FactorStrict) {
		return nil, nil
	}
	own := protocol.Evidence{Statement: c.statement, Approval: c.p3.Approval(), Signature: c.p3.Signature}
	all := []protocol.Evidence{own}
	ids := []protocol.ClientID{c.p1.Client}
	if first := c.handle.First; first != nil {
		approval := protocol.Approval{Verdict: protocol.Approve, Slot: first.Slot, Proof: first.Proof}
		all = []protocol.Evidence{{Statement: first.Statement, Approval: approval, Signature: first.Signature}, own}
		ids = []protocol.ClientID{first.Client, c.p1.Client}
	}
	for i, id := range ids {
		client, err := a.store.Client(ctx, id)
		if err != nil {
			return nil, fmt.Errorf("certificate of client %s: %w", id, err)
		}
		if all[i].ClientCert, err = a.certificate(ctx, client); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// certificate is a client's certificate as a strict device can verify it. One whose
// epoch of client-ca is no longer given to devices, because the root was replaced or the
// epoch retired, is signed anew by the epoch in use, for the same keys.
func (a *Appliance) certificate(ctx context.Context, client store.Client) ([]byte, error) {
	now := a.now()
	if a.keys.HoldsClientCert(client.Cert, now) {
		return client.Cert, nil
	}
	cert, err := a.keys.ClientCert(ctx, protocol.ClientCert{Client: client.ID, SigningKey: client.SigningKey, UVKey: client.UVKey}, now)
	if err != nil {
		return nil, fmt.Errorf("certificate of client %s: %w", client.ID, err)
	}
	return cert, nil
}

// verdict is what the check of a password came to.
type verdict struct {
	right bool
	code  protocol.Code // 10 where it is wrong; 11, 14 or 23 where it was not checked
	tried store.Tried
}

// checkPassword counts the attempt, durably, and only then lets the token check
// it: a crash, a race or a lost answer never gives a guess back.
func (a *Appliance) checkPassword(ctx context.Context, c countersigned, client store.Client) (verdict, error) {
	tried, err := a.store.Try(ctx, store.Attempt{AnswerKey: c.key, Device: c.device.ID, Now: a.now().UTC()})
	if err != nil {
		return verdict{}, fmt.Errorf("counting a password attempt: %w", err)
	}
	if tried.Code != 0 {
		return verdict{code: tried.Code, tried: tried}, nil
	}
	right, err := a.proofIsRight(ctx, c, client)
	if err != nil || right {
		return verdict{right: right}, err
	}
	return verdict{code: protocol.CodePassword, tried: tried}, nil
}

// proofIsRight recomputes the proof inside the token.
func (a *Appliance) proofIsRight(ctx context.Context, c countersigned, client store.Client) (bool, error) {
	stored := keyring.Verifier{Wrapped: client.Verifier, Input: protocol.PasswordProofInput(c.statement.Hash())}
	right, err := a.keys.CheckVerifier(ctx, stored, c.p3.Proof)
	if errors.Is(err, hsm.ErrInput) {
		a.log.Error("a stored password verifier does not unwrap", "client", client.ID.String())
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
	spend := a.spend(c, policy.Decision{})
	if err := a.store.Wrong(ctx, c.key, left, spend.Refused(protocol.CodePassword)); err != nil {
		return store.Outcome{}, fmt.Errorf("storing a wrong password: %w", err)
	}
	return store.Outcome{Result: protocol.ResultRetry, Reason: protocol.CodePassword, TriesLeft: left}, nil
}

// importVerifier takes the password of an enrolment into the token's custody.
func (a *Appliance) importVerifier(ctx context.Context, req protocol.EnrolRequest) ([]byte, error) {
	p := req.Password
	ephemeral, err := p.Ephemeral.ECDH()
	if err != nil {
		return nil, fmt.Errorf("password.ephemeral: %w", err)
	}
	wrapped, err := a.keys.ImportVerifier(ctx, keyring.VerifierImport{
		Ephemeral: ephemeral, Point: p.Ephemeral, SigningKey: req.SigningKey, Wrapped: p.Wrapped[:],
	}, a.now())
	if errors.Is(err, hsm.ErrInput) {
		return nil, fmt.Errorf("password.wrapped does not unwrap: %w", protocol.CodeFormat)
	}
	return wrapped, err
}
