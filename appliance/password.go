package appliance

import (
	"context"
	"crypto/hmac"
	"errors"
	"fmt"

	"countersign/appliance/keyring"
	"countersign/appliance/store"
	"countersign/hsm"
	"countersign/policy"
	"countersign/protocol"
)

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
	mac, err := a.keys.CheckVerifier(ctx, client.Verifier, protocol.PasswordProofInput(c.statement.Hash()))
	if errors.Is(err, hsm.ErrInput) {
		a.log.Error("a stored password verifier does not unwrap", "client", client.ID.String())
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("checking a password: %w", err)
	}
	return hmac.Equal(mac[:protocol.ProofSize], c.p3.Proof), nil
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
