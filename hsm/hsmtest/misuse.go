package hsmtest

import (
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"testing"

	"countersign/hsm"
)

// deed is one call with good arguments, but for the key it is given.
type deed struct {
	name  string
	usage hsm.Usage
	do    func(context.Context, hsm.KeyID) error
}

// deeds are the calls that a module can do with the keys of several.
func (s *suite) deeds(t *testing.T) (deeds []deed) {
	t.Helper()
	s.several(t)
	add := func(name string, usage hsm.Usage, do func(context.Context, hsm.KeyID) error) {
		if _, ok := s.made[usage]; ok {
			deeds = append(deeds, deed{name, usage, do})
		}
	}
	for _, usage := range ordinary {
		alg := usage.Proof()
		if alg == 0 {
			continue
		}
		add("Sign "+alg.String(), usage, func(ctx context.Context, id hsm.KeyID) error {
			_, err := s.token.Sign(ctx, id, alg, digest(alg, "x"))
			return err
		})
	}
	peer := newPeer(t).PublicKey()
	add("Derive", hsm.DeriveP256, func(ctx context.Context, id hsm.KeyID) error {
		_, err := s.token.Derive(ctx, id, peer)
		return err
	})
	add("MAC", hsm.MACKey, func(ctx context.Context, id hsm.KeyID) error {
		_, err := s.token.MAC(ctx, id, nil)
		return err
	})
	return append(deeds, s.passwordDeeds(t)...)
}

func (s *suite) passwordDeeds(t *testing.T) []deed {
	t.Helper()
	wrap, keeps := s.made[hsm.WrapKey]
	enrol, derives := s.made[hsm.DeriveP256]
	if !keeps || !derives {
		return nil
	}
	if s.kept == nil {
		s.kept = s.importSecret(t, wrap.ID, newSecret())
	}
	i := s.wrapped(t, newSecret())
	return []deed{
		{"Rewrap from", hsm.WrapKey, func(ctx context.Context, id hsm.KeyID) error {
			_, err := s.token.Rewrap(ctx, hsm.Rewrap{From: id, To: wrap.ID, Wrapped: s.kept})
			return err
		}},
		{"Rewrap to", hsm.WrapKey, func(ctx context.Context, id hsm.KeyID) error {
			_, err := s.token.Rewrap(ctx, hsm.Rewrap{From: wrap.ID, To: id, Wrapped: s.kept})
			return err
		}},
		{"MACWrapped", hsm.WrapKey, func(ctx context.Context, id hsm.KeyID) error {
			_, err := s.token.MACWrapped(ctx, id, s.kept, nil)
			return err
		}},
		{"Import by enrol", hsm.DeriveP256, func(ctx context.Context, id hsm.KeyID) error {
			i := i
			i.Enrol, i.Wrap = id, wrap.ID
			_, err := s.token.Import(ctx, i)
			return err
		}},
		{"Import by wrap", hsm.WrapKey, func(ctx context.Context, id hsm.KeyID) error {
			i := i
			i.Enrol, i.Wrap = enrol.ID, id
			_, err := s.token.Import(ctx, i)
			return err
		}},
	}
}

func (s *suite) testWrongKey(t *testing.T) {
	for _, d := range s.deeds(t) {
		ids := map[string]hsm.KeyID{"unknown": {1, 2, 3}}
		for _, k := range s.several(t) {
			if k.Usage != d.usage {
				ids[k.Usage.String()] = k.ID
			}
		}
		for name, id := range ids {
			if err := d.do(t.Context(), id); !errors.Is(err, hsm.ErrKey) {
				t.Errorf("%s with key %s: %v, want ErrKey", d.name, name, err)
			}
		}
	}
	if err := s.token.Destroy(t.Context(), hsm.KeyID{1, 2, 3}); !errors.Is(err, hsm.ErrKey) {
		t.Errorf("Destroy of an unknown key: %v, want ErrKey", err)
	}
}

func (s *suite) testCancelled(t *testing.T) {
	deeds := s.deeds(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, d := range deeds {
		if err := d.do(ctx, s.made[d.usage].ID); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v, want context.Canceled", d.name, err)
		}
	}
	if _, err := s.token.Keys(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Keys: %v, want context.Canceled", err)
	}
	if _, err := s.token.Objects(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Objects: %v, want context.Canceled", err)
	}
	if _, err := s.token.Certificates(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Certificates: %v, want context.Canceled", err)
	}
	for _, k := range s.several(t) {
		spec := hsm.KeySpec{Label: s.prefix + "cancelled", Usage: k.Usage}
		if _, err := s.token.Generate(ctx, spec); !errors.Is(err, context.Canceled) {
			t.Errorf("Generate: %v, want context.Canceled", err)
		}
		if err := s.token.Destroy(ctx, k.ID); !errors.Is(err, context.Canceled) {
			t.Errorf("Destroy: %v, want context.Canceled", err)
		}
	}
	for _, d := range deeds {
		if err := d.do(t.Context(), s.made[d.usage].ID); err != nil {
			t.Errorf("%s afterwards: %v", d.name, err)
		}
	}
}

func (s *suite) testConcurrent(t *testing.T) {
	deeds := s.deeds(t)
	var wg sync.WaitGroup
	for g := range 16 {
		wg.Go(func() {
			for range 5 {
				for _, d := range deeds {
					if err := d.do(t.Context(), s.made[d.usage].ID); err != nil {
						t.Errorf("%s in goroutine %d: %v", d.name, g, err)
					}
				}
				if k, ok := s.made[hsm.SignP256]; ok {
					if err := s.signed(t.Context(), k, hsm.ES256); err != nil {
						t.Errorf("Sign in goroutine %d: %v", g, err)
					}
				}
			}
		})
	}
	wg.Wait()
}

func foreign(t *testing.T) *ecdh.PublicKey {
	t.Helper()
	k, err := ecdh.P384().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k.PublicKey()
}

func (s *suite) testBadInput(t *testing.T) {
	for name, peer := range map[string]*ecdh.PublicKey{"nil": nil, "P-384": foreign(t)} {
		if _, err := s.token.Derive(t.Context(), hsm.KeyID{}, peer); !errors.Is(err, hsm.ErrInput) {
			t.Errorf("Derive with peer %s: %v, want ErrInput", name, err)
		}
	}
	if _, err := s.token.Sign(t.Context(), hsm.KeyID{}, hsm.ES256, fmt.Append(nil, "short")); !errors.Is(err, hsm.ErrInput) {
		t.Errorf("Sign of 5 bytes: %v, want ErrInput", err)
	}
}
