package pkcs11

import (
	"context"
	"crypto/ecdh"
	"crypto/rand"

	"github.com/miekg/pkcs11"

	"countersign/hsm"
	"countersign/hsm/internal/check"
	"countersign/hsm/internal/kwp"
)

// Derive implements [hsm.Token] with CKM_ECDH1_DERIVE and no KDF.
func (t *Token) Derive(ctx context.Context, key hsm.KeyID, peer *ecdh.PublicKey) (z []byte, err error) {
	if err := check.Peer(peer); err != nil {
		return nil, err
	}
	err = t.use(ctx, need{id: key, usage: hsm.DeriveP256}, func(s *session, o object) (err error) {
		z, err = t.derive(s, o, peer.Bytes())
		return err
	})
	return z, err
}

// derive reads the secret once from a session object, which is destroyed
// whatever happens: what cannot be destroyed closes its session, and the
// object goes with that.
func (t *Token) derive(s *session, o object, peer []byte) (z []byte, err error) {
	secret, err := t.ctx.DeriveKey(s.handle, agree(peer), o.handle, derived())
	if err != nil {
		return nil, at("C_DeriveKey", err)
	}
	z, err = t.native.value(s.handle, secret, check.SecretLen)
	err = at("C_GetAttributeValue", err)
	if t.destroy(s, secret, &err); err != nil {
		clear(z)
		return nil, err
	}
	return z, nil
}

func agree(peer []byte) []*pkcs11.Mechanism {
	params := pkcs11.NewECDH1DeriveParams(pkcs11.CKD_NULL, nil, peer)
	return []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_ECDH1_DERIVE, params)}
}

// destroy ends a session object. Its failing is the call's, for it says that
// the session is to be closed.
func (t *Token) destroy(s *session, h pkcs11.ObjectHandle, err *error) {
	if gone := t.ctx.DestroyObject(s.handle, h); gone != nil {
		*err = at("C_DestroyObject", gone)
	}
}

func derived() []*pkcs11.Attribute {
	return []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY),
		pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_GENERIC_SECRET),
		pkcs11.NewAttribute(pkcs11.CKA_VALUE_LEN, check.SecretLen),
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, false),
		pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, false),
		pkcs11.NewAttribute(pkcs11.CKA_SENSITIVE, false),
		pkcs11.NewAttribute(pkcs11.CKA_EXTRACTABLE, true),
	}
}

// Import implements [hsm.Token] with CKM_ECDH1_DERIVE, CKM_AES_ECB_ENCRYPT_DATA
// and CKM_AES_KEY_WRAP_PAD, all on session objects.
func (t *Token) Import(ctx context.Context, i hsm.Import) (wrapped []byte, err error) {
	if err := check.Import(i); err != nil {
		return nil, err
	}
	keys := []need{{id: i.Enrol, usage: hsm.DeriveP256}, {id: i.Wrap, usage: hsm.WrapKey}}
	err = t.useAll(ctx, keys, func(s *session, o []object) (err error) {
		if t.hostImport {
			wrapped, err = t.importHere(s, o, i)
		} else {
			wrapped, err = t.importInside(s, o, i)
		}
		return err
	})
	return wrapped, err
}

// MACWrapped implements [hsm.Token] with CKM_AES_KEY_WRAP_PAD and
// CKM_SHA256_HMAC.
func (t *Token) MACWrapped(ctx context.Context, wrap hsm.KeyID, wrapped, data []byte) (mac []byte, err error) {
	if err := check.MACWrapped(wrapped, data); err != nil {
		return nil, err
	}
	err = t.use(ctx, need{id: wrap, usage: hsm.WrapKey}, func(s *session, o object) (err error) {
		secret, err := t.unwrap(s, o, wrapped)
		if err != nil {
			return err
		}
		defer t.destroy(s, secret, &err)
		mac, err = t.native.sign(s, secret, hmacSHA256, data)
		return err
	})
	return mac, err
}

// unwrap makes a secret that wrap keeps a key for MACs that stays inside.
func (t *Token) unwrap(s *session, wrap object, wrapped []byte) (pkcs11.ObjectHandle, error) {
	template := passing(pkcs11.CKK_GENERIC_SECRET, false, pkcs11.CKA_SIGN)
	secret, err := t.ctx.UnwrapKey(s.handle, t.wrapping(), wrap.handle, wrapped, template)
	return secret, t.judged(s, wrap, err)
}

// importInside leaves nothing but the wrapped secret to this process. The
// secret is extractable for as long as wrap needs that.
func (t *Token) importInside(s *session, o []object, i hsm.Import) (wrapped []byte, err error) {
	enrol, wrap := o[0], o[1]
	kek, err := t.kek(s, enrol.handle, agreement{i.Ephemeral.Bytes(), i.Context}, pkcs11.CKA_UNWRAP)
	if err != nil {
		return nil, err
	}
	defer t.destroy(s, kek, &err)
	secret, err := t.ctx.UnwrapKey(s.handle, t.wrapping(), kek, i.Wrapped, passing(pkcs11.CKK_GENERIC_SECRET, true))
	if err != nil {
		return nil, t.judged(s, wrap, err)
	}
	defer t.destroy(s, secret, &err)
	if err := t.whole(s, secret); err != nil {
		return nil, err
	}
	wrapped, err = t.native.wrap(s, t.kwp, wrap.handle, secret)
	return wrapped, at("C_WrapKey", err)
}

// agreement is the other side of an ECDH and what a KEK is made for.
type agreement struct {
	peer    []byte // point, 65 bytes
	context [32]byte
}

// kek makes AES-256-ECB(key = Z, context) a key for the usages, with Z of a
// private key and a peer. Neither leaves the module.
func (t *Token) kek(s *session, private pkcs11.ObjectHandle, a agreement, usage ...uint) (kek pkcs11.ObjectHandle, err error) {
	z, err := t.ctx.DeriveKey(s.handle, agree(a.peer), private, sized(passing(pkcs11.CKK_AES, false, pkcs11.CKA_DERIVE)))
	if err != nil {
		return 0, at("C_DeriveKey", err)
	}
	defer t.destroy(s, z, &err)
	kek, err = t.native.encryptData(s.handle, z, a.context[:], sized(passing(pkcs11.CKK_AES, false, usage...)))
	return kek, at("C_DeriveKey", err)
}

// whole refuses a secret of less than 32 bytes, which its wrapping does not
// show. SoftHSM says 0 of every key that was unwrapped; a short one is then
// taken, to the harm of nobody but whoever chose it.
func (t *Token) whole(s *session, secret pkcs11.ObjectHandle) error {
	a, err := t.ctx.GetAttributeValue(s.handle, secret, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_VALUE_LEN, nil)})
	if err != nil {
		return at("C_GetAttributeValue", err)
	}
	if n := ulong(a[0].Value); n != 0 && n != check.SecretLen {
		return at("C_GetAttributeValue", errWrapped)
	}
	return nil
}

// importHere has the secret in this process, until wrap has it.
func (t *Token) importHere(s *session, o []object, i hsm.Import) (wrapped []byte, err error) {
	z, err := t.derive(s, o[0], i.Ephemeral.Bytes())
	if err != nil {
		return nil, err
	}
	defer clear(z)
	secret, err := kwp.Open(z, i)
	if err != nil {
		return nil, at("unwrapping", errWrapped)
	}
	defer clear(secret)
	return t.wrap(s, o[1], secret)
}

// wrap is C_WrapKey of 32 bytes that are in this process.
func (t *Token) wrap(s *session, wrap object, secret []byte) (wrapped []byte, err error) {
	value := pkcs11.NewAttribute(pkcs11.CKA_VALUE, secret)
	defer clear(value.Value)
	h, err := t.ctx.CreateObject(s.handle, append(passing(pkcs11.CKK_GENERIC_SECRET, true), value))
	if err != nil {
		return nil, at("C_CreateObject", err)
	}
	defer t.destroy(s, h, &err)
	wrapped, err = t.native.wrap(s, t.kwp, wrap.handle, h)
	return wrapped, at("C_WrapKey", err)
}

// judged decides whose fault a failed C_UnwrapKey is. SoftHSM answers
// CKR_GENERAL_ERROR to what is not the wrapping of anything, as it does when it
// is broken; but then it cannot unwrap either what wrap has just wrapped.
func (t *Token) judged(s *session, wrap object, err error) error {
	if blames(err) && t.proves(s, wrap) == nil {
		return at("C_UnwrapKey", errWrapped)
	}
	return at("C_UnwrapKey", err)
}

// blames tells of errors that a module has for what cannot be decrypted as
// well as for its own failure.
func blames(err error) bool {
	code, _ := codeOf(err)
	return code == pkcs11.CKR_GENERAL_ERROR || code == pkcs11.CKR_FUNCTION_FAILED || code == pkcs11.CKR_DEVICE_ERROR
}

func (t *Token) proves(s *session, wrap object) (err error) {
	wrapped, err := t.wrap(s, wrap, random(check.SecretLen))
	if err != nil {
		return err
	}
	template := passing(pkcs11.CKK_GENERIC_SECRET, false, pkcs11.CKA_SIGN)
	secret, err := t.ctx.UnwrapKey(s.handle, t.wrapping(), wrap.handle, wrapped, template)
	if err != nil {
		return err
	}
	defer t.destroy(s, secret, &err)
	return nil
}

// wrapping is AES-KWP (RFC 5649) as the module calls it.
func (t *Token) wrapping() []*pkcs11.Mechanism {
	return []*pkcs11.Mechanism{pkcs11.NewMechanism(t.kwp, nil)}
}

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails, see crypto/rand.Read
	return b
}

// passing is the template of a session object with one usage or none, whose
// value is never to be read.
func passing(keyType uint, extractable bool, usage ...uint) []*pkcs11.Attribute {
	list := []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY),
		pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, keyType),
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, false),
		pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, true),
		pkcs11.NewAttribute(pkcs11.CKA_SENSITIVE, true),
		pkcs11.NewAttribute(pkcs11.CKA_EXTRACTABLE, extractable),
	}
	return append(list, flags(secretUsages, usage)...)
}

// sized adds the length of 32 bytes, which the derivation of a key takes and
// its unwrapping does not.
func sized(template []*pkcs11.Attribute) []*pkcs11.Attribute {
	return append(template, pkcs11.NewAttribute(pkcs11.CKA_VALUE_LEN, check.SecretLen))
}
