package pkcs11

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"countersign/hsm"
	"countersign/hsm/internal/check"
)

// classesOf returns the classes of the token objects with a CKA_ID.
func classesOf(t *testing.T, mark []byte) (classes []uint) {
	t.Helper()
	for _, h := range objects(t, mark) {
		raw(t, func(s *session) error {
			a, _, err := shared.attributes(s, h, pkcs11.CKA_CLASS)
			classes = append(classes, ulong(a[0]))
			return err
		})
	}
	slices.Sort(classes)
	return classes
}

var bothHalves = []uint{pkcs11.CKO_PUBLIC_KEY, pkcs11.CKO_PRIVATE_KEY}

// A pair is made on the token in one call: both halves have one random CKA_ID, which is not the id
// of the key, and no copy of them was made.
func TestPairInOneCall(t *testing.T) {
	for _, usage := range []hsm.Usage{hsm.SignP256, hsm.DeriveP256, hsm.SignRSA2048, hsm.SignEd25519} {
		k := generate(t, "one-call", usage)
		mark := markOf(t, k)
		if len(mark) != 20 || bytes.Equal(mark, k.ID[:]) || !slices.Equal(classesOf(t, mark), bothHalves) {
			t.Errorf("%s: CKA_ID %x of key %s, classes %v", usage, mark, k.ID, classesOf(t, mark))
		}
		if n := len(objects(t, k.ID[:])); n != 0 {
			t.Errorf("%s: %d objects have the id of the key as CKA_ID", usage, n)
		}
		if err := shared.Destroy(t.Context(), k.ID); err != nil || len(objects(t, mark)) != 0 {
			t.Errorf("%s: Destroy leaves %d objects: %v", usage, len(objects(t, mark)), err)
		}
	}
}

// pairOfBefore makes a pair as earlier releases did: a copy of session objects whose CKA_ID is the id
// of the key.
func pairOfBefore(t *testing.T, usage hsm.Usage) hsm.Key {
	t.Helper()
	spec := hsm.KeySpec{Label: fresh("before") + "@1", Usage: usage}
	var made newKey
	raw(t, func(s *session) (err error) {
		made, err = shared.copyPair(s, spec)
		return err
	})
	o, err := shared.resolve(t.Context(), made.id)
	if err != nil || o.Label != spec.Label {
		t.Fatalf("a key of an earlier release: %v, %v", o, err)
	}
	return o.Key
}

// A key of an earlier release is listed, used, certified and destroyed as before.
func TestPairOfBefore(t *testing.T) {
	k := pairOfBefore(t, hsm.SignP256)
	if mark := markOf(t, k); !bytes.Equal(mark, k.ID[:]) || !listed(t, k.Label) {
		t.Errorf("CKA_ID %x of key %s, listed %v", mark, k.ID, listed(t, k.Label))
	}
	if _, err := shared.Sign(t.Context(), k.ID, hsm.ES256, make([]byte, 32)); err != nil {
		t.Error(err)
	}
	if _, err := shared.Generate(t.Context(), hsm.KeySpec{Label: k.Label, Usage: hsm.SignP256}); !errors.Is(err, hsm.ErrExists) {
		t.Errorf("a new key under its label: %v, want ErrExists", err)
	}
	if err := shared.Destroy(t.Context(), k.ID); err != nil || len(objects(t, k.ID[:])) != 0 {
		t.Errorf("Destroy leaves %d objects: %v", len(objects(t, k.ID[:])), err)
	}
}

// removePublic destroys the public half of a pair, as on a token to which a tool restored the
// private keys alone.
func removePublic(t *testing.T, k hsm.Key) {
	t.Helper()
	mark := markOf(t, k)
	raw(t, func(s *session) error {
		halves, err := shared.find(s, pkcs11.CKO_PUBLIC_KEY, []*pkcs11.Attribute{marked(mark)})
		if err != nil || len(halves) != 1 {
			t.Fatalf("%d public halves, %v", len(halves), err)
		}
		return shared.ctx.DestroyObject(s.handle, halves[0])
	})
}

// forget makes the token forget what callers know and what keys have proven.
func forget() {
	shared.halves.mu.Lock()
	defer shared.halves.mu.Unlock()
	shared.halves.known, shared.halves.proofs = nil, nil
}

// A private key without a public half is found if the caller knows its public key: it proves that
// it belongs to it. A key that the caller does not know is not found, nor under another one's name.
func TestPublicHalfMissing(t *testing.T) {
	t.Cleanup(forget)
	for _, make := range []func(*testing.T, hsm.Usage) hsm.Key{
		pairOfBefore, func(t *testing.T, u hsm.Usage) hsm.Key { return generate(t, "no-half@", u) },
	} {
		for _, usage := range []hsm.Usage{hsm.SignP256, hsm.DeriveP256, hsm.SignP384, hsm.SignRSA2048} {
			forget()
			k, other := make(t, usage), make(t, usage)
			removePublic(t, k)
			if listed(t, k.Label) {
				t.Errorf("%s: listed, and no public key is known", usage)
			}
			if err := shared.Know(t.Context(), [][]byte{other.Public}); err != nil || listed(t, k.Label) {
				t.Errorf("%s: listed with the public key of another: %v", usage, err)
			}
			if err := shared.Know(t.Context(), [][]byte{other.Public, k.Public}); err != nil || !listed(t, k.Label) {
				t.Errorf("%s: not listed with its public key: %v", usage, err)
			}
			o, err := shared.lookUp(t.Context(), k.ID)
			if err == nil {
				raw(t, func(s *session) error { return shared.prove(s, o) })
			}
			if err != nil || o.Usage != usage || o.Label != k.Label {
				t.Errorf("%s: %v, %v", usage, o, err)
			}
			if err := shared.Destroy(t.Context(), k.ID); err != nil || listed(t, k.Label) {
				t.Errorf("%s: Destroy: %v", usage, err)
			}
		}
	}
	if err := shared.Know(t.Context(), [][]byte{[]byte("no key")}); !errors.Is(err, hsm.ErrInput) {
		t.Errorf("Know of garbage: %v, want ErrInput", err)
	}
}

// A module that fails once at a private key without a public half does not hide the key for ever.
func TestProofFailsOnce(t *testing.T) {
	t.Cleanup(forget)
	k, other := generate(t, "fails once@1", hsm.SignP256), generate(t, "fails once@2", hsm.SignP256)
	o, err := shared.lookUp(t.Context(), other.ID)
	if err != nil {
		t.Fatal(err)
	}
	removePublic(t, k)
	if err := shared.Know(t.Context(), [][]byte{k.Public}); err != nil {
		t.Fatal(err)
	}
	mech := []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_ECDSA, nil)}
	raw(t, func(s *session) error {
		private, err := shared.find(s, pkcs11.CKO_PRIVATE_KEY, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_LABEL, k.Label)})
		if err == nil {
			err = shared.ctx.SignInit(s.handle, mech, o.handle) // until its end, every other one fails
		}
		if err != nil {
			return err
		}
		if _, ok, err := shared.describe(s, private[0], pkcs11.CKO_PRIVATE_KEY, nil); ok || err != nil {
			t.Errorf("while the module fails: found %v, %v", ok, err)
		}
		_, err = shared.ctx.Sign(s.handle, make([]byte, 32))
		return err
	})
	if !listed(t, k.Label) {
		t.Error("not listed once the module works again")
	}
}

// Two public keys under one CKA_ID: the private key proves which one is its half.
func TestTwoPublicHalves(t *testing.T) {
	k, other := generate(t, "two-halves@1", hsm.SignP256), generate(t, "two-halves@2", hsm.SignP256)
	mark := markOf(t, k)
	raw(t, func(s *session) error {
		half, err := shared.find(s, pkcs11.CKO_PUBLIC_KEY, []*pkcs11.Attribute{marked(markOf(t, other))})
		if err != nil {
			return err
		}
		a, _, err := shared.attributes(s, half[0], pkcs11.CKA_EC_PARAMS, pkcs11.CKA_EC_POINT)
		if err != nil {
			return err
		}
		_, err = shared.ctx.CreateObject(s.handle, []*pkcs11.Attribute{
			pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_PUBLIC_KEY), pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_EC),
			pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true), marked(mark),
			pkcs11.NewAttribute(pkcs11.CKA_EC_PARAMS, a[0]), pkcs11.NewAttribute(pkcs11.CKA_EC_POINT, a[1]),
		})
		return err
	})
	keys, err := shared.Keys(t.Context())
	if err != nil || !slices.ContainsFunc(keys, func(l hsm.Key) bool { return l.Label == k.Label && l.ID == k.ID }) {
		t.Errorf("not listed as itself: %v", err)
	}
	if err := shared.Destroy(t.Context(), k.ID); err != nil || !slices.Equal(classesOf(t, mark), bothHalves[:1]) {
		t.Errorf("Destroy leaves %v, want the public key of another: %v", classesOf(t, mark), err)
	}
}

// A key that pkcs11-tool made may do more than sign. The appliance does not list it as its own.
func TestForeignKey(t *testing.T) {
	for name, args := range map[string][]string{
		"id 01": {"--id", "01", "--usage-sign"}, "no id": {"--usage-sign"}, "no usage": {"--id", "02"},
	} {
		label := fresh("operator")
		softHSM.Tool(t, append([]string{"--keypairgen", "--key-type", "EC:prime256v1", "--label", label}, args...)...)
		keys, err := shared.Foreign(t.Context())
		i := slices.IndexFunc(keys, func(k hsm.Key) bool { return k.Label == label })
		if err != nil || i < 0 || keys[i].Usage != hsm.SignP256 || listed(t, label) {
			t.Fatalf("%s: among %v: %v; listed %v", name, keys, err, listed(t, label))
		}
		if _, err := shared.Sign(t.Context(), keys[i].ID, hsm.ES256, make([]byte, 32)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		raw(t, func(s *session) error {
			o, err := shared.resolve(t.Context(), keys[i].ID)
			if err == nil {
				err = shared.prove(s, o)
			}
			return err
		})
	}
}

// A pair that a vendor's tool made for one usage, sensitive and not extractable, under any CKA_ID, is listed as
// the appliance's own are, so that the step which would make it adopts it.
func TestVendorPair(t *testing.T) {
	for _, mark := range [][]byte{{0x99}, []byte("a name of any length, as some tools choose"), nil} {
		label := fresh("vendor") + "@1"
		p := profiles[hsm.SignP256]
		raw(t, func(s *session) error {
			name := []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true), pkcs11.NewAttribute(pkcs11.CKA_LABEL, label), marked(mark)}
			_, err := shared.generateDraft(s, p, pair{append(p.verifying(), name...), append(p.protection(false), name...)})
			return err
		})
		keys, err := shared.Keys(t.Context())
		i := slices.IndexFunc(keys, func(k hsm.Key) bool { return k.Label == label })
		if err != nil || i < 0 || keys[i].Usage != hsm.SignP256 {
			t.Fatalf("CKA_ID %x: not listed, %v", mark, err)
		}
		o, err := shared.lookUp(t.Context(), keys[i].ID)
		if err == nil {
			raw(t, func(s *session) error { return shared.prove(s, o) })
		}
		if err := errors.Join(err, shared.Destroy(t.Context(), keys[i].ID)); err != nil || listed(t, label) {
			t.Errorf("CKA_ID %x: %v, listed after Destroy: %v", mark, err, listed(t, label))
		}
	}
}

// A certificate is stored under the CKA_ID of its key.
func TestCertificateOfKey(t *testing.T) {
	k := generate(t, "certified", hsm.SignP256)
	c := hsm.Certificate{Key: k.ID, Label: k.Label, DER: certificateOf(t, k)}
	if err := shared.StoreCertificate(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if got := classesOf(t, markOf(t, k)); !slices.Equal(got, append([]uint{pkcs11.CKO_CERTIFICATE}, bothHalves...)) {
		t.Errorf("classes %v under the CKA_ID of the key", got)
	}
	certs, err := shared.Certificates(t.Context())
	if err != nil || !slices.ContainsFunc(certs, func(l hsm.Certificate) bool { return l.Key == k.ID && bytes.Equal(l.DER, c.DER) }) {
		t.Errorf("%d certificates, not among them: %v", len(certs), err)
	}
}

// The error of a label that is taken names the object that has it.
func TestTakenLabelNames(t *testing.T) {
	label := fresh("taken")
	softHSM.Tool(t, "--keypairgen", "--key-type", "EC:prime256v1", "--label", label, "--id", "77")
	_, err := shared.Generate(t.Context(), hsm.KeySpec{Label: label, Usage: hsm.SignP256})
	for _, want := range []string{"CKO_PRIVATE_KEY", label, "CKA_ID 77"} {
		if err == nil || !errors.Is(err, hsm.ErrExists) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want ErrExists with %q", err, want)
		}
	}
}

// certificateOf makes a certificate of the public key, by a temporary issuer.
func certificateOf(t *testing.T, k hsm.Key) []byte {
	t.Helper()
	public, _, err := check.ParsePublic(k.Public)
	if err != nil {
		t.Fatal(err)
	}
	issuer, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, public, issuer)
	if err != nil {
		t.Fatal(err)
	}
	return der
}
