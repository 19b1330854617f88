package pool

import (
	"crypto/sha256"
	"errors"
	"testing"

	"countersign/hsm"
)

// newGatedPool is a pool of one worker, which is a token in this process.
func newGatedPool(t *testing.T) (*Pool, *gated) {
	t.Helper()
	l, token, _, _ := newGated(t)
	p, err := Open(t.Context(), Config{}) // without a PIN it starts nothing
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	p.live.Store(&[]*conn{l})
	return p, token
}

// A signature that does not verify with the public key of its key id is never returned,
// however often the token makes one; no caller verifies again.
func TestSignatureVerified(t *testing.T) {
	p, token := newGatedPool(t)
	var keys []hsm.Key
	for _, label := range []string{"decision@1", "another"} {
		k, err := token.Generate(t.Context(), hsm.KeySpec{Label: label, Usage: hsm.SignP256})
		if err != nil {
			t.Fatal(err)
		}
		p.keys.add(k)
		keys = append(keys, k)
	}
	digest := sha256.Sum256(nil)
	sig, err := p.Sign(t.Context(), keys[0].ID, hsm.ES256, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	if k, _ := p.keys.find(keys[0].ID); k.verify(hsm.ES256, digest[:], sig) != nil {
		t.Error("the signature of an honest token does not verify")
	}
	token.liesBy.Store(&keys[1].ID)
	before := token.signed.Load()
	sig, err = p.Sign(t.Context(), keys[0].ID, hsm.ES256, digest[:])
	if !errors.Is(err, hsm.ErrUnavailable) || sig != nil {
		t.Errorf("by another key: %d bytes, %v; want none and ErrUnavailable", len(sig), err)
	}
	if asked := token.signed.Load() - before; asked != maxWrong {
		t.Errorf("a lying token was asked %d times, want %d", asked, maxWrong)
	}
}
