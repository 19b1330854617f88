package pkcs11

import (
	"bytes"
	"slices"
	"testing"

	"github.com/miekg/pkcs11"

	"countersign/hsm"
)

// theObject is the one object of an id.
func theObject(t *testing.T, id []byte) hsm.Object {
	t.Helper()
	all, err := shared.Objects(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	all = slices.DeleteFunc(all, func(o hsm.Object) bool { return !bytes.Equal(o.ID, id) })
	if len(all) != 1 {
		t.Fatalf("%d objects have id %x", len(all), id)
	}
	return all[0]
}

// A key of ours is listed with all that its profile sets, and where it was made.
func TestObjectOfOurs(t *testing.T) {
	const born = hsm.AttrLocal | hsm.AttrAlwaysSensitive | hsm.AttrNeverExtractable
	for usage, want := range map[hsm.Usage]hsm.Object{
		hsm.SignP256: {Class: "CKO_PRIVATE_KEY", KeyType: "CKK_EC", True: hsm.AttrSign, Mechanisms: []string{"CKM_ECDSA"}},
		hsm.WrapKey:  {Class: "CKO_SECRET_KEY", KeyType: "CKK_AES", True: hsm.AttrWrap | hsm.AttrUnwrap, Mechanisms: []string{"CKM_AES_KEY_WRAP_PAD"}},
	} {
		k := generate(t, "told", usage)
		o := theObject(t, markOf(t, k))
		want.True |= born | hsm.AttrPrivate | hsm.AttrSensitive | hsm.AttrRestricted
		if o.Label != k.Label || o.Class != want.Class || o.KeyType != want.KeyType || o.True != want.True || !slices.Equal(o.Mechanisms, want.Mechanisms) {
			t.Errorf("%s: %+v, %v", usage, o, o.True.Names())
		}
	}
}

// A foreign key, with an id of another length and no usage of ours, is listed like any
// other.
func TestObjectOfOthers(t *testing.T) {
	id := random(3)
	raw(t, func(s *session) error {
		_, err := shared.ctx.CreateObject(s.handle, []*pkcs11.Attribute{
			pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY),
			pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_GENERIC_SECRET),
			pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true),
			pkcs11.NewAttribute(pkcs11.CKA_ID, id),
			pkcs11.NewAttribute(pkcs11.CKA_EXTRACTABLE, true),
			pkcs11.NewAttribute(pkcs11.CKA_SENSITIVE, false),
			pkcs11.NewAttribute(pkcs11.CKA_VALUE, random(9)),
		})
		return err
	})
	o := theObject(t, id)
	if !o.Has(hsm.AttrExtractable|hsm.AttrModifiable) || o.True&(hsm.AttrSensitive|hsm.AttrLocal|hsm.AttrNeverExtractable) != 0 || o.Mechanisms != nil {
		t.Errorf("%+v, %v", o, o.True.Names())
	}
}

// A missing attribute is omitted, and the others are still listed.
func TestEachAttribute(t *testing.T) {
	k := generate(t, "each", hsm.MACKey)
	raw(t, func(s *session) error {
		values, err := shared.attributesEach(s, objects(t, markOf(t, k))[0], []uint{pkcs11.CKA_MODULUS, pkcs11.CKA_LABEL, pkcs11.CKA_VALUE, pkcs11.CKA_ID})
		if err != nil || values[0] != nil || string(values[1]) != k.Label || values[2] != nil || !bytes.Equal(values[3], k.ID[:]) {
			t.Errorf("%q, %v", values, err)
		}
		gone, err := shared.attributesEach(s, 1<<20, []uint{pkcs11.CKA_LABEL})
		if err != nil || gone[0] != nil {
			t.Errorf("of an object that is gone: %q, %v", gone, err)
		}
		return nil
	})
}

func TestNamesByNumber(t *testing.T) {
	list := profile{mechanisms: []uint{pkcs11.CKM_ECDSA, 0x80000001}}.restriction().Value
	if got := mechanismNames(list); !slices.Equal(got, []string{"CKM_ECDSA", "0x80000001"}) {
		t.Errorf("mechanisms %q", got)
	}
	if got := nameOf(keyTypes, 0x80000001); got != "0x80000001" {
		t.Errorf("key type %q", got)
	}
}
