package pkcs11

import (
	"context"
	"crypto/ecdh"
	"errors"
	"fmt"

	"github.com/miekg/pkcs11"

	"countersign/hsm"
	"countersign/hsm/internal/check"
	"countersign/hsm/internal/kwp"
)

// sealAll makes a sealed copy of a key for each recipient of its spec. Only the copies
// leave the module.
func (t *Token) sealAll(s *session, key pkcs11.ObjectHandle, spec hsm.KeySpec) (all []hsm.Sealed, err error) {
	for _, r := range spec.Recipients {
		sealed, err := t.seal(s, key, spec, r.Bytes())
		if err != nil {
			return nil, err
		}
		all = append(all, sealed)
	}
	return all, nil
}

// seal makes one copy, with an ephemeral key pair of the module.
func (t *Token) seal(s *session, key pkcs11.ObjectHandle, spec hsm.KeySpec, recipient []byte) (sealed hsm.Sealed, err error) {
	p := profiles[hsm.DeriveP256]
	id := random(len(hsm.KeyID{}))
	ephemeral, err := t.generateDraft(s, p, pair{p.publicHalf(id), p.privateHalf(id, false)})
	if err != nil {
		return nil, err
	}
	defer ephemeral.end(&err)
	point, err := t.point(s, ephemeral.public)
	if err != nil {
		return nil, err
	}
	to := agreement{recipient, kwp.Context(spec, recipient, point)}
	kek, err := t.kek(s, ephemeral.private, to, pkcs11.CKA_WRAP)
	if err != nil {
		return nil, err
	}
	defer t.destroy(s, kek, &err)
	wrapped, err := t.native.wrap(s, t.ways.wrapping.mechanism, kek, key)
	if err != nil {
		return nil, at("C_WrapKey with "+t.ways.wrapping.name+" of a key for "+spec.Usage.String(), err)
	}
	return append(point, wrapped...), nil
}

// point returns the point of a public key on P-256, 65 bytes.
func (t *Token) point(s *session, public pkcs11.ObjectHandle) ([]byte, error) {
	p, ok, err := t.publicOf(s, public, pkcs11.CKK_EC)
	if err != nil {
		return nil, err
	}
	if ok {
		if point, err := (hsm.Key{Public: p.spki}).ECDH(); err == nil {
			return point.Bytes(), nil
		}
	}
	return nil, at("C_GetAttributeValue", errShort)
}

// Restore implements [hsm.Token]. If the process dies meanwhile, a private key without its
// public half may remain. Nothing here uses it, and [Token.Destroy] removes it.
func (t *Token) Restore(ctx context.Context, r hsm.Restore) (hsm.Key, error) {
	want, err := check.Restore(r)
	if err != nil {
		return hsm.Key{}, err
	}
	if err := t.canCopy(); err != nil {
		return hsm.Key{}, err
	}
	t.changing.Lock()
	defer t.changing.Unlock()
	if err := t.checkFree(ctx, want); err != nil {
		return hsm.Key{}, err
	}
	err = t.use(ctx, need{id: r.With, usage: hsm.DeriveP256}, func(s *session, with object) error {
		private, err := t.unseal(s, with, r.Sealed, want)
		if err != nil {
			return err
		}
		return t.finish(s, private, want)
	})
	return t.readBack(ctx, want, err)
}

// Adopt implements [hsm.Token] with C_CreateObject.
func (t *Token) Adopt(ctx context.Context, spec hsm.KeySpec, private *ecdh.PrivateKey) (hsm.Key, error) {
	want, err := check.Adopt(spec, private)
	if err != nil {
		return hsm.Key{}, err
	}
	if err := t.have.check(t.using(spec.Usage)); err != nil {
		return hsm.Key{}, err
	}
	t.changing.Lock()
	defer t.changing.Unlock()
	if err := t.checkFree(ctx, want); err != nil {
		return hsm.Key{}, err
	}
	err = t.run(ctx, want.ID, func(s *session) error {
		h, err := t.create(s, want, private.Bytes())
		if err != nil {
			return err
		}
		return t.finish(s, h, want)
	})
	return t.readBack(ctx, want, err)
}

// checkFree returns [hsm.ErrExists] if the label or id of a key is taken.
func (t *Token) checkFree(ctx context.Context, k hsm.Key) error {
	for _, name := range []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_LABEL, k.Label), pkcs11.NewAttribute(pkcs11.CKA_ID, k.ID[:]),
	} {
		if err := t.checkVacant(ctx, name); err != nil {
			return fmt.Errorf("key %q, %s: %w", k.Label, k.ID, err)
		}
	}
	return nil
}

// readBack reads a key that was put on the token.
func (t *Token) readBack(ctx context.Context, want hsm.Key, err error) (hsm.Key, error) {
	if err != nil {
		return hsm.Key{}, fmt.Errorf("putting key %q, %s on the token: %w", want.Label, want.ID, err)
	}
	o, err := t.resolve(ctx, want.ID)
	if err == nil && o.Usage != want.Usage {
		err = fmt.Errorf("key %s became one for %s, not %s: %w", want.ID, o.Usage, want.Usage, hsm.ErrUnavailable)
	}
	return o.Key, err
}

// finalPrivate returns the template of a private or secret key on the token.
func (p profile) finalPrivate(k hsm.Key) []*pkcs11.Attribute {
	return append(append(p.protection(false), tokenAttributes(k.ID[:], k.Label)...), p.kind()...)
}

// unseal unwraps a sealed copy to a key on the token.
func (t *Token) unseal(s *session, with object, sealed hsm.Sealed, k hsm.Key) (key pkcs11.ObjectHandle, err error) {
	recipient, err := with.ECDH()
	if err != nil {
		return 0, at("C_DeriveKey", err)
	}
	point, wrapped := kwp.Split(sealed)
	spec := hsm.KeySpec{Label: k.Label, Usage: k.Usage}
	from := agreement{point, kwp.Context(spec, recipient.Bytes(), point)}
	// It wraps as well: unwrapError needs that.
	kek, err := t.kek(s, with.handle, from, pkcs11.CKA_UNWRAP, pkcs11.CKA_WRAP)
	if err != nil {
		return 0, err
	}
	defer t.destroy(s, kek, &err)
	err = t.withFewerOptional(s, func() (err error) {
		p := t.profile(k.Usage)
		template := t.kept(t.withRestriction(p, p.finalPrivate(k)))
		if p.allows(pkcs11.CKA_UNWRAP) && t.optional.has(keptIn) {
			key, err = t.native.unwrapWrapping(s, t.ways.wrapping.mechanism, kek, wrapped, template)
		} else {
			key, err = t.ctx.UnwrapKey(s.handle, t.wrapping(), kek, wrapped, template)
		}
		return at("C_UnwrapKey", err)
	})
	if ambiguous(err) {
		err = t.restoreError(s, kek, wrapped, err)
	}
	return key, err
}

// restoreError decides why a sealed copy did not become a key. If it unwraps as a secret
// of no use, it is intact, and the module cannot have keys of its kind by C_UnwrapKey.
func (t *Token) restoreError(s *session, kek pkcs11.ObjectHandle, wrapped []byte, failed error) (err error) {
	secret, err := t.ctx.UnwrapKey(s.handle, t.wrapping(), kek, wrapped, t.sessionSecret(t.ways.mac.keyType, false))
	if err != nil {
		return t.unwrapError(s, object{handle: kek}, err)
	}
	defer t.destroy(s, secret, &err)
	return at("C_UnwrapKey with "+t.ways.wrapping.name, fmt.Errorf("%v: %w", failed, errLacking))
}

// create puts a private key from memory on the token.
func (t *Token) create(s *session, k hsm.Key, value []byte) (key pkcs11.ObjectHandle, err error) {
	p := t.profile(k.Usage)
	secret := pkcs11.NewAttribute(pkcs11.CKA_VALUE, value)
	defer clear(secret.Value)
	err = t.withFewerOptional(s, func() error {
		template := append(t.kept(t.withRestriction(p, p.finalPrivate(k))), pkcs11.NewAttribute(pkcs11.CKA_EC_PARAMS, p.params), secret)
		key, err = t.ctx.CreateObject(s.handle, template)
		return at("C_CreateObject", err)
	})
	return key, err
}

// finish has a key on the token prove that it is the expected one, and adds its public
// half. It destroys a key that is not.
func (t *Token) finish(s *session, h pkcs11.ObjectHandle, k hsm.Key) (err error) {
	defer func() {
		if err != nil {
			t.destroy(s, h, new(error)) // the first error counts
		}
	}()
	if !k.Usage.Pair() {
		return t.checkLength(s, h)
	}
	if err := t.prove(s, object{Key: k, handle: h}); err != nil {
		return err
	}
	public, id, err := check.ParsePublic(k.Public)
	if err != nil {
		return at("C_CreateObject", err)
	}
	p := profiles[k.Usage]
	values, err := publicKey{key: public, spki: k.Public, id: id}.values()
	if err != nil {
		return at("C_CreateObject", err)
	}
	template := append(t.kept(append(p.verifying(), tokenAttributes(k.ID[:], k.Label)...)), values...)
	p.class = pkcs11.CKO_PUBLIC_KEY
	_, err = t.ctx.CreateObject(s.handle, append(template, p.kind()...))
	return at("C_CreateObject", err)
}

// mismatchError translates the answers of a key of another kind or size.
func mismatchError(err error) error {
	code, _ := codeOf(err)
	short := errors.Is(err, errShort) || code == pkcs11.CKR_BUFFER_TOO_SMALL
	if c := classify(err); short || c == wrongKey || c == input {
		return at("C_Sign", errWrapped)
	}
	return err
}
