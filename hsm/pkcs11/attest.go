package pkcs11

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/miekg/pkcs11"

	"countersign/hsm"
)

// attributeTypes maps the attributes of package hsm to their PKCS#11 types.
var attributeTypes = map[hsm.Attributes]uint{
	hsm.AttrPrivate: pkcs11.CKA_PRIVATE, hsm.AttrSensitive: pkcs11.CKA_SENSITIVE, hsm.AttrExtractable: pkcs11.CKA_EXTRACTABLE,
	hsm.AttrModifiable: pkcs11.CKA_MODIFIABLE, hsm.AttrLocal: pkcs11.CKA_LOCAL,
	hsm.AttrAlwaysSensitive: pkcs11.CKA_ALWAYS_SENSITIVE, hsm.AttrNeverExtractable: pkcs11.CKA_NEVER_EXTRACTABLE,
	hsm.AttrSign: pkcs11.CKA_SIGN, hsm.AttrSignRecover: pkcs11.CKA_SIGN_RECOVER, hsm.AttrVerify: pkcs11.CKA_VERIFY,
	hsm.AttrEncrypt: pkcs11.CKA_ENCRYPT, hsm.AttrDecrypt: pkcs11.CKA_DECRYPT, hsm.AttrWrap: pkcs11.CKA_WRAP,
	hsm.AttrUnwrap: pkcs11.CKA_UNWRAP, hsm.AttrDerive: pkcs11.CKA_DERIVE,
}

// keyClass is a class of key objects with the attributes that are read.
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

// Objects implements [hsm.Token] with C_FindObjects and C_GetAttributeValue. It omits the
// attributes that the module does not keep for its own keys.
func (t *Token) Objects(ctx context.Context) (all []hsm.Object, err error) {
	kept, err := t.keptHistory(ctx)
	if err != nil {
		return nil, fmt.Errorf("listing objects: %w", err)
	}
	err = t.run(ctx, hsm.KeyID{}, func(s *session) error {
		all = nil
		ids, err := t.idsByHandle(s)
		if err != nil {
			return err
		}
		for _, c := range keyClasses {
			handles, err := t.find(s, c.class, nil)
			if err != nil {
				return err
			}
			for _, h := range handles {
				o, err := t.describeObject(s, h, c)
				if err != nil {
					return err
				}
				o.Told &^= (hsm.AttrHistory | hsm.AttrRestricted | hsm.AttrModifiable) &^ kept[c.class]
				o.True &= o.Told
				if id, ok := ids[h]; ok {
					o.Key = id
				}
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

// idsByHandle returns the ids of the keys whose public half is known, and of the secret keys.
func (t *Token) idsByHandle(s *session) (map[pkcs11.ObjectHandle]hsm.KeyID, error) {
	found, err := t.read(s)
	ids := map[pkcs11.ObjectHandle]hsm.KeyID{}
	for _, o := range found {
		ids[o.handle] = o.ID
	}
	return ids, err
}

// describeObject reads one object.
func (t *Token) describeObject(s *session, h pkcs11.ObjectHandle, c keyClass) (hsm.Object, error) {
	types := []uint{pkcs11.CKA_ID, pkcs11.CKA_LABEL, pkcs11.CKA_KEY_TYPE, pkcs11.CKA_ALLOWED_MECHANISMS}
	words := len(types)
	for _, a := range c.told {
		types = append(types, attributeTypes[a])
	}
	values, err := t.attributesEach(s, h, types)
	if err != nil {
		return hsm.Object{}, err
	}
	o := hsm.Object{Class: c.name, ID: values[0], Label: string(values[1]), Mechanisms: mechanismNames(values[3])}
	if len(o.ID) == len(o.Key) {
		o.Key = hsm.KeyID(o.ID)
	}
	if values[2] != nil {
		o.KeyType = nameOf(keyTypes, ulong(values[2]))
	}
	if values[3] != nil {
		o.Told |= hsm.AttrRestricted
	}
	if len(o.Mechanisms) > 0 {
		o.True |= hsm.AttrRestricted
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

// attributesEach reads attributes in one call, or one by one if the object does not have
// them all. A value that it cannot read is nil.
func (t *Token) attributesEach(s *session, h pkcs11.ObjectHandle, types []uint) ([][]byte, error) {
	values, ok, err := t.attributesOrNone(s, h, types...)
	if ok || err != nil {
		return values, err
	}
	values = make([][]byte, len(types))
	for i, typ := range types {
		one, ok, err := t.attributesOrNone(s, h, typ)
		if err != nil {
			return nil, err
		}
		if ok {
			values[i] = one[0]
		}
	}
	return values, nil
}

// attributesOrNone is attributes for a module that fails on one object. While the login
// remains, the object is broken, and the others can be listed.
func (t *Token) attributesOrNone(s *session, h pkcs11.ObjectHandle, types ...uint) ([][]byte, bool, error) {
	values, ok, err := t.attributes(s, h, types...)
	if err != nil && ambiguous(err) && t.loggedIn() == nil {
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

// mechanismNames decodes CKA_ALLOWED_MECHANISMS, an array of CK_MECHANISM_TYPE.
func mechanismNames(list []byte) (names []string) {
	const size = 8 // of CK_MECHANISM_TYPE
	for ; len(list) >= size; list = list[size:] {
		code := uint(binary.NativeEndian.Uint64(list))
		names = append(names, nameOf(mechanisms, code))
	}
	return names
}

// keptHistory returns, by class, the attributes of [hsm.AttrHistory] that the module keeps
// for a key that was made on it and never extractable, also for a copy of a private key, as earlier
// releases made them; and [hsm.AttrRestricted] if it keeps that, and [hsm.AttrModifiable] if it keeps
// that a key is not.
// It tries both with session objects, once per process. NSS loses some of them, so that a
// key it has just made looks like an imported one.
func (t *Token) keptHistory(ctx context.Context) (map[uint]hsm.Attributes, error) {
	t.changing.Lock()
	defer t.changing.Unlock()
	if t.history != nil {
		return t.history, nil
	}
	kept := map[uint]hsm.Attributes{}
	for class, try := range map[uint]attempt{
		pkcs11.CKO_SECRET_KEY: t.secretHistory, pkcs11.CKO_PRIVATE_KEY: t.privateHistory,
	} {
		err := t.run(ctx, hsm.KeyID{}, func(s *session) (err error) {
			kept[class], err = t.tried(s, try)
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	err := t.run(ctx, hsm.KeyID{}, func(s *session) error {
		keeps, err := t.keepsFixed(s)
		if keeps {
			kept[pkcs11.CKO_SECRET_KEY] |= hsm.AttrModifiable
			kept[pkcs11.CKO_PRIVATE_KEY] |= hsm.AttrModifiable
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	t.history = kept
	return kept, nil
}

// keepsFixed reports whether the module keeps CKA_MODIFIABLE false. AWS CloudHSM has true only.
func (t *Token) keepsFixed(s *session) (keeps bool, err error) {
	if t.have.check(using(hsm.MACKey)) != nil {
		return true, nil
	}
	p := t.profile(hsm.MACKey)
	way := func(more ...*pkcs11.Attribute) func() error {
		return func() (err error) {
			h, err := t.makeSecret(s, p, append(p.session(random(len(hsm.KeyID{})), false), more...))
			if err != nil {
				return err
			}
			defer t.destroy(s, h, &err)
			a, ok, err := t.attributes(s, h, pkcs11.CKA_MODIFIABLE)
			keeps = ok && !truth(a[0])
			return err
		}
	}
	no := pkcs11.NewAttribute(pkcs11.CKA_MODIFIABLE, false)
	err = way(no)()
	if unsupported(err) || ambiguous(err) && refuses(way(no), way()) {
		return false, nil
	}
	return keeps, err
}

// attempt makes a session object, with CKA_ALLOWED_MECHANISMS or without, and returns what it
// has of [hsm.AttrHistory] and [hsm.AttrRestricted].
type attempt func(s *session, restricted bool) (hsm.Attributes, error)

// tried tries with CKA_ALLOWED_MECHANISMS first.
func (t *Token) tried(s *session, try attempt) (kept hsm.Attributes, err error) {
	way := func(restricted bool) func() error {
		return func() (err error) {
			kept, err = try(s, restricted)
			return err
		}
	}
	err = way(true)()
	if unsupported(err) || ambiguous(err) && refuses(way(true), way(false)) {
		err = way(false)()
	}
	if unsupported(err) {
		return 0, nil // the module has no such session objects
	}
	return kept, err
}

// restrictedIf adds CKA_ALLOWED_MECHANISMS to a template.
func (p profile) restrictedIf(restricted bool, template []*pkcs11.Attribute) []*pkcs11.Attribute {
	if !restricted {
		return template
	}
	return append([]*pkcs11.Attribute{p.restriction()}, template...)
}

func (t *Token) secretHistory(s *session, restricted bool) (kept hsm.Attributes, err error) {
	if t.have.check(using(hsm.MACKey)) != nil {
		return 0, nil
	}
	p := t.profile(hsm.MACKey)
	template := t.seen(p.restrictedIf(restricted, p.session(random(len(hsm.KeyID{})), false)))
	h, err := t.ctx.GenerateKey(s.handle, []*pkcs11.Mechanism{pkcs11.NewMechanism(p.keygen, nil)}, template)
	if err != nil {
		return 0, at("C_GenerateKey", err)
	}
	defer t.destroy(s, h, &err)
	return t.historyOf(s, h)
}

func (t *Token) privateHistory(s *session, restricted bool) (kept hsm.Attributes, err error) {
	usage := hsm.SignP256
	if t.have.check(using(usage)) != nil {
		usage = hsm.SignRSA2048
	}
	if t.have.check(using(usage)) != nil {
		return 0, nil
	}
	p, id := profiles[usage], random(len(hsm.KeyID{}))
	made, err := t.generateDraft(s, p, pair{p.publicHalf(id), p.restrictedIf(restricted, p.privateHalf(id, false))})
	if err != nil {
		return 0, err
	}
	defer made.end(&err)
	if kept, err = t.historyOf(s, made.private); err != nil {
		return 0, err
	}
	h, err := t.ctx.CopyObject(s.handle, made.private, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_LABEL, "trial")})
	if c := classify(err); c == lacking || c == input || unsupported(err) {
		return kept, nil // there are no copies on this module
	}
	if err != nil {
		return 0, at("C_CopyObject", err)
	}
	defer t.destroy(s, h, &err)
	copied, err := t.historyOf(s, h)
	return kept & copied, err
}

func (t *Token) historyOf(s *session, h pkcs11.ObjectHandle) (kept hsm.Attributes, err error) {
	for _, a := range []hsm.Attributes{hsm.AttrLocal, hsm.AttrAlwaysSensitive, hsm.AttrNeverExtractable} {
		v, ok, err := t.attributes(s, h, attributeTypes[a])
		if err != nil {
			return 0, err
		}
		if ok && truth(v[0]) {
			kept |= a
		}
	}
	list, ok, err := t.attributesOrNone(s, h, pkcs11.CKA_ALLOWED_MECHANISMS)
	if ok && len(list[0]) > 0 {
		kept |= hsm.AttrRestricted
	}
	return kept, err
}
