package pkcs11

import (
	"errors"
	"slices"
	"testing"

	"github.com/miekg/pkcs11"

	"countersign/hsm"
)

// changed makes a pair under a CKA_ID whose private key may not sign any more, as after a tool has
// changed it. Nothing lists it.
func changed(t *testing.T, mark []byte) (id hsm.KeyID) {
	t.Helper()
	p, label := profiles[hsm.SignP256], fresh("changed")+"@1"
	raw(t, func(s *session) error {
		name := []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true), pkcs11.NewAttribute(pkcs11.CKA_LABEL, label), marked(mark)}
		private := slices.DeleteFunc(append(p.protection(false), name...), func(a *pkcs11.Attribute) bool { return a.Type == pkcs11.CKA_MODIFIABLE })
		d, err := shared.generateDraft(s, p, pair{append(p.verifying(), name...), private})
		if err != nil {
			return err
		}
		if id, err = shared.idOf(s, d, hsm.SignP256); err != nil {
			return err
		}
		return shared.ctx.SetAttributeValue(s.handle, d.private, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_SIGN, false)})
	})
	if listed(t, label) {
		t.Fatalf("%s is listed", label)
	}
	return id
}

// TestDestroyOfChangedKey: Destroy finds the private key of a pair by the CKA_ID of its public half. It never destroys
// the public half alone and reports success.
func TestDestroyOfChangedKey(t *testing.T) {
	mark := newMark().mark
	if err := shared.Destroy(t.Context(), changed(t, mark)); err != nil || len(objects(t, mark)) != 0 {
		t.Errorf("Destroy leaves %v: %v", classesOf(t, mark), err)
	}
}

// TestDestroyDoubts: a short CKA_ID does not show whose private key it is. Destroy removes nothing and says so.
func TestDestroyDoubts(t *testing.T) {
	mark := []byte{0x17}
	err := shared.Destroy(t.Context(), changed(t, mark))
	if !errors.Is(err, hsm.ErrExists) || !slices.Equal(classesOf(t, mark), bothHalves) {
		t.Errorf("Destroy leaves %v: %v, want ErrExists", classesOf(t, mark), err)
	}
}

// TestDestroyAmbiguous: of two keys with one id Destroy removes none, and the error is another one than that of a key that
// is gone: it must not pass for destroyed.
func TestDestroyAmbiguous(t *testing.T) {
	k := generate(t, "two to destroy", hsm.MACKey)
	raw(t, func(s *session) error {
		mech := []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_GENERIC_SECRET_KEY_GEN, nil)}
		_, err := shared.ctx.GenerateKey(s.handle, mech, profiles[hsm.MACKey].secret(k.ID[:], fresh("twin")))
		return err
	})
	err := shared.Destroy(t.Context(), k.ID)
	if n := len(objects(t, k.ID[:])); !errors.Is(err, hsm.ErrExists) || errors.Is(err, hsm.ErrKey) || n != 2 {
		t.Errorf("Destroy leaves %d: %v, want ErrExists", n, err)
	}
}
