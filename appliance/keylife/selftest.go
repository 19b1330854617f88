package keylife

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

	"countersign/appliance/keyring"
	"countersign/appliance/keyuse"
	"countersign/hsm"
	"countersign/protocol"
	"countersign/protocol/derive"
	"countersign/protocol/password"
)

// ErrSelfTest means that a key does not do what its registry row says.
var ErrSelfTest = errors.New("key failed its test")

// SelfTest uses each accepted key version once and compares the result with software: a
// signature, an ECDH, two MACs of one input, and a password verifier through enrol and
// wrap. A name without a version in use is no failure, because it can be rotated. An
// error wraps [ErrSelfTest] or [hsm.ErrUnavailable].
func SelfTest(ctx context.Context, keys *keyuse.Keys, now time.Time) error {
	tested := map[hsm.KeyID]bool{}
	for _, k := range keys.Ring().Keys() {
		if !k.OnToken || !k.Accepted(now) || tested[k.ID] {
			continue
		}
		tested[k.ID] = true
		if err := test(ctx, keys, k); err != nil {
			return fmt.Errorf("testing %s: %w", k.Label(), err)
		}
	}
	return testPasswords(ctx, keys, now)
}

// TestInUse uses the keys that every authorization needs, as SelfTest does: it signs with decision, agrees on a secret
// with kem, and asks for a MAC by mac. Errors are those of SelfTest, or wrap [keyring.ErrNoKey].
func TestInUse(ctx context.Context, keys *keyuse.Keys, now time.Time) error {
	for _, name := range []string{keyring.Decision, keyring.KEM, keyring.MAC} {
		k, err := keys.Ring().Current(name, now)
		if err == nil {
			err = test(ctx, keys, k)
		}
		if err != nil {
			return fmt.Errorf("testing %s: %w", name, err)
		}
	}
	return nil
}

func test(ctx context.Context, keys *keyuse.Keys, k keyring.Key) error {
	switch keyring.UsageOf(k.Name) {
	case hsm.SignP256:
		var digest [sha256.Size]byte
		_, _ = rand.Read(digest[:]) // never fails, crypto/rand
		sig, err := keys.Signer(k).SignDigest(ctx, digest[:])
		if err == nil && !k.Point.VerifyDigest(digest[:], sig) {
			err = fmt.Errorf("a signature that does not verify: %w", ErrSelfTest)
		}
		return err
	case hsm.DeriveP256:
		return testDecap(ctx, keys.Token(), k)
	case hsm.MACKey:
		_, err := keys.MAC(ctx, k, derive.HandleKeyInput(0, derive.HandleEpoch{}))
		return err
	}
	return nil // wrap is tested with enrol
}

// testDecap agrees on a secret with a key in memory, as the suite of a kem key says. An enrol key has no suite.
func testDecap(ctx context.Context, token hsm.Token, k keyring.Key) error {
	kem := k.KEM()
	if offered := token.KEMs(); k.Name != keyring.KEM && len(offered) > 0 {
		kem = offered[0]
	}
	own, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	public, err := k.Point.ECDH()
	if err != nil {
		return err
	}
	z, err := own.ECDH(public)
	if err != nil {
		return err
	}
	got, err := token.Decap(ctx, k.ID, kem, own.PublicKey())
	if err == nil && !bytes.Equal(got, kem.Secret(z, append(own.PublicKey().Bytes(), public.Bytes()...))) {
		err = fmt.Errorf("another secret than in software: %w", ErrSelfTest)
	}
	return err
}

// testPasswords moves a verifier through each wrap key.
func testPasswords(ctx context.Context, keys *keyuse.Keys, now time.Time) error {
	ring := keys.Ring()
	enrol, err := ring.Current(keyring.Enrol, now)
	if errors.Is(err, keyring.ErrNoKey) {
		return nil // none to test with
	}
	if err != nil {
		return err
	}
	root, _ := ring.Find(keyring.Root, enrol.Root)
	for _, wrap := range ring.Accepted(keyring.Wrap, now) {
		if err := testPassword(ctx, keys.Token(), passwordTest{root: root, enrol: enrol, wrap: wrap}); err != nil {
			return fmt.Errorf("testing %s and %s: %w", enrol.Label(), wrap.Label(), err)
		}
	}
	return nil
}

type passwordTest struct{ root, enrol, wrap keyring.Key }

func testPassword(ctx context.Context, token hsm.Token, t passwordTest) error {
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
	kept, err := token.Import(ctx, hsm.Import{
		Enrol: t.enrol.ID, Wrap: t.wrap.ID, Ephemeral: own.PublicKey(), Context: names.Context(), Wrapped: sent,
	})
	if errors.Is(err, hsm.ErrUnsupported) {
		return nil // the module imports none, which a notice at start says
	}
	if err != nil {
		return err
	}
	input := derive.PasswordProofInput([32]byte{})
	got, err := token.MACWrapped(ctx, t.wrap.ID, kept, input)
	mac := hmac.New(sha256.New, verifier[:])
	mac.Write(input)
	if err == nil && !hmac.Equal(got, mac.Sum(nil)) {
		err = fmt.Errorf("another MAC than in software: %w", ErrSelfTest)
	}
	return err
}
