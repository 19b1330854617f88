package pkcs11

import (
	"context"
	"errors"
	"fmt"

	"github.com/miekg/pkcs11"

	"countersign/hsm"
	"countersign/hsm/internal/check"
)

// Generate implements [hsm.Token]. The key is on the token completely and under its final
// name, or not at all: one call makes it there. A key of which copies are made begins as a session
// object. If the process dies before both halves are on the token, one without the other remains.
// Nothing here uses it, and a public key alone does not take the label.
func (t *Token) Generate(ctx context.Context, spec hsm.KeySpec) (hsm.Key, error) {
	if err := check.Spec(spec); err != nil {
		return hsm.Key{}, err
	}
	if err := t.canGenerate(spec); err != nil {
		return hsm.Key{}, err
	}
	t.changing.Lock()
	defer t.changing.Unlock()
	if err := t.checkVacant(ctx, pkcs11.NewAttribute(pkcs11.CKA_LABEL, spec.Label)); err != nil {
		return hsm.Key{}, err
	}
	var made newKey
	err := t.run(ctx, hsm.KeyID{}, func(s *session) error {
		return t.withFewerOptional(s, func() (err error) {
			made, err = t.maker(spec)(s, spec)
			return err
		})
	})
	if errors.Is(err, hsm.ErrUnsupported) {
		err = t.hinted(spec.Usage, err)
	}
	if err != nil {
		return hsm.Key{}, fmt.Errorf("generating key %q: %w", spec.Label, err)
	}
	o, err := t.resolveAmong(ctx, made.id, marked(made.mark))
	o.Sealed, o.Copied = made.sealed, len(made.sealed) > 0
	return o.Key, err
}

// newKey is a key that was just made.
type newKey struct {
	id     hsm.KeyID
	mark   []byte // CKA_ID
	sealed []hsm.Sealed
}

// maker returns the way in which a key is made.
func (t *Token) maker(spec hsm.KeySpec) func(*session, hsm.KeySpec) (newKey, error) {
	switch copied := len(spec.Recipients) > 0; {
	case spec.Usage.Pair() && copied:
		return t.copyPair
	case spec.Usage.Pair():
		return t.generatePair
	case copied:
		return t.copySecret
	default:
		return t.generateSecret
	}
}

func (t *Token) canGenerate(spec hsm.KeySpec) error {
	if err := t.have.check(t.using(spec.Usage)); err != nil {
		return t.hinted(spec.Usage, err)
	}
	if len(spec.Recipients) == 0 {
		return nil
	}
	return t.canCopy()
}

// checkVacant looks for any private or secret key with the label or id.
func (t *Token) checkVacant(ctx context.Context, name *pkcs11.Attribute) error {
	return t.run(ctx, hsm.KeyID{}, func(s *session) error {
		for _, c := range keyClasses {
			taken, err := t.find(s, c.class, []*pkcs11.Attribute{name})
			if err != nil {
				return err
			}
			if len(taken) > 0 {
				return at("C_FindObjects", t.takenBy(s, c, taken[0]))
			}
		}
		return nil
	})
}

// takenBy is the error of a label or id that an object has.
func (t *Token) takenBy(s *session, c keyClass, h pkcs11.ObjectHandle) error {
	a, err := t.attributesEach(s, h, []uint{pkcs11.CKA_ID, pkcs11.CKA_LABEL})
	if err != nil {
		return err
	}
	return fmt.Errorf("object %s with CKA_LABEL %q and CKA_ID %x: %w", c.name, a[1], a[0], errTaken)
}

// generateSecret makes a secret key on the token.
func (t *Token) generateSecret(s *session, spec hsm.KeySpec) (made newKey, err error) {
	made = newMark()
	_, err = t.newSecret(s, spec.Usage, t.onToken(spec.Usage, made.mark, spec.Label))
	return made, err
}

// newMark chooses the CKA_ID of a key. It is the id of a secret key.
func newMark() newKey {
	id := hsm.KeyID(random(len(hsm.KeyID{})))
	return newKey{id: id, mark: id[:]}
}

// copySecret makes a secret key as a session object, seals its copies, and copies it
// to the token, where it is not extractable.
func (t *Token) copySecret(s *session, spec hsm.KeySpec) (made newKey, err error) {
	made = newMark()
	draft, err := t.newSecret(s, spec.Usage, t.profile(spec.Usage).session(made.mark, true))
	if err != nil {
		return made, err
	}
	defer t.destroy(s, draft, &err)
	if made.sealed, err = t.sealAll(s, draft, spec); err != nil {
		return made, err
	}
	_, err = t.ctx.CopyObject(s.handle, draft, t.lockDraft(s, draft, t.kept(tokenAttributes(made.mark, spec.Label))))
	return made, at("C_CopyObject", err)
}

func (t *Token) newSecret(s *session, usage hsm.Usage, template []*pkcs11.Attribute) (key pkcs11.ObjectHandle, err error) {
	p := t.profile(usage)
	template = t.kept(t.withRestriction(p, template))
	if p.allows(pkcs11.CKA_UNWRAP) && t.optional.has(keptIn) {
		key, err = t.native.generateWrapping(s.handle, p.keygen, template)
	} else {
		key, err = t.ctx.GenerateKey(s.handle, []*pkcs11.Mechanism{pkcs11.NewMechanism(p.keygen, nil)}, template)
	}
	return key, at("C_GenerateKey", err)
}

// lockDraft makes a draft not extractable and returns the template of its copy on the
// token. Some modules (SoftHSM) allow changing the draft, others only the copy; both is
// PKCS#11 v2.40 §4.6.
func (t *Token) lockDraft(s *session, draft pkcs11.ObjectHandle, name []*pkcs11.Attribute) []*pkcs11.Attribute {
	no := pkcs11.NewAttribute(pkcs11.CKA_EXTRACTABLE, false)
	if t.ctx.SetAttributeValue(s.handle, draft, []*pkcs11.Attribute{no}) == nil {
		return name
	}
	return append(name, no)
}

// generatePair makes a pair on the token with its final attributes. Both halves have one random
// CKA_ID, because the hash of the public key is only known afterwards.
func (t *Token) generatePair(s *session, spec hsm.KeySpec) (made newKey, err error) {
	p, made := profiles[spec.Usage], newMark()
	name := tokenAttributes(made.mark, spec.Label)
	halves, err := t.makePair(s, spec.Usage, pair{
		append(p.verifying(), name...), t.withRestriction(p, append(p.protection(false), name...)),
	})
	if err != nil {
		return made, err
	}
	made.id, err = t.idOf(s, halves, spec.Usage)
	if err != nil {
		halves.end(new(error)) // the first error counts
	}
	return made, err
}

// idOf returns the id of a new pair, or an error if its public half is not one for the usage.
func (t *Token) idOf(s *session, d draft, usage hsm.Usage) (hsm.KeyID, error) {
	public, ok, err := t.publicOf(s, d.public, profiles[usage].keyType)
	if err == nil && (!ok || !usage.Fits(public.key)) {
		err = at("C_GenerateKeyPair", fmt.Errorf("its public key is not one for %s", usage))
	}
	return public.id, err
}

// copyPair makes a pair as session objects, seals its copies, and copies both halves to the token
// under their final name. Session objects end with the process. The CKA_ID is the id of the key, as
// it is for a key that a copy restores.
func (t *Token) copyPair(s *session, spec hsm.KeySpec) (made newKey, err error) {
	p, id := profiles[spec.Usage], random(len(hsm.KeyID{}))
	draft, err := t.makePair(s, spec.Usage, pair{p.publicHalf(id), t.withRestriction(p, p.privateHalf(id, true))})
	if err != nil {
		return made, err
	}
	defer draft.end(&err)
	if made.id, err = t.idOf(s, draft, spec.Usage); err != nil {
		return made, err
	}
	made.mark = made.id[:]
	name := t.kept(tokenAttributes(made.mark, spec.Label))
	if made.sealed, err = t.sealAll(s, draft.private, spec); err != nil {
		return made, err
	}
	copied, err := t.ctx.CopyObject(s.handle, draft.public, name)
	if err != nil {
		return made, at("C_CopyObject", err)
	}
	if _, err = t.ctx.CopyObject(s.handle, draft.private, t.lockDraft(s, draft.private, name)); err != nil {
		_ = t.ctx.DestroyObject(s.handle, copied)
	}
	return made, at("C_CopyObject", err)
}

// draft is a new key pair.
type draft struct {
	public, private pkcs11.ObjectHandle
	end             func(*error) // destroys both
}

// makePair makes a pair, with crypto11 where that can.
func (t *Token) makePair(s *session, usage hsm.Usage, templates pair) (draft, error) {
	p := profiles[usage]
	if t.keygen == nil || usage == hsm.SignEd25519 {
		return t.generateDraft(s, p, templates)
	}
	return t.draftByCrypto11(s, p, pair{t.kept(templates.public), t.kept(templates.private)})
}

// pair holds the templates of both halves.
type pair struct{ public, private []*pkcs11.Attribute }

// generateDraft makes a pair without crypto11.
func (t *Token) generateDraft(s *session, p profile, templates pair) (d draft, err error) {
	templates = pair{t.kept(templates.public), t.kept(templates.private)}
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
