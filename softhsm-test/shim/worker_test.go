package shim_test

import (
	"crypto/ecdsa"
	"crypto/x509"
	"math/big"
	"strings"
	"sync"
	"testing"
	"time"

	"countersign/hsm"
	"countersign/hsm/hsmtest"
	"countersign/hsm/pool"
)

// pool opens one worker process with a number of sessions on the token.
func (b *bed) pool(sessions int) (*pool.Pool, error) {
	b.Helper()
	b.hsm.Setenv(b)
	for _, assignment := range b.Env() {
		name, value, _ := strings.Cut(assignment, "=")
		b.Setenv(name, value)
	}
	p, err := pool.Open(b.Context(), pool.Config{
		Binary: hsmtest.Worker(b), Module: b.Module, TokenLabel: b.hsm.Label, PIN: hsm.PIN(b.hsm.PIN), Workers: 1, Sessions: sessions,
	})
	if err == nil {
		b.Cleanup(p.Close)
	}
	return p, err
}

// signer is a pool with a key to sign with.
type signer struct {
	*bed
	pool *pool.Pool
	key  hsm.Key
}

func newSigner(t *testing.T, sessions int) *signer {
	t.Helper()
	return newBed(t).signer(sessions)
}

func (b *bed) signer(sessions int) *signer {
	b.Helper()
	pool, err := b.pool(sessions)
	if err != nil {
		b.Fatal(err)
	}
	key, err := pool.Generate(b.Context(), hsm.KeySpec{Label: "sign@1", Usage: hsm.SignP256})
	if err != nil {
		b.Fatal(err)
	}
	return &signer{b, pool, key}
}

// sign signs, and checks that the result is good.
func (s *signer) sign() {
	s.Helper()
	digest := newDigest()
	sig, err := s.pool.Sign(s.Context(), s.key.ID, hsm.ES256, digest[:])
	if err != nil {
		s.Error(err)
		return
	}
	public, err := x509.ParsePKIXPublicKey(s.key.Public)
	if err != nil {
		s.Error(err)
		return
	}
	if !ecdsa.Verify(public.(*ecdsa.PublicKey), digest[:], new(big.Int).SetBytes(sig[:32]), new(big.Int).SetBytes(sig[32:])) {
		s.Error("a signature that does not verify")
	}
}

// TestKeep: with keep=1 the session of a failed call still has an active operation, and
// without it none. The worker has a second session, so it takes a few signatures until the
// session is used again.
func TestKeep(t *testing.T) {
	s := newSigner(t, 1)
	for rule, stays := range map[string]bool{"C_Sign rv CKR_DATA_INVALID n=1": false, "C_Sign rv CKR_DATA_INVALID n=1 keep=1": true} {
		s.set(rule)
		counts := s.counted(func() {
			for range 4 {
				digest := newDigest()
				_, _ = s.pool.Sign(t.Context(), s.key.ID, hsm.ES256, digest[:]) // the first fails, or a canary did
			}
		})
		if counts["C_Sign"].Faults == 0 {
			t.Errorf("%s: never fired", rule)
		}
		if got := counts["C_SignInit"].Errors; (got > 0) != stays {
			t.Errorf("%s: C_SignInit failed %d times afterwards", rule, got)
		}
	}
}

// TestSize: a rule for 64 bytes of output does not affect MACs.
func TestSize(t *testing.T) {
	s := newSigner(t, 1)
	mac, err := s.pool.Generate(t.Context(), hsm.KeySpec{Label: "mac@1", Usage: hsm.MACKey})
	if err != nil {
		t.Fatal(err)
	}
	s.set("C_Sign rv CKR_DATA_INVALID size=64")
	if _, err := s.pool.MAC(t.Context(), mac.ID, []byte("data")); err != nil {
		t.Error(err)
	}
	digest := newDigest()
	if _, err := s.pool.Sign(t.Context(), s.key.ID, hsm.ES256, digest[:]); err == nil {
		t.Error("a signature")
	}
}

// TestParallel: a device that does one operation at a time.
func TestParallel(t *testing.T) {
	s := newSigner(t, 4)
	const calls, each = 8, 25 * time.Millisecond
	all := func() time.Duration {
		begun := time.Now()
		var group sync.WaitGroup
		for range calls {
			group.Go(s.sign)
		}
		group.Wait()
		return time.Since(begun)
	}
	s.set("C_Sign latency 25000")
	if took := all(); took >= calls*each {
		t.Errorf("%d calls in 4 sessions took %v", calls, took)
	}
	s.set("C_Sign latency 25000", "set parallel 1")
	if took := all(); took < calls*each {
		t.Errorf("%d calls one after the other took %v only", calls, took)
	}
}

// TestMaxSessions: the pool keeps a session limit that the token reports, and finds one
// that it hides.
func TestMaxSessions(t *testing.T) {
	const sessions = 16
	for _, c := range []struct {
		hide  string
		found bool
	}{{"0", false}, {"1", true}} {
		t.Run("hide_max "+c.hide, func(t *testing.T) {
			b := newBed(t)
			b.set("set max_sessions 8", "set hide_max "+c.hide, "C_Sign latency 20000")
			counts := b.counted(func() {
				s := b.signer(sessions)
				var group sync.WaitGroup
				for range sessions {
					group.Go(func() {
						digest := newDigest()
						_, _ = s.pool.Sign(t.Context(), s.key.ID, hsm.ES256, digest[:]) // one too many may find no session
					})
				}
				group.Wait()
			})
			if got := counts["C_OpenSession"]; got.Calls == 0 || (got.Errors != 0) != c.found {
				t.Errorf("C_OpenSession: %+v", got)
			}
		})
	}
}
