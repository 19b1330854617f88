package pkcs11

import (
	"context"
	"crypto/elliptic"
	"fmt"
	"slices"

	"github.com/ThalesIgnite/crypto11"
	"github.com/miekg/pkcs11"

	"countersign/hsm"
	"countersign/hsm/internal/check"
)

// Generate implements [hsm.Token]. The key is on the token whole and under its
// final name, or not at all. Only a process that dies between the two copies
// of a key pair can leave something behind: a public key without a private
// one, which nothing here ever uses or counts as taking its label.
func (t *Token) Generate(ctx context.Context, spec hsm.KeySpec) (hsm.Key, error) {
	if err := check.Spec(spec); err != nil {
		return hsm.Key{}, err
	}
	if err := t.canGenerate(spec); err != nil {
		return hsm.Key{}, err
	}
	t.keepMu.Lock()
	defer t.keepMu.Unlock()
	if err := t.vacant(ctx, pkcs11.NewAttribute(pkcs11.CKA_LABEL, spec.Label)); err != nil {
		return hsm.Key{}, err
	}
	var made hsm.Key
	err := t.run(ctx, hsm.KeyID{}, func(s *session) error {
		return t.fitting(func() (err error) {
			switch {
			case spec.Usage.Pair():
				made, err = t.generatePair(s, spec)
			case len(spec.Recipients) > 0:
				made, err = t.generateCopied(s, spec)
			default:
				made, err = t.generateSecret(s, spec)
			}
			return err
		})
	})
	if err != nil {
		return hsm.Key{}, fmt.Errorf("generating key %q: %w", spec.Label, err)
	}
	o, err := t.resolve(ctx, made.ID)
	o.Sealed, o.Copied = made.Sealed, len(made.Sealed) > 0
	return o.Key, err
}

func (t *Token) canGenerate(spec hsm.KeySpec) error {
	if err := t.have.check(using(spec.Usage)); err != nil {
		return err
	}
	if len(spec.Recipients) == 0 {
		return nil
	}
	return t.have.check(copying)
}

// vacant looks for a private or secret key with the label or id, ours or not.
func (t *Token) vacant(ctx context.Context, name *pkcs11.Attribute) error {
	return t.run(ctx, hsm.KeyID{}, func(s *session) error {
		for _, class := range []uint{pkcs11.CKO_PRIVATE_KEY, pkcs11.CKO_SECRET_KEY} {
			taken, err := t.find(s, class, []*pkcs11.Attribute{name})
			if err != nil {
				return err
			}
			if len(taken) > 0 {
				return at("C_FindObjects", errTaken)
			}
		}
		return nil
	})
}

// generateSecret makes a secret key where it is to stay.
func (t *Token) generateSecret(s *session, spec hsm.KeySpec) (made hsm.Key, err error) {
	copy(made.ID[:], random(len(made.ID)))
	template := t.profile(spec.Usage).secret(made.ID[:], spec.Label)
	if t.extras >= most {
		// Not on what gets to the token by a copy, in which SoftHSM refuses it.
		template = append(template, pkcs11.NewAttribute(pkcs11.CKA_COPYABLE, false))
	}
	_, err = t.newSecret(s, spec.Usage, template)
	return made, err
}

// generateCopied makes a secret key as a session object, seals its copies, and
// moves it to the token as one that is never to be extracted again.
func (t *Token) generateCopied(s *session, spec hsm.KeySpec) (made hsm.Key, err error) {
	copy(made.ID[:], random(len(made.ID)))
	draft, err := t.newSecret(s, spec.Usage, t.profile(spec.Usage).secretDraft(made.ID[:]))
	if err != nil {
		return made, err
	}
	defer t.destroy(s, draft, &err)
	if made.Sealed, err = t.sealAll(s, draft, spec); err != nil {
		return made, err
	}
	_, err = t.ctx.CopyObject(s.handle, draft, t.closed(s, draft, final(made.ID[:], spec.Label)))
	return made, at("C_CopyObject", err)
}

func (t *Token) newSecret(s *session, usage hsm.Usage, template []*pkcs11.Attribute) (key pkcs11.ObjectHandle, err error) {
	p := t.profile(usage)
	template = t.restricted(p, template)
	if usage == hsm.WrapKey && t.extras >= most {
		key, err = t.native.generateWrapping(s.handle, p.keygen, template)
	} else {
		key, err = t.ctx.GenerateKey(s.handle, []*pkcs11.Mechanism{pkcs11.NewMechanism(p.keygen, nil)}, template)
	}
	return key, at("C_GenerateKey", err)
}

// closed ends the time in which a draft is extractable, and returns the
// template of its copy on the token. Some modules let the draft be changed
// (SoftHSM), others only the copy; both is PKCS#11 v2.40 §4.6.
func (t *Token) closed(s *session, draft pkcs11.ObjectHandle, name []*pkcs11.Attribute) []*pkcs11.Attribute {
	no := pkcs11.NewAttribute(pkcs11.CKA_EXTRACTABLE, false)
	if t.ctx.SetAttributeValue(s.handle, draft, []*pkcs11.Attribute{no}) == nil {
		return name
	}
	return append(name, no)
}

// generatePair makes a pair as session objects, because its CKA_ID is only
// known afterwards, seals its copies, and copies both halves to the token under
// their final name. A process that dies takes its session objects with it.
func (t *Token) generatePair(s *session, spec hsm.KeySpec) (made hsm.Key, err error) {
	draft, err := t.draft(s, spec)
	if err != nil {
		return made, err
	}
	defer draft.end(&err)
	public, ok, err := t.publicOf(s, draft.public, profiles[spec.Usage].keyType)
	if err == nil && (!ok || !spec.Usage.Fits(public.key)) {
		err = at("C_GenerateKeyPair", fmt.Errorf("its public key is not one for %s", spec.Usage))
	}
	if err != nil {
		return made, err
	}
	made.ID = public.id
	name := final(made.ID[:], spec.Label)
	if len(spec.Recipients) > 0 {
		if made.Sealed, err = t.sealAll(s, draft.private, spec); err != nil {
			return made, err
		}
	}
	copied, err := t.ctx.CopyObject(s.handle, draft.public, name)
	if err != nil {
		return made, at("C_CopyObject", err)
	}
	if len(spec.Recipients) > 0 {
		name = t.closed(s, draft.private, name)
	}
	if _, err = t.ctx.CopyObject(s.handle, draft.private, name); err != nil {
		_ = t.ctx.DestroyObject(s.handle, copied)
	}
	return made, at("C_CopyObject", err)
}

// draft is a key pair of session objects.
type draft struct {
	public, private pkcs11.ObjectHandle
	end             func(*error) // destroys both
}

// draft makes a pair that is extractable only for the sake of copies.
func (t *Token) draft(s *session, spec hsm.KeySpec) (d draft, err error) {
	p, id := profiles[spec.Usage], random(len(hsm.KeyID{}))
	templates := pair{p.publicHalf(id), t.restricted(p, p.privateHalf(id, len(spec.Recipients) > 0))}
	if t.keygen == nil || spec.Usage == hsm.SignEd25519 {
		return t.draftAlone(s, p, templates)
	}
	return t.draftByCrypto11(s, p, templates)
}

// pair are the templates of both halves.
type pair struct{ public, private []*pkcs11.Attribute }

// draftAlone is for what crypto11 cannot do.
func (t *Token) draftAlone(s *session, p profile, templates pair) (d draft, err error) {
	public := append(templates.public, pkcs11.NewAttribute(pkcs11.CKA_EC_PARAMS, p.params))
	if p.keyType == pkcs11.CKK_RSA {
		public = append(templates.public, pkcs11.NewAttribute(pkcs11.CKA_MODULUS_BITS, p.bits),
			pkcs11.NewAttribute(pkcs11.CKA_PUBLIC_EXPONENT, []byte{1, 0, 1}))
	}
	mech := []*pkcs11.Mechanism{pkcs11.NewMechanism(p.keygen, nil)}
	d.public, d.private, err = t.ctx.GenerateKeyPair(s.handle, mech, public, templates.private)
	d.end = func(err *error) {
		t.destroy(s, d.private, err)
		t.destroy(s, d.public, err)
	}
	return d, at("C_GenerateKeyPair", err)
}

// draftByCrypto11 finds what crypto11 made: session objects are seen by every
// session of the process.
func (t *Token) draftByCrypto11(s *session, p profile, templates pair) (d draft, err error) {
	made, err := t.crypto11(p, templates)
	if err != nil {
		return d, err
	}
	d.end = func(err *error) {
		if gone := made.Delete(); *err == nil {
			*err = at("C_DestroyObject", gone)
		}
	}
	if d.public, err = t.half(s, pkcs11.CKO_PUBLIC_KEY, templates.public); err == nil {
		d.private, err = t.half(s, pkcs11.CKO_PRIVATE_KEY, templates.public)
	}
	if err != nil {
		d.end(&err)
	}
	return d, err
}

// crypto11 makes a key pair. It panics on some errors of a module.
func (t *Token) crypto11(p profile, templates pair) (made crypto11.Signer, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = at("C_GenerateKeyPair", fmt.Errorf("panic: %v", r))
		}
	}()
	public, private := set(templates.public), set(templates.private)
	switch {
	case p.keyType == pkcs11.CKK_RSA:
		made, err = t.keygen.GenerateRSAKeyPairWithAttributes(public, private, p.bits)
	case slices.Equal(p.params, oidP384):
		made, err = t.keygen.GenerateECDSAKeyPairWithAttributes(public, private, elliptic.P384())
	default:
		made, err = t.keygen.GenerateECDSAKeyPairWithAttributes(public, private, elliptic.P256())
	}
	return made, at("C_GenerateKeyPair", err)
}

// half finds one half of a pair by the CKA_ID in its template.
func (t *Token) half(s *session, class uint, template []*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
	id := slices.IndexFunc(template, func(a *pkcs11.Attribute) bool { return a.Type == pkcs11.CKA_ID })
	found, err := t.findAll(s, []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, class),
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, false),
		template[id],
	})
	if err == nil && len(found) != 1 {
		err = at("C_FindObjects", fmt.Errorf("%d objects are this half of the new key pair", len(found)))
	}
	if err != nil {
		return 0, err
	}
	return found[0], nil
}
