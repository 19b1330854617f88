package pkcs11

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/miekg/pkcs11"

	"countersign/hsm"
)

// attributeTypes are the types of the attributes that are told, by their place in
// [hsm.Attributes].
var attributeTypes = map[hsm.Attributes]uint{
	hsm.AttrPrivate: pkcs11.CKA_PRIVATE, hsm.AttrSensitive: pkcs11.CKA_SENSITIVE, hsm.AttrExtractable: pkcs11.CKA_EXTRACTABLE,
	hsm.AttrModifiable: pkcs11.CKA_MODIFIABLE, hsm.AttrLocal: pkcs11.CKA_LOCAL,
	hsm.AttrAlwaysSensitive: pkcs11.CKA_ALWAYS_SENSITIVE, hsm.AttrNeverExtractable: pkcs11.CKA_NEVER_EXTRACTABLE,
	hsm.AttrSign: pkcs11.CKA_SIGN, hsm.AttrSignRecover: pkcs11.CKA_SIGN_RECOVER, hsm.AttrVerify: pkcs11.CKA_VERIFY,
	hsm.AttrEncrypt: pkcs11.CKA_ENCRYPT, hsm.AttrDecrypt: pkcs11.CKA_DECRYPT, hsm.AttrWrap: pkcs11.CKA_WRAP,
	hsm.AttrUnwrap: pkcs11.CKA_UNWRAP, hsm.AttrDerive: pkcs11.CKA_DERIVE,
}

// keyClass is a class of key objects and what is asked of them.
type keyClass struct {
	name  string
	class uint
	told  []hsm.Attributes
}

var keyClasses = []keyClass{
	newKeyClass("CKO_PRIVATE_KEY", pkcs11.CKO_PRIVATE_KEY, privateUsages),
	newKeyClass("CKO_SECRET_KEY", pkcs11.CKO_SECRET_KEY, secretUsages),
}

func newKeyClass(name string, class uint, usages []uint) keyClass {
	c := keyClass{name: name, class: class}
	for a, typ := range attributeTypes {
		if a&hsm.AttrUsages == 0 || slices.Contains(usages, typ) {
			c.told = append(c.told, a)
		}
	}
	return c
}

// Objects implements [hsm.Token], reading the token with C_FindObjects and
// C_GetAttributeValue. What the module does not keep of its own keys is not told.
func (t *Token) Objects(ctx context.Context) (all []hsm.Object, err error) {
	kept, err := t.keptAges(ctx)
	if err != nil {
		return nil, fmt.Errorf("listing objects: %w", err)
	}
	err = t.run(ctx, hsm.KeyID{}, func(s *session) error {
		all = nil
		for _, c := range keyClasses {
			handles, err := t.find(s, c.class, nil)
			if err != nil {
				return err
			}
			for _, h := range handles {
				o, err := t.tell(s, h, c)
				if err != nil {
					return err
				}
				o.Told &^= hsm.AttrHistory &^ kept[c.class]
				o.True &= o.Told
				all = append(all, o)
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("listing objects: %w", err)
	}
	return all, nil
}

// tell reads what one object has to say.
func (t *Token) tell(s *session, h pkcs11.ObjectHandle, c keyClass) (hsm.Object, error) {
	types := []uint{pkcs11.CKA_ID, pkcs11.CKA_LABEL, pkcs11.CKA_KEY_TYPE, pkcs11.CKA_ALLOWED_MECHANISMS}
	words := len(types)
	for _, a := range c.told {
		types = append(types, attributeTypes[a])
	}
	values, err := t.each(s, h, types)
	if err != nil {
		return hsm.Object{}, err
	}
	o := hsm.Object{Class: c.name, ID: values[0], Label: string(values[1]), Mechanisms: mechanismNames(values[3])}
	if values[2] != nil {
		o.KeyType = nameOf(keyTypes, ulong(values[2]))
	}
	for i, a := range c.told {
		if v := values[words+i]; len(v) == 1 {
			o.Told |= a
			if truth(v) {
				o.True |= a
			}
		}
	}
	return o, nil
}

// each reads attributes at once, or one by one where the object has not all of
// them; nil is one that is not told.
func (t *Token) each(s *session, h pkcs11.ObjectHandle, types []uint) ([][]byte, error) {
	values, ok, err := t.spared(s, h, types...)
	if ok || err != nil {
		return values, err
	}
	values = make([][]byte, len(types))
	for i, typ := range types {
		one, ok, err := t.spared(s, h, typ)
		if err != nil {
			return nil, err
		}
		if ok {
			values[i] = one[0]
		}
	}
	return values, nil
}

// spared is attributes, but for a module that fails on one object: while the login
// is there it is the object that is broken, and the others are to be listed.
func (t *Token) spared(s *session, h pkcs11.ObjectHandle, types ...uint) ([][]byte, bool, error) {
	values, ok, err := t.attributes(s, h, types...)
	if err != nil && blames(err) && t.loggedIn() == nil {
		return nil, false, nil
	}
	return values, ok, err
}

var keyTypes = map[string]uint{
	"CKK_RSA": pkcs11.CKK_RSA, "CKK_DSA": pkcs11.CKK_DSA, "CKK_DH": pkcs11.CKK_DH, "CKK_EC": pkcs11.CKK_EC,
	"CKK_EC_EDWARDS": ckkECEdwards, "CKK_GENERIC_SECRET": pkcs11.CKK_GENERIC_SECRET, "CKK_AES": pkcs11.CKK_AES,
	"CKK_DES3": pkcs11.CKK_DES3, "CKK_SHA256_HMAC": pkcs11.CKK_SHA256_HMAC,
}

// nameOf returns the name of a code, or the code in hexadecimal.
func nameOf(codes map[string]uint, code uint) string {
	for name, c := range codes {
		if c == code {
			return name
		}
	}
	return fmt.Sprintf("%#x", code)
}

// mechanismNames reads CKA_ALLOWED_MECHANISMS, an array of CK_MECHANISM_TYPE.
func mechanismNames(list []byte) (names []string) {
	const size = 8 // of CK_MECHANISM_TYPE
	for ; len(list) >= size; list = list[size:] {
		code := uint(binary.NativeEndian.Uint64(list))
		names = append(names, nameOf(mechanisms, code))
	}
	return names
}
