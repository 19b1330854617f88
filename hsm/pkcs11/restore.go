package pkcs11

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/miekg/pkcs11"

	"countersign/hsm"
	"countersign/hsm/internal/check"
	"countersign/hsm/internal/kwp"
)

// Restore implements [hsm.Token]. A process that dies over it may leave a
// private key without its public half, which nothing here uses and
// [Token.Destroy] removes.
func (t *Token) Restore(ctx context.Context, r hsm.Restore) (hsm.Key, error) {
	want, err := check.Restore(r)
	if err != nil {
		return hsm.Key{}, err
	}
	if err := t.have.check(copying); err != nil {
		return hsm.Key{}, err
	}
	t.keepMu.Lock()
	defer t.keepMu.Unlock()
	if err := t.room(ctx, want); err != nil {
		return hsm.Key{}, err
	}
	err = t.use(ctx, need{id: r.With, usage: hsm.DeriveP256}, func(s *session, with object) error {
		private, err := t.unseal(s, with, r.Sealed, want)
		if err != nil {
			return err
		}
		return t.settle(s, private, want)
	})
	return t.arrived(ctx, want, err)
}

// Adopt implements [hsm.Token] with C_CreateObject.
func (t *Token) Adopt(ctx context.Context, spec hsm.KeySpec, private *ecdh.PrivateKey) (hsm.Key, error) {
	want, err := check.Adopt(spec, private)
	if err != nil {
		return hsm.Key{}, err
	}
	if err := t.have.check(using(spec.Usage)); err != nil {
		return hsm.Key{}, err
	}
	t.keepMu.Lock()
	defer t.keepMu.Unlock()
	if err := t.room(ctx, want); err != nil {
		return hsm.Key{}, err
	}
	err = t.run(ctx, want.ID, func(s *session) error {
		h, err := t.create(s, want, private.Bytes())
		if err != nil {
			return err
		}
		return t.settle(s, h, want)
	})
	return t.arrived(ctx, want, err)
}

// room refuses a key whose label or id is taken.
func (t *Token) room(ctx context.Context, k hsm.Key) error {
	for _, name := range []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_LABEL, k.Label), pkcs11.NewAttribute(pkcs11.CKA_ID, k.ID[:]),
	} {
		if err := t.vacant(ctx, name); err != nil {
			return fmt.Errorf("key %q, %s: %w", k.Label, k.ID, err)
		}
	}
	return nil
}

// arrived reads a key that was put on the token.
func (t *Token) arrived(ctx context.Context, want hsm.Key, err error) (hsm.Key, error) {
	if err != nil {
		return hsm.Key{}, fmt.Errorf("putting key %q, %s on the token: %w", want.Label, want.ID, err)
	}
	o, err := t.resolve(ctx, want.ID)
	if err == nil && o.Usage != want.Usage {
		err = fmt.Errorf("key %s became one for %s, not %s: %w", want.ID, o.Usage, want.Usage, hsm.ErrUnavailable)
	}
	return o.Key, err
}

// kept is the template of a private or secret key in its final form.
func (p profile) kept(k hsm.Key) []*pkcs11.Attribute {
	return append(append(p.guarded(false), final(k.ID[:], k.Label)...), p.kind()...)
}

// unseal opens a sealed copy straight to its final form.
func (t *Token) unseal(s *session, with object, sealed hsm.Sealed, k hsm.Key) (key pkcs11.ObjectHandle, err error) {
	recipient, err := with.ECDH()
	if err != nil {
		return 0, at("C_DeriveKey", err)
	}
	point, wrapped := kwp.Split(sealed)
	spec := hsm.KeySpec{Label: k.Label, Usage: k.Usage}
	from := agreement{point, kwp.Context(spec, recipient.Bytes(), point)}
	// It wraps as well for the sake of judged.
	kek, err := t.kek(s, with.handle, from, pkcs11.CKA_UNWRAP, pkcs11.CKA_WRAP)
	if err != nil {
		return 0, err
	}
	defer t.destroy(s, kek, &err)
	err = t.fitting(func() (err error) {
		p := t.profile(k.Usage)
		template := t.restricted(p, p.kept(k))
		if k.Usage == hsm.WrapKey && t.extras >= most {
			key, err = t.native.unwrapWrapping(s, t.kwp, kek, wrapped, template)
		} else {
			key, err = t.ctx.UnwrapKey(s.handle, t.wrapping(), kek, wrapped, template)
		}
		return at("C_UnwrapKey", err)
	})
	if blames(err) {
		err = t.unopened(s, kek, wrapped, err)
	}
	return key, err
}

// unopened decides whose fault it is that a sealed copy did not become a key.
// One that becomes a secret of no use is whole; then the module cannot have keys
// of that kind by C_UnwrapKey.
func (t *Token) unopened(s *session, kek pkcs11.ObjectHandle, wrapped []byte, failed error) (err error) {
	secret, err := t.ctx.UnwrapKey(s.handle, t.wrapping(), kek, wrapped, passing(pkcs11.CKK_GENERIC_SECRET, false))
	if err != nil {
		return t.judged(s, object{handle: kek}, err)
	}
	defer t.destroy(s, secret, &err)
	return at("C_UnwrapKey with CKM_AES_KEY_WRAP_PAD", fmt.Errorf("%v: %w", failed, errLacking))
}

// create puts a private key from memory on the token.
func (t *Token) create(s *session, k hsm.Key, value []byte) (key pkcs11.ObjectHandle, err error) {
	p := t.profile(k.Usage)
	secret := pkcs11.NewAttribute(pkcs11.CKA_VALUE, value)
	defer clear(secret.Value)
	err = t.fitting(func() error {
		template := append(t.restricted(p, p.kept(k)), pkcs11.NewAttribute(pkcs11.CKA_EC_PARAMS, p.params), secret)
		key, err = t.ctx.CreateObject(s.handle, template)
		return at("C_CreateObject", err)
	})
	return key, err
}

// settle has a key on the token prove that it is the one it is said to be, and
// adds its public half. A key that is not goes again.
func (t *Token) settle(s *session, h pkcs11.ObjectHandle, k hsm.Key) (err error) {
	defer func() {
		if err != nil {
			t.destroy(s, h, new(error)) // the first error counts
		}
	}()
	if !k.Usage.Pair() {
		return t.whole(s, h)
	}
	if err := t.prove(s, object{k, h}); err != nil {
		return err
	}
	public, id, err := check.ParsePublic(k.Public)
	if err != nil {
		return at("C_CreateObject", err)
	}
	p := profiles[k.Usage]
	values, err := half{key: public, spki: k.Public, id: id}.values()
	if err != nil {
		return at("C_CreateObject", err)
	}
	template := append(append(p.verifying(), final(k.ID[:], k.Label)...), values...)
	p.class = pkcs11.CKO_PUBLIC_KEY
	_, err = t.ctx.CreateObject(s.handle, append(template, p.kind()...))
	return at("C_CreateObject", err)
}

// prove uses a private key once and checks the outcome with the public half.
func (t *Token) prove(s *session, o object) error {
	if o.Usage == hsm.DeriveP256 {
		return t.proveDerive(s, o)
	}
	public, _, err := check.ParsePublic(o.Public)
	if err != nil {
		return at("C_Sign", err)
	}
	alg := o.Usage.Proof()
	input := random(max(alg.Hash().Size(), sha256.Size))
	sig, err := t.sign(s, o, alg, input)
	if err != nil {
		return mismatch(err)
	}
	if check.Verify(public, alg, input, sig) != nil {
		return at("C_Sign", errWrapped)
	}
	return nil
}

// mismatch takes what a key of another kind or size answers for what it is.
func mismatch(err error) error {
	code, _ := codeOf(err)
	short := errors.Is(err, errShort) || code == pkcs11.CKR_BUFFER_TOO_SMALL
	if c := classify(err); short || c == wrongKey || c == input {
		return at("C_Sign", errWrapped)
	}
	return err
}

func (t *Token) proveDerive(s *session, o object) error {
	public, err := o.ECDH()
	if err != nil {
		return at("C_DeriveKey", err)
	}
	peer, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		return at("C_DeriveKey", err)
	}
	want, err := peer.ECDH(public)
	if err != nil {
		return at("C_DeriveKey", err)
	}
	got, err := t.derive(s, o, peer.PublicKey().Bytes())
	if err != nil {
		return mismatch(err)
	}
	if !bytes.Equal(got, want) {
		return at("C_DeriveKey", errWrapped)
	}
	return nil
}
