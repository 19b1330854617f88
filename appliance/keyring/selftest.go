package keyring

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	"countersign/hsm"
	"countersign/protocol"
	"countersign/protocol/derive"
	"countersign/protocol/password"
)

// ErrSelfTest: a key does not do what its registry row says.
var ErrSelfTest = errors.New("key failed its test")

// SelfTest uses each key version that may still be used, once, and compares with what
// software computes: a signature, an ECDH, two MACs of one input, and a password
// verifier on its way through enrol and wrap. A name with no version in use is no
// failure: it can be rotated. An error wraps [ErrSelfTest] or [hsm.ErrUnavailable].
func (r *Keyring) SelfTest(ctx context.Context, now time.Time) error {
	v := r.live.Load()
	tested := map[hsm.KeyID]bool{}
	for _, k := range v.all() {
		if !k.OnToken || !v.accepted(k, now) || tested[k.ID] {
			continue
		}
		tested[k.ID] = true
		if err := r.test(ctx, k); err != nil {
			return fmt.Errorf("testing %s: %w", k.label(), err)
		}
	}
	return r.testPasswords(ctx, now)
}

func (r *Keyring) test(ctx context.Context, k Key) error {
	switch usages[k.Name] {
	case hsm.SignP256:
		var digest [sha256.Size]byte
		_, _ = rand.Read(digest[:]) // never fails, crypto/rand
		sig, err := r.Signer(k).SignDigest(ctx, digest[:])
		if err == nil && !k.Point.VerifyDigest(digest[:], sig) {
			err = fmt.Errorf("a signature that does not verify: %w", ErrSelfTest)
		}
		return err
	case hsm.DeriveP256:
		return r.testDerive(ctx, k)
	case hsm.MACKey:
		_, err := r.MAC(ctx, k, derive.HandleKeyInput(0, derive.HandleEpoch{}))
		return err
	}
	return nil // of wrap: with enrol
}

// testDerive agrees on a secret with a key in memory, which knows the answer.
func (r *Keyring) testDerive(ctx context.Context, k Key) error {
	own, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	public, err := k.Point.ECDH()
	if err != nil {
		return err
	}
	want, err := own.ECDH(public)
	if err != nil {
		return err
	}
	got, err := r.token.Derive(ctx, k.ID, own.PublicKey())
	if err == nil && !bytes.Equal(got, want) {
		err = fmt.Errorf("another secret than by software: %w", ErrSelfTest)
	}
	return err
}

// testPasswords takes a verifier through each wrap key.
func (r *Keyring) testPasswords(ctx context.Context, now time.Time) error {
	v := r.live.Load()
	enrol, err := v.current(Enrol, now)
	if errors.Is(err, ErrNoKey) {
		return nil // none to test with
	}
	if err != nil {
		return err
	}
	root, _ := v.find(Root, enrol.Root)
	for _, wrap := range v.acceptedOf(Wrap, now) {
		if err := r.testPassword(ctx, passwordTest{root: root, enrol: enrol, wrap: wrap}); err != nil {
			return fmt.Errorf("testing %s and %s: %w", enrol.label(), wrap.label(), err)
		}
	}
	return nil
}

type passwordTest struct{ root, enrol, wrap Key }

func (r *Keyring) testPassword(ctx context.Context, t passwordTest) error {
	own, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	point, err := protocol.CompressPoint(own.PublicKey().Bytes())
	if err != nil {
		return err
	}
	var verifier password.Verifier
	_, _ = rand.Read(verifier[:]) // never fails, crypto/rand
	names := derive.PasswordImport{Root: t.root.Point.RootID(), Ephemeral: point, Enrol: t.enrol.Point}
	sent, err := password.Wrap(verifier, own, names)
	if err != nil {
		return err
	}
	kept, err := r.token.Import(ctx, hsm.Import{
		Enrol: t.enrol.ID, Wrap: t.wrap.ID, Ephemeral: own.PublicKey(), Context: names.Context(), Wrapped: sent,
	})
	if err != nil {
		return err
	}
	input := derive.PasswordProofInput([32]byte{})
	got, err := r.token.MACWrapped(ctx, t.wrap.ID, kept, input)
	mac := hmac.New(sha256.New, verifier[:])
	mac.Write(input)
	if err == nil && !hmac.Equal(got, mac.Sum(nil)) {
		err = fmt.Errorf("another MAC than by software: %w", ErrSelfTest)
	}
	return err
}
