package pkcs11

import (
	"context"
	"encoding/asn1"
	"errors"
	"fmt"

	"github.com/miekg/pkcs11"

	"countersign/hsm"
	"countersign/hsm/internal/check"
)

// Generate implements [hsm.Token]. The key is on the token completely and under its final
// name, or not at all. If the process dies between the two copies of a key pair, a public
// key without a private one remains. Nothing here uses it, and its label is not taken.
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
	var made hsm.Key
	err := t.run(ctx, hsm.KeyID{}, func(s *session) error {
		return t.withFewerOptional(s, func() (err error) {
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

// checkVacant looks for any private or secret key with the label or id.
func (t *Token) checkVacant(ctx context.Context, name *pkcs11.Attribute) error {
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

// generateSecret makes a secret key on the token.
func (t *Token) generateSecret(s *session, spec hsm.KeySpec) (made hsm.Key, err error) {
	copy(made.ID[:], random(len(made.ID)))
	template := t.profile(spec.Usage).secret(made.ID[:], spec.Label)
	if t.optional >= someOptional {
		template = append(template, notCopyable()) // not on copies: SoftHSM refuses it there
	}
	_, err = t.newSecret(s, spec.Usage, template)
	return made, err
}

// generateCopied makes a secret key as a session object, seals its copies, and copies it
// to the token, where it is not extractable.
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
	_, err = t.ctx.CopyObject(s.handle, draft, t.lockDraft(s, draft, tokenAttributes(made.ID[:], spec.Label)))
	return made, at("C_CopyObject", err)
}

func (t *Token) newSecret(s *session, usage hsm.Usage, template []*pkcs11.Attribute) (key pkcs11.ObjectHandle, err error) {
	p := t.profile(usage)
	template = t.withRestriction(p, template)
	if usage == hsm.WrapKey && t.optional >= someOptional {
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

// generatePair makes a pair as session objects, because its CKA_ID is only known
// afterwards. It seals the copies and copies both halves to the token under their final
// name. Session objects end with the process.
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
	name := tokenAttributes(made.ID[:], spec.Label)
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
		name = t.lockDraft(s, draft.private, name)
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

// draft makes a pair. It is extractable only if it has recipients.
func (t *Token) draft(s *session, spec hsm.KeySpec) (d draft, err error) {
	p, id := profiles[spec.Usage], random(len(hsm.KeyID{}))
	templates := pair{p.publicHalf(id), t.withRestriction(p, p.privateHalf(id, len(spec.Recipients) > 0))}
	if t.keygen == nil || spec.Usage == hsm.SignEd25519 {
		return t.generateDraft(s, p, templates)
	}
	return t.draftByCrypto11(s, p, templates)
}

// pair holds the templates of both halves.
type pair struct{ public, private []*pkcs11.Attribute }

// generateDraft makes a pair without crypto11.
func (t *Token) generateDraft(s *session, p profile, templates pair) (d draft, err error) {
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

// Destroy implements [hsm.Token] with C_DestroyObject, the private key first: if the
// process dies meanwhile, what remains is of no use.
func (t *Token) Destroy(ctx context.Context, key hsm.KeyID) error {
	t.changing.Lock()
	defer t.changing.Unlock()
	id := []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_ID, key[:])}
	err := t.run(ctx, key, func(s *session) error {
		secrets, err := t.findClasses(s, id, pkcs11.CKO_PRIVATE_KEY, pkcs11.CKO_SECRET_KEY)
		if err != nil {
			return err
		}
		others, err := t.findClasses(s, id, pkcs11.CKO_PUBLIC_KEY, pkcs11.CKO_CERTIFICATE)
		if err != nil {
			return err
		}
		if len(secrets) > 1 || len(secrets)+len(others) == 0 {
			return at("C_FindObjects", errUnknown)
		}
		for _, h := range append(secrets, others...) {
			if err := t.ctx.DestroyObject(s.handle, h); err != nil {
				return at("C_DestroyObject", err)
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("destroying key: %w", err)
	}
	t.mu.Lock()
	delete(t.keys, key)
	t.mu.Unlock()
	return nil
}

func (t *Token) findClasses(s *session, match []*pkcs11.Attribute, classes ...uint) (all []pkcs11.ObjectHandle, err error) {
	for _, class := range classes {
		found, err := t.find(s, class, match)
		if err != nil {
			return nil, err
		}
		all = append(all, found...)
	}
	return all, nil
}

// StoreCertificate implements [hsm.Token] with C_CreateObject.
func (t *Token) StoreCertificate(ctx context.Context, c hsm.Certificate) error {
	cert, err := check.Certificate(c)
	if err != nil {
		return err
	}
	serial, err := asn1.Marshal(cert.SerialNumber)
	if err != nil {
		return fmt.Errorf("serial number of certificate %q: %v: %w", c.Label, err, hsm.ErrInput)
	}
	same := []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_ID, c.Key[:]), pkcs11.NewAttribute(pkcs11.CKA_VALUE, c.DER),
	}
	template := append([]*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_CERTIFICATE),
		pkcs11.NewAttribute(pkcs11.CKA_CERTIFICATE_TYPE, pkcs11.CKC_X_509),
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true),
		pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, false),
		pkcs11.NewAttribute(pkcs11.CKA_LABEL, c.Label),
		pkcs11.NewAttribute(pkcs11.CKA_SUBJECT, cert.RawSubject),
		pkcs11.NewAttribute(pkcs11.CKA_ISSUER, cert.RawIssuer),
		pkcs11.NewAttribute(pkcs11.CKA_SERIAL_NUMBER, serial),
	}, same...)
	t.changing.Lock()
	defer t.changing.Unlock()
	err = t.run(ctx, c.Key, func(s *session) error {
		there, err := t.find(s, pkcs11.CKO_CERTIFICATE, same)
		if err != nil || len(there) > 0 {
			return err
		}
		_, err = t.ctx.CreateObject(s.handle, template)
		return at("C_CreateObject", err)
	})
	return t.certified(c, err)
}

// certified returns [hsm.ErrUnsupported] if the module refused the template: it has no
// certificates.
func (t *Token) certified(c hsm.Certificate, err error) error {
	var failed *callError
	if errors.As(err, &failed) && unsupported(failed.cause) {
		return fmt.Errorf("module lacks CKO_CERTIFICATE, needed for storing certificates: %v: %w", err, hsm.ErrUnsupported)
	}
	if err != nil {
		return fmt.Errorf("storing certificate %q: %w", c.Label, err)
	}
	return nil
}

// Certificates implements [hsm.Token]. It skips certificates whose CKA_ID is not the hash
// of their public key.
func (t *Token) Certificates(ctx context.Context) (certs []hsm.Certificate, err error) {
	err = t.run(ctx, hsm.KeyID{}, func(s *session) error {
		certs = nil
		handles, err := t.find(s, pkcs11.CKO_CERTIFICATE, nil)
		if err != nil {
			return err
		}
		for _, h := range handles {
			a, ok, err := t.attributes(s, h, pkcs11.CKA_ID, pkcs11.CKA_LABEL, pkcs11.CKA_VALUE)
			if err != nil {
				return err
			}
			if !ok || len(a[0]) != len(hsm.KeyID{}) {
				continue
			}
			c := hsm.Certificate{Key: hsm.KeyID(a[0]), Label: string(a[1]), DER: a[2]}
			if _, err := check.Certificate(c); err == nil {
				certs = append(certs, c)
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("listing certificates: %w", err)
	}
	return certs, nil
}
