package hsmtest

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"countersign/hsm"
	"countersign/hsm/internal/check"
)

// object returns the only object of a key.
func (s *suite) object(t *testing.T, k hsm.Key) hsm.Object {
	t.Helper()
	all, err := s.token.Objects(t.Context())
	must(t, err)
	all = slices.DeleteFunc(all, func(o hsm.Object) bool { return o.Key != k.ID || o.Label != k.Label })
	if len(all) == 0 {
		t.Fatalf("%s has no object", k.Label)
	}
	return all[0]
}

func (s *suite) testObjects(t *testing.T) {
	for _, k := range s.several(t) {
		o := s.object(t, k)
		if pair := o.Class == "CKO_PRIVATE_KEY"; pair != k.Usage.Pair() || o.KeyType == "" {
			t.Errorf("%s: %s, %s", k.Label, o.Class, o.KeyType)
		}
		if may := o.True & hsm.AttrUsages; may != k.Usage.Form(may).May {
			t.Errorf("%s may %v", k.Label, o.True.Names())
		}
		const closed = hsm.AttrPrivate | hsm.AttrSensitive
		if !o.Has(closed) || o.True&hsm.AttrExtractable != 0 || o.True&^o.Told != 0 {
			t.Errorf("%s is %v of %v", k.Label, o.True.Names(), o.Told.Names())
		}
		ages := hsm.AttrHistory
		if k.Copied {
			ages &^= hsm.AttrNeverExtractable
		}
		if missing := ages & o.Told &^ o.True; missing != 0 {
			t.Errorf("%s was made here, and is not %v", k.Label, missing.Names())
		}
	}
	k := s.generate(t, "gone", hsm.MACKey)
	before, err := s.token.Objects(t.Context())
	must(t, err)
	s.drop(t, k.ID)
	if after, err := s.token.Objects(t.Context()); err != nil || len(after) >= len(before) {
		t.Errorf("%d objects, %d when one was destroyed: %v", len(before), len(after), err)
	}
}

// testObjectsTell: a key that was copied was extractable, and a restored key was not made
// on the token.
func (s *suite) testObjectsTell(t *testing.T) {
	for _, usage := range []hsm.Usage{hsm.SignP256, hsm.MACKey} {
		k, r, _ := s.copied(t, "tells-"+usage.String(), usage)
		made := s.object(t, k)
		s.drop(t, k.ID)
		_, err := s.token.Restore(t.Context(), r)
		must(t, err)
		restored := s.object(t, k)
		if !k.Copied || made.Has(hsm.AttrNeverExtractable) {
			t.Errorf("%s: copies were made, and it is %v", usage, made.True.Names())
		}
		if restored.Has(hsm.AttrLocal) || restored.Has(hsm.AttrNeverExtractable) {
			t.Errorf("%s was restored, and is %v", usage, restored.True.Names())
		}
	}
}

// certificate makes a certificate of the public key, by a temporary issuer.
func certificate(t *testing.T, public crypto.PublicKey, serial int64) []byte {
	t.Helper()
	issuer, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "subject"},
		NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour),
	}
	parent := &x509.Certificate{Subject: pkix.Name{CommonName: "issuer"}}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, issuer)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func (s *suite) testCertificate(t *testing.T) {
	var k hsm.Key
	for _, k = range s.several(t) {
		if k.Usage.Pair() {
			break
		}
	}
	if !k.Usage.Pair() {
		t.Skip("module lacks key pairs")
	}
	public, _, err := check.ParsePublic(k.Public)
	if err != nil {
		t.Fatal(err)
	}
	first := hsm.Certificate{Key: k.ID, Label: k.Label, DER: certificate(t, public, 200)}
	second := hsm.Certificate{Key: k.ID, Label: k.Label, DER: certificate(t, public, 300)}
	for _, c := range []hsm.Certificate{first, second, first} {
		must(t, s.token.StoreCertificate(t.Context(), c))
	}
	if n := s.certificates(t, k.ID, first, second); n != 2 {
		t.Errorf("%d certificates, want 2", n)
	}
	s.refusesCertificates(t, first)
	s.drop(t, k.ID)
	delete(s.made, k.Usage)
	if n := s.certificates(t, k.ID); n != 0 {
		t.Errorf("%d certificates outlive their key", n)
	}
}

// certificates counts the certificates of a key and looks for some.
func (s *suite) certificates(t *testing.T, id hsm.KeyID, want ...hsm.Certificate) (n int) {
	t.Helper()
	all, err := s.token.Certificates(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range all {
		if c.Key == id {
			n++
		}
		for i, w := range want {
			if c.Key == w.Key && c.Label == w.Label && bytes.Equal(c.DER, w.DER) {
				want = append(want[:i:i], want[i+1:]...)
				break
			}
		}
	}
	if len(want) > 0 {
		t.Errorf("%d certificates are not listed", len(want))
	}
	return n
}

func (s *suite) refusesCertificates(t *testing.T, good hsm.Certificate) {
	t.Helper()
	for name, change := range map[string]func(*hsm.Certificate){
		"key":     func(c *hsm.Certificate) { c.Key[0] ^= 1 },
		"label":   func(c *hsm.Certificate) { c.Label = strings.Repeat("x", 65) },
		"nothing": func(c *hsm.Certificate) { c.DER = nil },
		"more":    func(c *hsm.Certificate) { c.DER = append(bytes.Clone(c.DER), 0) },
	} {
		c := good
		change(&c)
		if err := s.token.StoreCertificate(t.Context(), c); !errors.Is(err, hsm.ErrInput) {
			t.Errorf("%s: %v, want ErrInput", name, err)
		}
	}
}

// deed is one call with good arguments, except for the key it is given.
type deed struct {
	name  string
	usage hsm.Usage
	do    func(context.Context, hsm.KeyID) error
}

// deeds returns the calls that the module supports.
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
	for _, kem := range s.token.KEMs() {
		add("Decap for "+kem.String(), hsm.DeriveP256, func(ctx context.Context, id hsm.KeyID) error {
			_, err := s.token.Decap(ctx, id, kem, peer)
			return err
		})
	}
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
		if _, err := s.token.Decap(t.Context(), hsm.KeyID{}, hsm.DHKEM, peer); !errors.Is(err, hsm.ErrInput) {
			t.Errorf("Decap of %s: %v, want ErrInput", name, err)
		}
	}
	if _, err := s.token.Sign(t.Context(), hsm.KeyID{}, hsm.ES256, fmt.Append(nil, "short")); !errors.Is(err, hsm.ErrInput) {
		t.Errorf("Sign of 5 bytes: %v, want ErrInput", err)
	}
}
