package pkcs11

import (
	"context"

	"github.com/miekg/pkcs11"

	"countersign/hsm"
)

// keptAges are, by class, the attributes of [hsm.AttrHistory] that the module keeps of a
// key which was made here and never extractable, as keys are made by [Token.Generate]:
// a secret key at once, a private key as a copy. Both are tried with session objects,
// once per process. NSS forgets some, so that a key it has just made looks like one
// that came from elsewhere.
func (t *Token) keptAges(ctx context.Context) (map[uint]hsm.Attributes, error) {
	t.keepMu.Lock()
	defer t.keepMu.Unlock()
	if t.ages != nil {
		return t.ages, nil
	}
	kept := map[uint]hsm.Attributes{}
	for class, try := range map[uint]func(*session) (hsm.Attributes, error){
		pkcs11.CKO_SECRET_KEY: t.secretAges, pkcs11.CKO_PRIVATE_KEY: t.privateAges,
	} {
		err := t.run(ctx, hsm.KeyID{}, func(s *session) (err error) {
			kept[class], err = try(s)
			if unsupported(err) {
				return nil // it makes no session objects of the kind
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	t.ages = kept
	return kept, nil
}

func (t *Token) secretAges(s *session) (kept hsm.Attributes, err error) {
	if t.have.check(using(hsm.MACKey)) != nil {
		return 0, nil
	}
	p := profiles[hsm.MACKey]
	template := sized(append(p.privateHalf(random(len(hsm.KeyID{})), false), p.kind()...))
	h, err := t.ctx.GenerateKey(s.handle, []*pkcs11.Mechanism{pkcs11.NewMechanism(p.keygen, nil)}, template)
	if err != nil {
		return 0, at("C_GenerateKey", err)
	}
	defer t.destroy(s, h, &err)
	return t.agesOf(s, h)
}

func (t *Token) privateAges(s *session) (kept hsm.Attributes, err error) {
	usage := hsm.SignP256
	if t.have.check(using(usage)) != nil {
		usage = hsm.SignRSA2048
	}
	if t.have.check(using(usage)) != nil {
		return 0, nil
	}
	p, id := profiles[usage], random(len(hsm.KeyID{}))
	made, err := t.draftAlone(s, p, pair{p.publicHalf(id), p.privateHalf(id, false)})
	if err != nil {
		return 0, err
	}
	defer made.end(&err)
	h, err := t.ctx.CopyObject(s.handle, made.private, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_LABEL, "trial")})
	if err != nil {
		return 0, at("C_CopyObject", err)
	}
	defer t.destroy(s, h, &err)
	return t.agesOf(s, h)
}

func (t *Token) agesOf(s *session, h pkcs11.ObjectHandle) (kept hsm.Attributes, err error) {
	for _, a := range []hsm.Attributes{hsm.AttrLocal, hsm.AttrAlwaysSensitive, hsm.AttrNeverExtractable} {
		v, ok, err := t.attributes(s, h, attributeTypes[a])
		if err != nil {
			return 0, err
		}
		if ok && truth(v[0]) {
			kept |= a
		}
	}
	return kept, nil
}
