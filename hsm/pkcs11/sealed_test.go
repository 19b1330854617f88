package pkcs11

import (
	"crypto/ecdh"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/pkcs11"

	"countersign/hsm"
)

func mustECDH(t *testing.T, k hsm.Key) *ecdh.PublicKey {
	t.Helper()
	public, err := k.ECDH()
	if err != nil {
		t.Fatal(err)
	}
	return public
}

// A key that was copied or restored is as protected as any other. OpenSC reads its
// attributes independently.
func TestCopiedAttributes(t *testing.T) {
	with := generate(t, "recipient", hsm.DeriveP256)
	for _, usage := range []hsm.Usage{hsm.SignP256, hsm.SignRSA2048, hsm.MACKey, hsm.WrapKey} {
		t.Run(usage.String(), func(t *testing.T) {
			spec := hsm.KeySpec{Label: fresh("copied"), Usage: usage, Recipients: []*ecdh.PublicKey{mustECDH(t, with)}}
			k, err := shared.Generate(t.Context(), spec)
			if err != nil {
				t.Fatal(err)
			}
			closedFor(t, k)
			if err := shared.Destroy(t.Context(), k.ID); err != nil || len(objects(t, k.ID[:])) != 0 {
				t.Fatalf("%d objects are left: %v", len(objects(t, k.ID[:])), err)
			}
			r := hsm.Restore{Spec: spec, Sealed: k.Sealed[0], With: with.ID, Public: k.Public, ID: k.ID}
			r.Spec.Recipients = nil
			if k, err = shared.Restore(t.Context(), r); err != nil {
				t.Fatal(err)
			}
			closedFor(t, k)
		})
	}
	noSessionObjects(t)
}

// closedFor checks that a key is sensitive, stays on the token, cannot be changed, and has
// an unwrap template if it is a wrap key.
func closedFor(t *testing.T, k hsm.Key) {
	t.Helper()
	out := softHSM.Tool(t, "-O", "--id", k.ID.String())
	if !strings.Contains(out, "Access:     sensitive") || strings.Contains(out, ", extractable") {
		t.Errorf("not closed:\n%s", out)
	}
	raw(t, func(s *session) error {
		class := uint(pkcs11.CKO_SECRET_KEY)
		if k.Usage.Pair() {
			class = pkcs11.CKO_PRIVATE_KEY
		}
		found, err := shared.find(s, class, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_ID, k.ID[:])})
		if err != nil || len(found) != 1 {
			t.Fatalf("%d keys, %v", len(found), err)
		}
		types := []uint{pkcs11.CKA_EXTRACTABLE, pkcs11.CKA_MODIFIABLE, pkcs11.CKA_SENSITIVE, pkcs11.CKA_TOKEN}
		a, ok, err := shared.attributes(s, found[0], types...)
		if !ok || truth(a[0]) || truth(a[1]) || !truth(a[2]) || !truth(a[3]) {
			t.Errorf("attributes %x", a)
		}
		if k.Usage == hsm.WrapKey {
			open := withoutSensitive(shared.sessionSecret(pkcs11.CKK_GENERIC_SECRET, true, pkcs11.CKA_SIGN))
			wrapped, err := shared.wrap(s, object{handle: found[0]}, make([]byte, 32))
			if err != nil {
				return err
			}
			if _, err := shared.ctx.UnwrapKey(s.handle, shared.wrapping(), found[0], wrapped, open); err != pkcs11.Error(pkcs11.CKR_TEMPLATE_INCONSISTENT) {
				t.Errorf("unwrapping as one that can be read: %v, want CKR_TEMPLATE_INCONSISTENT", err)
			}
		}
		return err
	})
}

// withoutSensitive asks for a secret that can be read.
func withoutSensitive(template []*pkcs11.Attribute) []*pkcs11.Attribute {
	template = slices.DeleteFunc(template, func(a *pkcs11.Attribute) bool { return a.Type == pkcs11.CKA_SENSITIVE })
	return append(template, pkcs11.NewAttribute(pkcs11.CKA_SENSITIVE, false))
}

func noSessionObjects(t *testing.T) {
	t.Helper()
	raw(t, func(s *session) error {
		left, err := shared.findAll(s, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_TOKEN, false)})
		if err == nil && len(left) != 0 {
			t.Errorf("%d session objects are left", len(left))
		}
		return err
	})
}
