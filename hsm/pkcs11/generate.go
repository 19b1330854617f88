package pkcs11

import (
	"context"
	"crypto/elliptic"
	"crypto/rand"
	"fmt"

	"github.com/ThalesIgnite/crypto11"
	"github.com/miekg/pkcs11"

	"countersign/hsm"
	"countersign/hsm/internal/border"
)

// Generate implements [hsm.Token]. The key is on the token whole and under its
// final name, or not at all. Only a process that dies between the two copies
// of a key pair can leave something behind: a public key without a private
// one, which nothing here ever uses or counts as taking its label.
func (t *Token) Generate(ctx context.Context, spec hsm.KeySpec) (hsm.Key, error) {
	if err := border.Spec(spec); err != nil {
		return hsm.Key{}, err
	}
	t.genMu.Lock()
	defer t.genMu.Unlock()
	if err := t.vacant(ctx, spec.Label); err != nil {
		return hsm.Key{}, err
	}
	var id hsm.KeyID
	err := t.run(ctx, id, func(s *session) (err error) {
		if profiles[spec.Usage].class == pkcs11.CKO_SECRET_KEY {
			id, err = t.generateSecret(s, spec)
		} else {
			id, err = t.generatePair(s, spec)
		}
		return err
	})
	if err != nil {
		return hsm.Key{}, fmt.Errorf("generating key %q: %w", spec.Label, err)
	}
	o, err := t.resolve(ctx, id)
	return o.Key, err
}

// vacant looks for a private or secret key with the label, ours or not.
func (t *Token) vacant(ctx context.Context, label string) error {
	return t.run(ctx, hsm.KeyID{}, func(s *session) error {
		for _, class := range []uint{pkcs11.CKO_PRIVATE_KEY, pkcs11.CKO_SECRET_KEY} {
			taken, err := t.find(s, class, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_LABEL, label)})
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

func (t *Token) generateSecret(s *session, spec hsm.KeySpec) (id hsm.KeyID, err error) {
	_, _ = rand.Read(id[:]) // never fails, see crypto/rand.Read
	p := profiles[spec.Usage]
	err = t.restricted(p, p.secret(id[:], spec.Label), func(template []*pkcs11.Attribute) error {
		if spec.Usage == hsm.WrapKey {
			_, err := t.native.generateWrapping(s.handle, p.keygen, template)
			if !unsupported(err) {
				return at("C_GenerateKey", err)
			}
			t.log.Warn("no CKA_UNWRAP_TEMPLATE", "token", t.label)
		}
		_, err := t.ctx.GenerateKey(s.handle, []*pkcs11.Mechanism{pkcs11.NewMechanism(p.keygen, nil)}, template)
		return at("C_GenerateKey", err)
	})
	return id, err
}

// generatePair makes the pair as session objects, because its CKA_ID is only
// known afterwards, and copies both halves to the token under their final
// name. A process that dies takes its session objects with it.
func (t *Token) generatePair(s *session, spec hsm.KeySpec) (id hsm.KeyID, err error) {
	var draft hsm.KeyID
	_, _ = rand.Read(draft[:])
	signer, err := t.draft(profiles[spec.Usage], draft[:])
	if err != nil {
		return id, err
	}
	defer func() {
		if gone := signer.Delete(); err == nil {
			err = at("C_DestroyObject", gone)
		}
	}()
	public, err := t.half(s, pkcs11.CKO_PUBLIC_KEY, draft[:])
	if err != nil {
		return id, err
	}
	private, err := t.half(s, pkcs11.CKO_PRIVATE_KEY, draft[:])
	if err != nil {
		return id, err
	}
	if id, err = t.identify(s, public); err != nil {
		return id, err
	}
	name := final(id[:], spec.Label)
	copied, err := t.ctx.CopyObject(s.handle, public, name)
	if err != nil {
		return id, at("C_CopyObject", err)
	}
	if _, err = t.ctx.CopyObject(s.handle, private, name); err != nil {
		_ = t.ctx.DestroyObject(s.handle, copied)
	}
	return id, at("C_CopyObject", err)
}

// draft is crypto11's part. It panics on some errors of a module.
func (t *Token) draft(p profile, id []byte) (signer crypto11.Signer, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = at("C_GenerateKeyPair", fmt.Errorf("panic: %v", r))
		}
	}()
	err = t.restricted(p, p.privateHalf(id), func(private []*pkcs11.Attribute) error {
		signer, err = t.keygen.GenerateECDSAKeyPairWithAttributes(set(p.publicHalf(id)), set(private), elliptic.P256())
		return at("C_GenerateKeyPair", err)
	})
	return signer, err
}

// half finds one half of a pair that was just made; session objects are seen
// by every session of the process.
func (t *Token) half(s *session, class uint, id []byte) (pkcs11.ObjectHandle, error) {
	found, err := t.findAll(s, []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, class),
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, false),
		pkcs11.NewAttribute(pkcs11.CKA_ID, id),
	})
	if err == nil && len(found) != 1 {
		err = at("C_FindObjects", fmt.Errorf("%d objects are this half of the new key pair", len(found)))
	}
	if err != nil {
		return 0, err
	}
	return found[0], nil
}

func (t *Token) identify(s *session, public pkcs11.ObjectHandle) (id hsm.KeyID, err error) {
	a, err := t.ctx.GetAttributeValue(s.handle, public, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_EC_POINT, nil)})
	if err != nil {
		return id, at("C_GetAttributeValue", err)
	}
	point, err := decodePoint(a[0].Value)
	if err != nil {
		return id, at("C_GetAttributeValue", err)
	}
	id, err = border.KeyID(point)
	return id, at("C_GenerateKeyPair", err)
}

// restricted calls f with CKA_ALLOWED_MECHANISMS in the template, and without
// where the module does not know it.
func (t *Token) restricted(p profile, template []*pkcs11.Attribute, f func([]*pkcs11.Attribute) error) error {
	err := f(append([]*pkcs11.Attribute{p.restriction()}, template...))
	if !unsupported(err) {
		return err
	}
	t.log.Warn("no CKA_ALLOWED_MECHANISMS", "token", t.label)
	return f(template)
}
