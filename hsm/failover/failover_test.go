package failover

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"countersign/hsm"
	"countersign/hsm/hsmtest"
	"countersign/hsm/memory"
)

// fragile is a token in memory that can be away, hang, or have calls in flight.
type fragile struct {
	*memory.Token
	away, hangs atomic.Bool
	flying      atomic.Int64
	signed      atomic.Int64
	returns     atomic.Uint64
}

func (f *fragile) Ready() bool   { return !f.away.Load() }
func (f *fragile) InFlight() int { return int(f.flying.Load()) }

func (f *fragile) Returns() uint64 { return f.returns.Load() }

func (f *fragile) Sign(ctx context.Context, key hsm.KeyID, alg hsm.Algorithm, input []byte) ([]byte, error) {
	if f.hangs.Load() {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if f.away.Load() {
		return nil, fmt.Errorf("pulled out: %w", hsm.ErrUnavailable)
	}
	f.signed.Add(1)
	return f.Token.Sign(ctx, key, alg, input)
}

const limit = 200 * time.Millisecond

func newSet(t *testing.T) (s *Set, first, second *fragile) {
	t.Helper()
	first, second = &fragile{Token: memory.New()}, &fragile{Token: memory.New()}
	members := []Member{{"first", first}, {"second", second}}
	return New(Config{Members: members, Timeout: limit, Logger: hclog.NewNullLogger()}), first, second
}

func make1(t *testing.T, s *Set) hsm.Key {
	t.Helper()
	k, err := s.Generate(t.Context(), hsm.KeySpec{Label: "sign@1", Usage: hsm.SignP256})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func sign(ctx context.Context, s *Set, k hsm.Key) error {
	digest := sha256.Sum256(nil)
	_, err := s.Sign(ctx, k.ID, hsm.ES256, digest[:])
	return err
}

func TestContract(t *testing.T) {
	s, _, _ := newSet(t)
	hsmtest.Run(t, func(*testing.T) hsm.Token { return s })
}

// Each token has every key under one id, and either token serves alone.
func TestCopies(t *testing.T) {
	s, first, second := newSet(t)
	for _, usage := range hsm.Usages() {
		k, err := s.Generate(t.Context(), hsm.KeySpec{Label: usage.String() + "@1", Usage: usage})
		if err != nil {
			t.Fatal(err)
		}
		for name, token := range map[string]*fragile{"first": first, "second": second} {
			keys, err := token.Keys(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			found := false
			for _, have := range keys {
				found = found || have.ID == k.ID && have.Label == k.Label && have.Usage == usage
			}
			if !found {
				t.Errorf("%s is not on the %s token", k.Label, name)
			}
		}
	}
}

func TestFailsOver(t *testing.T) {
	for name, harm := range map[string]func(*fragile){
		"away":  func(f *fragile) { f.away.Store(true) },
		"hangs": func(f *fragile) { f.hangs.Store(true) },
	} {
		t.Run(name, func(t *testing.T) {
			s, first, second := newSet(t)
			k := make1(t, s)
			if err := sign(t.Context(), s, k); err != nil || first.signed.Load() != 1 {
				t.Fatalf("first: %v, %d signed", err, first.signed.Load())
			}
			harm(first)
			start := time.Now()
			if err := sign(t.Context(), s, k); err != nil || second.signed.Load() != 1 {
				t.Errorf("second: %v, %d signed", err, second.signed.Load())
			}
			if took := time.Since(start); took > limit {
				t.Errorf("took %s of %s", took, limit)
			}
			second.away.Store(true)
			if err := sign(t.Context(), s, k); !errors.Is(err, hsm.ErrUnavailable) {
				t.Errorf("both: %v, want ErrUnavailable", err)
			}
		})
	}
}

// A key is made on both tokens or on none.
func TestGenerateNeedsAll(t *testing.T) {
	s, first, second := newSet(t)
	second.away.Store(true)
	if _, err := s.Generate(t.Context(), hsm.KeySpec{Label: "mac@1", Usage: hsm.MACKey}); !errors.Is(err, hsm.ErrUnavailable) {
		t.Errorf("Generate: %v, want ErrUnavailable", err)
	}
	if keys, err := first.Keys(t.Context()); err != nil || len(keys) != 0 {
		t.Errorf("%d keys on the first token, %v", len(keys), err)
	}
}

// What cannot be copied is taken back.
func TestGenerateUndone(t *testing.T) {
	s, first, second := newSet(t)
	make1(t, s)
	if _, err := second.Token.Generate(t.Context(), hsm.KeySpec{Label: "mac@1", Usage: hsm.MACKey}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Generate(t.Context(), hsm.KeySpec{Label: "mac@1", Usage: hsm.MACKey}); !errors.Is(err, hsm.ErrExists) {
		t.Errorf("Generate: %v, want ErrExists", err)
	}
	keys, err := first.Keys(t.Context())
	if err != nil || len(keys) != 1 || keys[0].Label != "sign@1" {
		t.Errorf("keys on the first token: %v, %v", keys, err)
	}
}

func TestDrain(t *testing.T) {
	s, first, second := newSet(t)
	k := make1(t, s)
	first.flying.Store(1)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := s.Drain("first", true); err != nil {
		t.Error(err)
	}
	if err := s.Idle(ctx, "first"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Idle with a call in flight: %v", err)
	}
	first.flying.Store(0)
	if err := s.Idle(t.Context(), "first"); err != nil {
		t.Error(err)
	}
	if err := sign(t.Context(), s, k); err != nil || first.signed.Load() != 0 || second.signed.Load() != 1 {
		t.Errorf("drained: %v, %d and %d signed", err, first.signed.Load(), second.signed.Load())
	}
	if err := s.Drain("second", true); !errors.Is(err, ErrLast) {
		t.Errorf("Drain of the last: %v, want ErrLast", err)
	}
	if err := s.Drain("third", true); !errors.Is(err, ErrNoMember) {
		t.Errorf("Drain of none: %v, want ErrNoMember", err)
	}
	if err := s.Drain("first", false); err != nil {
		t.Error(err)
	}
	if err := sign(t.Context(), s, k); err != nil || first.signed.Load() != 1 {
		t.Errorf("resumed: %v, %d signed", err, first.signed.Load())
	}
}

// A key that only one token has is found there, and one that none has is told so.
func TestKeyOnOneOnly(t *testing.T) {
	s, first, second := newSet(t)
	only, err := second.Token.Generate(t.Context(), hsm.KeySpec{Label: "only@1", Usage: hsm.SignP256})
	if err != nil {
		t.Fatal(err)
	}
	if err := sign(t.Context(), s, only); err != nil {
		t.Error(err)
	}
	if err := sign(t.Context(), s, hsm.Key{ID: hsm.KeyID{1}}); !errors.Is(err, hsm.ErrKey) {
		t.Errorf("unknown key: %v, want ErrKey", err)
	}
	first.away.Store(true)
	if err := sign(t.Context(), s, hsm.Key{ID: hsm.KeyID{1}}); !errors.Is(err, hsm.ErrUnavailable) {
		t.Errorf("unknown key with a token away: %v, want ErrUnavailable", err)
	}
}

// TestKEMs: a set offers what every opened member can do.
func TestKEMs(t *testing.T) {
	for want, members := range map[string][][]hsm.KEM{
		"[suite 1 suite 2]": {{hsm.DHKEM, hsm.KEM2}, {hsm.DHKEM, hsm.KEM2}},
		"[suite 2]":         {{hsm.DHKEM, hsm.KEM2}, {hsm.KEM2}},
		"[suite 1]":         {{}, {hsm.DHKEM}},
		"[]":                {{hsm.DHKEM}, {hsm.KEM2}},
	} {
		cfg := Config{Logger: hclog.NewNullLogger()}
		for i, kems := range members {
			cfg.Members = append(cfg.Members, Member{Name: strconv.Itoa(i), Token: &fragile{Token: memory.With(kems...)}})
		}
		if got := fmt.Sprint(New(cfg).KEMs()); got != want {
			t.Errorf("%v: %s, want %s", members, got, want)
		}
	}
}
