package pkcs11

import (
	"crypto"
	"encoding/binary"

	"github.com/miekg/pkcs11"

	"countersign/hsm"
)

// This file reads the objects of a token and finds among them the keys that the appliance can use.

// batch is the number of handles that one C_FindObjects returns.
const batch = 256

// read returns the keys on the token that match the attributes and that the appliance can
// use. It skips all other objects.
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

// publics reads the public keys by their CKA_ID.
func (t *Token) publics(s *session, match []*pkcs11.Attribute) (map[string][]publicKey, error) {
	handles, err := t.find(s, pkcs11.CKO_PUBLIC_KEY, match)
	if err != nil {
		return nil, err
	}
	publics := map[string][]publicKey{}
	for _, h := range handles {
		a, ok, err := t.attributes(s, h, pkcs11.CKA_ID, pkcs11.CKA_KEY_TYPE)
		if err != nil {
			return nil, err
		}
		if !ok {
			continue
		}
		p, ok, err := t.publicOf(s, h, ulong(a[1]))
		if err != nil {
			return nil, err
		}
		if ok {
			p.handle = h
			publics[string(a[0])] = append(publics[string(a[0])], p)
		}
	}
	return publics, nil
}

// describe reads one private or secret key. It returns false if the appliance cannot use it.
func (t *Token) describe(s *session, h pkcs11.ObjectHandle, class uint, publics map[string][]publicKey) (o object, ok bool, err error) {
	a, ok, err := t.attributes(s, h, pkcs11.CKA_ID, pkcs11.CKA_LABEL, pkcs11.CKA_KEY_TYPE,
		pkcs11.CKA_SENSITIVE, pkcs11.CKA_EXTRACTABLE)
	if err != nil || !ok {
		return o, false, err
	}
	o.handle, o.Label, o.mark = h, string(a[1]), a[0]
	o.closed = truth(a[3]) && !truth(a[4])
	facts := keyFacts{class: class, keyType: ulong(a[2])}
	if class == pkcs11.CKO_SECRET_KEY {
		if len(a[0]) != len(o.ID) || !o.closed {
			return o, false, nil
		}
		copy(o.ID[:], a[0])
		if o.Usage, ok, err = t.usage(s, h, facts); err != nil || ok {
			return o, ok, err
		}
		o.Usage = hsm.WrapKey
		o.host, err = t.onHost(s, h, facts)
		return o, o.host, err
	}
	var usable bool
	if facts.part, usable, err = t.usable(s, h, facts.keyType); err != nil || !usable {
		return o, false, err
	}
	return t.describePair(s, o, facts, publics[string(a[0])])
}

// usable returns the curve or the modulus of a private key, and whether it may be used at all. It may
// not if each use wants the PIN again (CKA_ALWAYS_AUTHENTICATE, PKCS#11 v2.40 §4.9), or if it has
// neither curve nor modulus: SoftHSM leaves that behind when its process is killed while it makes a
// pair.
func (t *Token) usable(s *session, h pkcs11.ObjectHandle, keyType uint) (part []byte, ok bool, err error) {
	of := uint(pkcs11.CKA_EC_PARAMS)
	if keyType == pkcs11.CKK_RSA {
		of = pkcs11.CKA_MODULUS
	}
	a, err := t.attributesEach(s, h, []uint{pkcs11.CKA_ALWAYS_AUTHENTICATE, of})
	if err != nil {
		return nil, false, err
	}
	halfMade := a[1] != nil && len(a[1]) == 0
	return a[1], !truth(a[0]) && !halfMade, nil
}

// describePair adds the public half to a private key, and what the pair may do. The public half is
// the one with the same CKA_ID. If there is none, or several, the private key proves which of them
// it has, or which of those that the caller knows.
func (t *Token) describePair(s *session, o object, facts keyFacts, publics []publicKey) (_ object, ok bool, err error) {
	var public publicKey
	if len(publics) == 1 {
		public, ok = publics[0], true
	} else {
		public, ok, err = t.proven(s, o, facts, publics)
	}
	if err != nil || !ok {
		return o, false, err
	}
	o.ID, o.Public, facts.public = public.id, public.spki, public.key
	o.Usage, ok, err = t.usage(s, o.handle, facts)
	if err != nil || ok {
		return o, ok, err
	}
	o.closed = false
	o.Usage, ok, err = t.among(s, o.handle, facts)
	return o, ok, err
}

// keyFacts is the class, type and public key of a key whose usage is not known yet.
type keyFacts struct {
	class, keyType uint
	part           []byte           // of a private key: its curve or modulus; nil if the module does not say
	public         crypto.PublicKey // of a pair
}

func (k keyFacts) mayBe(usage hsm.Usage) bool {
	p := profiles[usage]
	return p.class == k.class && p.holds(k.keyType) && (!usage.Pair() || usage.Fits(k.public))
}

// usage reads what a key may do. A key with more than one usage has none here.
func (t *Token) usage(s *session, h pkcs11.ObjectHandle, key keyFacts) (hsm.Usage, bool, error) {
	return t.usageIf(s, h, key, func(p profile, usage uint, may bool) bool { return may == p.allows(usage) })
}

// among returns the first usage that a key allows, perhaps beside others.
func (t *Token) among(s *session, h pkcs11.ObjectHandle, key keyFacts) (hsm.Usage, bool, error) {
	return t.usageIf(s, h, key, func(p profile, usage uint, may bool) bool { return may || !p.allows(usage) })
}

// usageIf returns the first usage for which fits accepts every usage attribute of a key.
func (t *Token) usageIf(s *session, h pkcs11.ObjectHandle, key keyFacts, fits func(p profile, usage uint, may bool) bool) (hsm.Usage, bool, error) {
	for _, usage := range hsm.Usages() {
		if !key.mayBe(usage) {
			continue
		}
		p := profiles[usage]
		values, err := t.attributesEach(s, h, p.usages)
		if err != nil {
			return 0, false, err
		}
		ok := true
		for i, v := range values {
			ok = ok && fits(p, p.usages[i], truth(v))
		}
		if ok {
			return usage, true, nil
		}
	}
	return 0, false, nil
}

// attributes reads several values. It returns false if the object does not have them all.
// Only a lost token or session is an error.
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
