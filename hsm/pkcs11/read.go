package pkcs11

import (
	"crypto"
	"encoding/binary"

	"github.com/miekg/pkcs11"

	"countersign/hsm"
)

// batch is how many handles one C_FindObjects returns.
const batch = 256

// read returns the keys on the token that fit the attributes and that the
// appliance can use. Anything it does not understand is somebody else's.
func (t *Token) read(s *session, match ...*pkcs11.Attribute) ([]object, error) {
	publics, err := t.publics(s, match)
	if err != nil {
		return nil, err
	}
	var keys []object
	for _, class := range []uint{pkcs11.CKO_PRIVATE_KEY, pkcs11.CKO_SECRET_KEY} {
		handles, err := t.find(s, class, match)
		if err != nil {
			return nil, err
		}
		for _, h := range handles {
			o, ours, err := t.describe(s, h, class, publics)
			if err != nil {
				return nil, err
			}
			if ours {
				keys = append(keys, o)
			}
		}
	}
	return keys, nil
}

// find lists token objects of a class.
func (t *Token) find(s *session, class uint, match []*pkcs11.Attribute) (all []pkcs11.ObjectHandle, err error) {
	template := append([]*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, class), pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true),
	}, match...)
	return t.findAll(s, template)
}

func (t *Token) findAll(s *session, template []*pkcs11.Attribute) (all []pkcs11.ObjectHandle, err error) {
	if err := t.ctx.FindObjectsInit(s.handle, template); err != nil {
		return nil, at("C_FindObjectsInit", err)
	}
	for {
		some, _, err := t.ctx.FindObjects(s.handle, batch)
		if err != nil {
			_ = t.ctx.FindObjectsFinal(s.handle)
			return nil, at("C_FindObjects", err)
		}
		if len(some) == 0 {
			return all, at("C_FindObjectsFinal", t.ctx.FindObjectsFinal(s.handle))
		}
		all = append(all, some...)
	}
}

// publics reads the public keys whose CKA_ID is their hash; a key pair of ours
// has exactly one.
func (t *Token) publics(s *session, match []*pkcs11.Attribute) (map[hsm.KeyID]half, error) {
	handles, err := t.find(s, pkcs11.CKO_PUBLIC_KEY, match)
	if err != nil {
		return nil, err
	}
	publics := map[hsm.KeyID]half{}
	for _, h := range handles {
		a, ok, err := t.attributes(s, h, pkcs11.CKA_ID, pkcs11.CKA_KEY_TYPE)
		if err != nil {
			return nil, err
		}
		if !ok || len(a[0]) != len(hsm.KeyID{}) {
			continue
		}
		p, ok, err := t.publicOf(s, h, ulong(a[1]))
		if err != nil {
			return nil, err
		}
		if ok && string(a[0]) == string(p.id[:]) {
			publics[p.id] = p
		}
	}
	return publics, nil
}

// describe reads one private or secret key; false when it is not one of ours.
func (t *Token) describe(s *session, h pkcs11.ObjectHandle, class uint, publics map[hsm.KeyID]half) (o object, ours bool, err error) {
	a, ok, err := t.attributes(s, h, pkcs11.CKA_ID, pkcs11.CKA_LABEL, pkcs11.CKA_KEY_TYPE,
		pkcs11.CKA_SENSITIVE, pkcs11.CKA_EXTRACTABLE)
	if err != nil || !ok || len(a[0]) != len(o.ID) || !truth(a[3]) || truth(a[4]) {
		return o, false, err
	}
	o.handle, o.Label = h, string(a[1])
	copy(o.ID[:], a[0])
	var public half
	if class == pkcs11.CKO_PRIVATE_KEY {
		if public, ok = publics[o.ID]; !ok {
			return o, false, nil
		}
		o.Public = public.spki
	}
	o.Usage, ok, err = t.usage(s, h, like{class, ulong(a[2]), public.key})
	return o, ok, err
}

// like is what is known of a key before its usage is.
type like struct {
	class, keyType uint
	public         crypto.PublicKey // of a pair
}

func (l like) mayBe(usage hsm.Usage) bool {
	p := profiles[usage]
	return p.class == l.class && p.keyType == l.keyType && (!usage.Pair() || usage.Fits(l.public))
}

// usage reads what a key may do. More than one usage makes it not ours.
func (t *Token) usage(s *session, h pkcs11.ObjectHandle, key like) (hsm.Usage, bool, error) {
	for _, usage := range hsm.Usages() {
		if !key.mayBe(usage) {
			continue
		}
		p := profiles[usage]
		values, ok, err := t.attributes(s, h, p.usages...)
		if err != nil {
			return 0, false, err
		}
		for i, v := range values {
			ok = ok && truth(v) == p.allows(p.usages[i])
		}
		if ok {
			return usage, true, nil
		}
	}
	return 0, false, nil
}

// attributes reads several values; false when the object does not have them
// all, which is so for objects of others. Only a lost token or session is an
// error here.
func (t *Token) attributes(s *session, h pkcs11.ObjectHandle, types ...uint) (values [][]byte, ok bool, err error) {
	template := make([]*pkcs11.Attribute, len(types))
	for i, typ := range types {
		template[i] = pkcs11.NewAttribute(typ, nil)
	}
	got, err := t.ctx.GetAttributeValue(s.handle, h, template)
	if err != nil {
		if c := classify(err); c == other || c == refind || c == input {
			return nil, false, nil
		}
		return nil, false, at("C_GetAttributeValue", err)
	}
	for _, a := range got {
		values = append(values, a.Value)
	}
	return values, true, nil
}

func truth(v []byte) bool { return len(v) == 1 && v[0] == 1 }

func ulong(v []byte) uint {
	if len(v) != 8 {
		return ^uint(0)
	}
	return uint(binary.NativeEndian.Uint64(v))
}
