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

// TestProvenKey: a right answer ends a row of wrong ones, and proves the worker.
func TestProvenKey(t *testing.T) {
	p, token := newGatedPool(t)
	k, err := token.Generate(t.Context(), hsm.KeySpec{Label: "decision@1", Usage: hsm.SignP256})
	if err != nil {
		t.Fatal(err)
	}
	p.keys.add(k)
	known, _ := p.keys.find(k.ID)
	c := (*p.live.Load())[0]
	c.canaries = c // one socket for both
	for range 3 {
		if p.wrongAnswer(c, hsm.ErrGarbled) {
			t.Fatal("one wrong answer is too many")
		}
		if err := p.proveKey(t.Context(), c, known); err != nil {
			t.Fatal(err)
		}
		if now := p.Processes()[0]; now.Wrong != 0 || now.Proven.IsZero() {
			t.Errorf("after a right answer: %d wrong in a row, proven at %v", now.Wrong, now.Proven)
		}
	}
}
