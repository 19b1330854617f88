package hsmtest

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdh"
	"crypto/x509"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"countersign/hsm"
	"countersign/hsm/internal/check"
	"countersign/hsm/internal/kwp"
	"countersign/hsm/memory"
)

var allUsages = []hsm.Usage{
	hsm.SignP256, hsm.DeriveP256, hsm.MACKey, hsm.WrapKey, hsm.SignP384, hsm.SignEd25519,
	hsm.SignRSA2048,
}

func (s *suite) sealed(t *testing.T) {
	for _, usage := range allUsages {
		t.Run("Restore/"+usage.String(), func(t *testing.T) { s.testRestore(t, usage) })
	}
	for _, usage := range allUsages {
		t.Run("FromElsewhere/"+usage.String(), func(t *testing.T) { s.testFromElsewhere(t, usage) })
	}
	t.Run("Refused", s.testRestoreRefused)
	t.Run("Recipients", s.testRecipients)
	t.Run("Objects", s.testObjectsTell)
	t.Run("Adopt", s.testAdopt)
}

// copied makes a key with a sealed copy for the suite's own DeriveP256 key and for one in
// memory.
func (s *suite) copied(t *testing.T, label string, usage hsm.Usage) (hsm.Key, hsm.Restore, *ecdh.PrivateKey) {
	t.Helper()
	with, escrow := s.key(t, hsm.DeriveP256), newPeer(t)
	own, err := with.ECDH()
	if err != nil {
		t.Fatal(err)
	}
	spec := hsm.KeySpec{Label: s.prefix + label, Usage: usage, Recipients: []*ecdh.PublicKey{own, escrow.PublicKey()}}
	k, err := s.token.Generate(t.Context(), spec)
	must(t, err)
	if len(k.Sealed) != 2 {
		t.Fatalf("%d sealed copies, want 2", len(k.Sealed))
	}
	spec.Recipients = nil
	r := hsm.Restore{Spec: spec, Sealed: k.Sealed[0], With: with.ID, Public: k.Public}
	if !usage.Pair() {
		r.ID = k.ID
	}
	return k, r, escrow
}

// testRestore: a destroyed key comes back from its copy as the same key.
func (s *suite) testRestore(t *testing.T, usage hsm.Usage) {
	k, r, escrow := s.copied(t, "restored-"+usage.String(), usage)
	before := s.shows(t, k)
	if _, err := s.token.Restore(t.Context(), r); !errors.Is(err, hsm.ErrExists) {
		t.Errorf("while it is there: %v, want ErrExists", err)
	}
	if err := s.token.Destroy(t.Context(), k.ID); err != nil {
		t.Fatal(err)
	}
	got, err := s.token.Restore(t.Context(), r)
	must(t, err)
	if got.ID != k.ID || !s.listed(t, hsm.Key{ID: k.ID, Label: k.Label, Usage: usage, Public: k.Public}) {
		t.Errorf("restored %v, want %v", got, k)
	}
	s.same(t, k, before)
	inMemory(t, k, r.Spec, escrow)
}

// testFromElsewhere: a copy that another token made, here the one in memory, is restored.
func (s *suite) testFromElsewhere(t *testing.T, usage hsm.Usage) {
	with := s.key(t, hsm.DeriveP256)
	own, err := with.ECDH()
	if err != nil {
		t.Fatal(err)
	}
	spec := hsm.KeySpec{Label: s.prefix + "elsewhere-" + usage.String(), Usage: usage, Recipients: []*ecdh.PublicKey{own}}
	k, err := memory.New().Generate(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	spec.Recipients = nil
	r := hsm.Restore{Spec: spec, Sealed: k.Sealed[0], With: with.ID, Public: k.Public, ID: k.ID}
	_, err = s.token.Restore(t.Context(), r)
	must(t, err)
	if !s.listed(t, hsm.Key{ID: k.ID, Label: k.Label, Usage: usage, Public: k.Public}) {
		t.Error("it is not listed")
	}
	if usage.Pair() {
		s.same(t, k, nil)
	}
}

// shows returns a value that only the key can make, or undo.
func (s *suite) shows(t *testing.T, k hsm.Key) (out []byte) {
	t.Helper()
	var err error
	switch k.Usage {
	case hsm.MACKey:
		out, err = s.token.MAC(t.Context(), k.ID, []byte("x"))
	case hsm.WrapKey:
		return s.importSecret(t, k.ID, newSecret())
	}
	must(t, err)
	return out
}

// same fails the test if a key is not the one that made the earlier value.
func (s *suite) same(t *testing.T, k hsm.Key, before []byte) {
	t.Helper()
	var err error
	switch k.Usage {
	case hsm.MACKey:
		if again := s.shows(t, k); !bytes.Equal(before, again) {
			t.Errorf("MAC %x, was %x", again, before)
		}
	case hsm.WrapKey:
		_, err = s.token.MACWrapped(t.Context(), k.ID, before, nil)
	case hsm.DeriveP256:
		s.decapsulates(t, k, s.kems(t)[0])
	default:
		for alg := hsm.ES256; alg <= hsm.EdDSA; alg++ {
			if alg.For(k.Usage) {
				err = errors.Join(err, s.signed(t.Context(), k, alg))
			}
		}
	}
	if err != nil {
		t.Errorf("using the restored key: %v", err)
	}
}

func (s *suite) signed(ctx context.Context, k hsm.Key, alg hsm.Algorithm) error {
	public, _, err := check.ParsePublic(k.Public)
	if err != nil {
		return err
	}
	input := digest(alg, "x")
	sig, err := s.token.Sign(ctx, k.ID, alg, input)
	if err != nil {
		return err
	}
	return check.Verify(public, alg, input, sig)
}

// inMemory opens the second copy without the token: it is the key, in PKCS #8 or as 32
// bytes.
func inMemory(t *testing.T, k hsm.Key, spec hsm.KeySpec, escrow *ecdh.PrivateKey) {
	t.Helper()
	plain, err := kwp.Unseal(spec, escrow, k.Sealed[1])
	if err != nil {
		t.Fatal(err)
	}
	if !k.Usage.Pair() {
		if len(plain) != 32 {
			t.Errorf("secret of %d bytes", len(plain))
		}
		return
	}
	private, err := x509.ParsePKCS8PrivateKey(plain)
	if err != nil {
		t.Fatalf("the copy is no PKCS #8: %v", err)
	}
	if _, id, err := encode(private); err != nil || id != k.ID {
		t.Errorf("the copy is of key %s, want %s: %v", id, k.ID, err)
	}
}

func encode(private any) ([]byte, hsm.KeyID, error) {
	if k, ok := private.(*ecdh.PrivateKey); ok {
		return check.Encode(k.PublicKey())
	}
	return check.Encode(private.(crypto.Signer).Public())
}

func (s *suite) testRestoreRefused(t *testing.T) {
	for _, usage := range []hsm.Usage{hsm.SignP256, hsm.MACKey} {
		k, good, _ := s.copied(t, "refused-"+usage.String(), usage)
		if err := s.token.Destroy(t.Context(), k.ID); err != nil {
			t.Fatal(err)
		}
		before := len(s.list(t))
		for name, change := range s.spoilt(t, k) {
			r := good
			change(&r)
			if got, err := s.token.Restore(t.Context(), r); !errors.Is(err, hsm.ErrInput) {
				t.Errorf("%s, %s: %v, %v, want ErrInput", usage, name, got.ID, err)
			}
		}
		for _, with := range []hsm.KeyID{{1, 2, 3}, s.key(t, hsm.SignP256).ID} {
			r := good
			r.With = with
			if _, err := s.token.Restore(t.Context(), r); !errors.Is(err, hsm.ErrKey) {
				t.Errorf("%s with key %s: %v, want ErrKey", usage, with, err)
			}
		}
		if after := len(s.list(t)); after != before {
			t.Errorf("%d keys before, %d after", before, after)
		}
		_, err := s.token.Restore(t.Context(), good)
		must(t, err)
	}
}

// spoilt returns ways to make a restore wrong.
func (s *suite) spoilt(t *testing.T, k hsm.Key) map[string]func(*hsm.Restore) {
	ways := map[string]func(*hsm.Restore){
		"label":       func(r *hsm.Restore) { r.Spec.Label += "x" },
		"no label":    func(r *hsm.Restore) { r.Spec.Label = "" },
		"another's":   func(r *hsm.Restore) { r.Sealed = k.Sealed[1] },
		"nothing":     func(r *hsm.Restore) { r.Sealed = nil },
		"point alone": func(r *hsm.Restore) { r.Sealed = r.Sealed[:65] },
		"short":       func(r *hsm.Restore) { r.Sealed = r.Sealed[:len(r.Sealed)-8] },
		"recipients":  func(r *hsm.Restore) { r.Spec.Recipients = []*ecdh.PublicKey{newPeer(t).PublicKey()} },
	}
	if k.Usage == hsm.SignP256 {
		other := s.generate(t, "another-"+k.Usage.String(), k.Usage)
		s.drop(t, other.ID)
		ways["usage"] = func(r *hsm.Restore) { r.Spec.Usage = hsm.DeriveP256 }
		ways["public key of another"] = func(r *hsm.Restore) { r.Public = other.Public }
		ways["public key of another kind"] = func(r *hsm.Restore) { r.Spec.Usage = hsm.SignP384 }
		ways["no public key"] = func(r *hsm.Restore) { r.Public = nil }
	} else {
		ways["usage"] = func(r *hsm.Restore) { r.Spec.Usage = hsm.WrapKey }
		ways["no id"] = func(r *hsm.Restore) { r.ID = hsm.KeyID{} }
	}
	for _, f := range flips(k.Sealed[0]) {
		ways["flipped "+strings.Repeat("+", len(ways))] = func(r *hsm.Restore) { r.Sealed = f }
	}
	return ways
}

// drop destroys a key. NSS answers CKR_HOST_MEMORY to a canary whose key is destroyed at that
// moment, and the pool then replaces the worker. The caller of a lost call repeats it; if the
// call was carried out, the key is gone.
func (s *suite) drop(t *testing.T, id hsm.KeyID) {
	t.Helper()
	const patience = 10 * time.Second
	for began, repeated := time.Now(), false; ; repeated = true {
		err := s.token.Destroy(t.Context(), id)
		switch {
		case err == nil, repeated && errors.Is(err, hsm.ErrKey):
			return
		case !errors.Is(err, hsm.ErrUnavailable), time.Since(began) > patience:
			t.Error(err)
			return
		}
		time.Sleep(10 * time.Millisecond) // until a worker is ready again
	}
}

func (s *suite) testRecipients(t *testing.T) {
	many := slices.Repeat([]*ecdh.PublicKey{newPeer(t).PublicKey()}, 17)
	for name, recipients := range map[string][]*ecdh.PublicKey{"nil": {nil}, "P-384": {foreign(t)}, "17": many} {
		spec := hsm.KeySpec{Label: s.prefix + "recipients", Usage: hsm.SignP256, Recipients: recipients}
		if _, err := s.token.Generate(t.Context(), spec); !errors.Is(err, hsm.ErrInput) {
			t.Errorf("%s: %v, want ErrInput", name, err)
		}
	}
}

// testAdopt: an adopted key restores copies that were sealed for it before.
func (s *suite) testAdopt(t *testing.T) {
	k, r, escrow := s.copied(t, "escrowed", hsm.SignP256)
	s.drop(t, k.ID)
	spec := hsm.KeySpec{Label: s.prefix + "adopted", Usage: hsm.DeriveP256}
	adopted, err := s.token.Adopt(t.Context(), spec, escrow)
	must(t, err)
	if public, err := adopted.ECDH(); err != nil || !public.Equal(escrow.PublicKey()) || !s.listed(t, adopted) {
		t.Errorf("adopted %v: %v", adopted, err)
	}
	s.decapsulates(t, adopted, s.kems(t)[0])
	if _, err := s.token.Adopt(t.Context(), spec, newPeer(t)); !errors.Is(err, hsm.ErrExists) {
		t.Errorf("another under the label: %v, want ErrExists", err)
	}
	for name, bad := range map[string]hsm.KeySpec{
		"usage": {Label: s.prefix + "bad", Usage: hsm.SignP256}, "label": {Usage: hsm.DeriveP256},
	} {
		if _, err := s.token.Adopt(t.Context(), bad, newPeer(t)); !errors.Is(err, hsm.ErrInput) {
			t.Errorf("%s: %v, want ErrInput", name, err)
		}
	}
	if _, err := s.token.Adopt(t.Context(), spec, nil); !errors.Is(err, hsm.ErrInput) {
		t.Errorf("no key: %v, want ErrInput", err)
	}
	r.With, r.Sealed = adopted.ID, k.Sealed[1]
	_, err = s.token.Restore(t.Context(), r)
	must(t, err)
	s.same(t, k, nil)
}
