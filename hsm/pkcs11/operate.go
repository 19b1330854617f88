package pkcs11

import (
	"context"
	"crypto"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/miekg/pkcs11"

	"countersign/hsm"
	"countersign/hsm/internal/check"
	"countersign/hsm/internal/kwp"
)

// Sign implements [hsm.Token] with CKM_ECDSA, CKM_EDDSA, CKM_RSA_PKCS and
// CKM_RSA_PKCS_PSS. hsm/pool verifies the signature, outside of the process that the
// module shares.
func (t *Token) Sign(ctx context.Context, key hsm.KeyID, alg hsm.Algorithm, input []byte) (signature []byte, err error) {
	if err := check.Input(alg, input); err != nil {
		return nil, err
	}
	if err := t.have.check(capability{"signing with " + alg.String(), []string{alg.Mechanism()}}); err != nil {
		return nil, err
	}
	err = t.use(ctx, need{id: key, alg: alg}, func(s *session, o object) (err error) {
		signature, err = t.sign(s, o, alg, input)
		return err
	})
	return signature, err
}

func (t *Token) sign(s *session, o object, alg hsm.Algorithm, input []byte) ([]byte, error) {
	m := operation{mechanism: mechanisms[alg.Mechanism()], size: alg.Size(o.Usage)}
	switch m.mechanism {
	case pkcs11.CKM_RSA_PKCS:
		input = check.DigestInfo(alg.Hash(), input)
	case pkcs11.CKM_RSA_PKCS_PSS:
		m.parameter = pssParams(alg.Hash())
	}
	return t.native.sign(s, o.handle, m, input)
}

// pssParams returns CK_RSA_PKCS_PSS_PARAMS: hash, mask generation function and length of
// the salt.
func pssParams(hash crypto.Hash) []byte {
	ids := map[crypto.Hash][2]uint64{
		crypto.SHA256: {pkcs11.CKM_SHA256, pkcs11.CKG_MGF1_SHA256},
		crypto.SHA384: {pkcs11.CKM_SHA384, pkcs11.CKG_MGF1_SHA384},
		crypto.SHA512: {pkcs11.CKM_SHA512, pkcs11.CKG_MGF1_SHA512},
	}[hash]
	var b []byte
	for _, word := range []uint64{ids[0], ids[1], uint64(hash.Size())} {
		b = binary.NativeEndian.AppendUint64(b, word)
	}
	return b
}

// MAC implements [hsm.Token] with CKM_SHA256_HMAC.
func (t *Token) MAC(ctx context.Context, key hsm.KeyID, data []byte) (mac []byte, err error) {
	if err := check.Data(data); err != nil {
		return nil, err
	}
	err = t.use(ctx, need{id: key, usage: hsm.MACKey}, func(s *session, o object) (err error) {
		mac, err = t.mac(s, o.handle, data)
		return blamesInput(err)
	})
	return mac, err
}

// macPart is how much data some modules take at once. AWS CloudHSM takes 16,288 bytes.
const macPart = 16<<10 - 256

// mac is C_Sign with CKM_SHA256_HMAC. A module that refuses the length of the data gets it in parts.
func (t *Token) mac(s *session, key pkcs11.ObjectHandle, data []byte) ([]byte, error) {
	mac, err := t.native.sign(s, key, hmacSHA256, data)
	if code, _ := codeOf(err); code == pkcs11.CKR_DATA_LEN_RANGE && len(data) > macPart {
		return t.macInParts(s, key, data)
	}
	return mac, err
}

// macInParts is C_SignUpdate for each part.
func (t *Token) macInParts(s *session, key pkcs11.ObjectHandle, data []byte) ([]byte, error) {
	if err := t.ctx.SignInit(s.handle, []*pkcs11.Mechanism{pkcs11.NewMechanism(hmacSHA256.mechanism, nil)}, key); err != nil {
		return nil, at("C_SignInit", err)
	}
	for part := range slices.Chunk(data, macPart) {
		if err := t.ctx.SignUpdate(s.handle, part); err != nil {
			return nil, at("C_SignUpdate", err)
		}
	}
	mac, err := t.ctx.SignFinal(s.handle)
	if err == nil && len(mac) != hmacSHA256.size {
		err = errShort
	}
	return mac, at("C_SignFinal", err)
}

var hmacSHA256 = operation{mechanism: pkcs11.CKM_SHA256_HMAC, size: check.SecretLen}

// destroy destroys a session object. If that fails, it sets the error of the call, so that
// the session is closed.
func (t *Token) destroy(s *session, h pkcs11.ObjectHandle, err *error) {
	if gone := t.ctx.DestroyObject(s.handle, h); gone != nil {
		*err = at("C_DestroyObject", gone)
	}
}

// Import implements [hsm.Token] with CKM_ECDH1_DERIVE, CKM_AES_ECB_ENCRYPT_DATA
// and CKM_AES_KEY_WRAP_PAD, all on session objects.
func (t *Token) Import(ctx context.Context, i hsm.Import) (wrapped []byte, err error) {
	if err := check.Import(i); err != nil {
		return nil, err
	}
	keys := []need{{id: i.Enrol, usage: hsm.DeriveP256}, {id: i.Wrap, usage: hsm.WrapKey}}
	if t.ways.importer == importNone && !t.hostCheck {
		return nil, noImport(hsm.ErrUnsupported)
	}
	err = t.useAll(ctx, keys, func(s *session, o []object) (err error) {
		wrapped, err = t.importVerifier(s, o, i)
		return err
	})
	return wrapped, err
}

// noImport is the error of an import on a module that can do it neither inside nor in this process.
func noImport(class error) error {
	return fmt.Errorf("module imports no password verifiers: it lacks %s, and lets no secret of CKM_ECDH1_DERIVE out: %w", encryptData, class)
}

// importVerifier imports a secret in the way that was chosen.
func (t *Token) importVerifier(s *session, o []object, i hsm.Import) ([]byte, error) {
	if t.ways.importer == importWorker || o[1].host {
		return t.importHere(s, o, i)
	}
	return t.importInside(s, o, i)
}

// MACWrapped implements [hsm.Token] with CKM_AES_KEY_WRAP_PAD and
// CKM_SHA256_HMAC.
func (t *Token) MACWrapped(ctx context.Context, wrap hsm.KeyID, wrapped, data []byte) (mac []byte, err error) {
	if err := check.MACWrapped(wrapped, data); err != nil {
		return nil, err
	}
	err = t.use(ctx, need{id: wrap, usage: hsm.WrapKey}, func(s *session, o object) (err error) {
		if o.host {
			mac, err = t.macHere(s, o, wrapped, data)
			return err
		}
		secret, err := t.unwrap(s, o, wrapped)
		if err != nil {
			return err
		}
		defer t.destroy(s, secret, &err)
		mac, err = t.mac(s, secret, data)
		return blamesInput(err)
	})
	return mac, err
}

// unwrap makes a wrapped secret a session key for MACs.
func (t *Token) unwrap(s *session, wrap object, wrapped []byte) (pkcs11.ObjectHandle, error) {
	template := t.sessionSecret(t.ways.mac.keyType, false, pkcs11.CKA_SIGN)
	secret, err := t.unwrapUnder(s, wrap.handle, wrapped, template)
	return secret, t.unwrapError(s, wrap, err)
}

// importInside imports a secret that this process never sees unwrapped. The secret is
// extractable while it is wrapped again.
func (t *Token) importInside(s *session, o []object, i hsm.Import) (wrapped []byte, err error) {
	enrol, wrap := o[0], o[1]
	kek, err := t.kek(s, enrol.handle, agreement{i.Ephemeral.Bytes(), i.Context}, pkcs11.CKA_UNWRAP)
	if err != nil {
		return nil, err
	}
	defer t.destroy(s, kek, &err)
	secret, err := t.ctx.UnwrapKey(s.handle, t.wrapping(), kek, i.Wrapped, t.sessionSecret(t.ways.mac.keyType, true))
	if err != nil {
		return nil, t.unwrapError(s, wrap, err)
	}
	defer t.destroy(s, secret, &err)
	if err := t.checkLength(s, secret); err != nil {
		return nil, err
	}
	return t.wrapUnder(s, wrap.handle, secret)
}

// agreement is the peer of an ECDH and the context of the KEK.
type agreement struct {
	peer    []byte // point, 65 bytes
	context [32]byte
}

// kek makes AES-256-ECB(key = Z, context) a session key with the usages. Z is the ECDH of
// a private key and a peer. Neither leaves the module.
func (t *Token) kek(s *session, private pkcs11.ObjectHandle, a agreement, usage ...uint) (kek pkcs11.ObjectHandle, err error) {
	z, err := t.ctx.DeriveKey(s.handle, ecdhMechanism(a.peer), private, withLength(t.sessionSecret(pkcs11.CKK_AES, false, pkcs11.CKA_DERIVE)))
	if err != nil {
		return 0, at("C_DeriveKey", err)
	}
	defer t.destroy(s, z, &err)
	kek, err = t.native.encryptData(s.handle, z, a.context[:], withLength(t.sessionSecret(pkcs11.CKK_AES, false, usage...)))
	return kek, at("C_DeriveKey", err)
}

// checkLength refuses a secret that is not 32 bytes long, which its wrapping does not
// show. SoftHSM reports 0 for every key that was unwrapped. A short secret is accepted
// then; it harms only the party that chose it.
func (t *Token) checkLength(s *session, secret pkcs11.ObjectHandle) error {
	a, err := t.ctx.GetAttributeValue(s.handle, secret, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_VALUE_LEN, nil)})
	if err != nil {
		return at("C_GetAttributeValue", err)
	}
	if n := ulong(a[0].Value); n != 0 && n != check.SecretLen {
		return at("C_GetAttributeValue", errWrapped)
	}
	return nil
}

// importHere imports a secret through the memory of this process.
func (t *Token) importHere(s *session, o []object, i hsm.Import) (wrapped []byte, err error) {
	if t.ways.agreement != agreeRead {
		return nil, at("C_DeriveKey", noImport(errLacking))
	}
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
	return t.keep(s, o[1], secret)
}

// wrap is C_WrapKey of 32 bytes from the memory of this process.
func (t *Token) wrap(s *session, wrap object, secret []byte) (wrapped []byte, err error) {
	value := pkcs11.NewAttribute(pkcs11.CKA_VALUE, secret)
	defer clear(value.Value)
	h, err := t.ctx.CreateObject(s.handle, append(t.sessionSecret(t.ways.mac.keyType, true), value))
	if err != nil {
		return nil, at("C_CreateObject", err)
	}
	defer t.destroy(s, h, &err)
	return t.wrapUnder(s, wrap.handle, h)
}

// unwrapError decides whether a failed C_UnwrapKey is the fault of the input or of the
// module. SoftHSM answers CKR_GENERAL_ERROR to a malformed wrapping as well as when it is
// broken, and a broken module may answer CKR_WRAPPED_KEY_INVALID; but when it is broken, it
// cannot unwrap a fresh wrapping either.
func (t *Token) unwrapError(s *session, wrap object, err error) error {
	blames := err != nil && classify(err) == input
	switch {
	case !blames && !ambiguous(err):
		return at("C_UnwrapKey", err)
	case t.canUnwrap(s, wrap) == nil:
		return at("C_UnwrapKey", errWrapped)
	case blames:
		return at("C_UnwrapKey", fmt.Errorf("%v, also for a key that it has just wrapped: %w", err, errBroken))
	}
	return at("C_UnwrapKey", err)
}

// blamesInput turns an error that blames the input into one of the module, for a call whose
// input was checked before.
func blamesInput(err error) error {
	if err != nil && classify(err) == input {
		return fmt.Errorf("%v: %w", err, errBroken)
	}
	return err
}

// ambiguous reports whether modules return the error for malformed input as well as for
// their own failure.
func ambiguous(err error) bool {
	code, _ := codeOf(err)
	return code == pkcs11.CKR_GENERAL_ERROR || code == pkcs11.CKR_FUNCTION_FAILED || code == pkcs11.CKR_DEVICE_ERROR
}

// canUnwrap returns an error if the key does not unwrap what it has just wrapped.
func (t *Token) canUnwrap(s *session, wrap object) (err error) {
	wrapped, err := t.wrap(s, wrap, random(check.SecretLen))
	if err != nil {
		return err
	}
	template := t.sessionSecret(t.ways.mac.keyType, false, pkcs11.CKA_SIGN)
	secret, err := t.unwrapUnder(s, wrap.handle, wrapped, template)
	if err != nil {
		return err
	}
	defer t.destroy(s, secret, &err)
	return nil
}

// wrapping returns the mechanism AES-KWP (RFC 5649) of the module.
func (t *Token) wrapping() []*pkcs11.Mechanism {
	return []*pkcs11.Mechanism{pkcs11.NewMechanism(t.ways.wrapping.mechanism, nil)}
}

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails, see crypto/rand.Read
	return b
}

// sessionSecret returns the template of a session object with one usage or none, whose
// value cannot be read.
func (t *Token) sessionSecret(keyType uint, extractable bool, usage ...uint) []*pkcs11.Attribute {
	list := []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY),
		pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, keyType),
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, false),
		pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, true),
		pkcs11.NewAttribute(pkcs11.CKA_SENSITIVE, true),
		pkcs11.NewAttribute(pkcs11.CKA_EXTRACTABLE, extractable),
	}
	return append(list, t.seen(flags(secretUsages, usage))...)
}

// withLength adds the length of 32 bytes, which a derivation needs and an unwrapping must
// not have.
func withLength(template []*pkcs11.Attribute) []*pkcs11.Attribute {
	return append(template, pkcs11.NewAttribute(pkcs11.CKA_VALUE_LEN, check.SecretLen))
}

// Rewrap implements [hsm.Token] with C_UnwrapKey and C_WrapKey of a sensitive session
// object. It is extractable meanwhile: PKCS#11 wraps no other.
func (t *Token) Rewrap(ctx context.Context, r hsm.Rewrap) (wrapped []byte, err error) {
	if err := check.Kept(r.Wrapped); err != nil {
		return nil, err
	}
	keys := []need{{id: r.From, usage: hsm.WrapKey}, {id: r.To, usage: hsm.WrapKey}}
	err = t.useAll(ctx, keys, func(s *session, o []object) (err error) {
		if o[0].host || o[1].host {
			wrapped, err = t.rewrapHere(s, o[0], o[1], r.Wrapped)
		} else {
			wrapped, err = t.rewrap(s, o[0], o[1], r.Wrapped)
		}
		return err
	})
	return wrapped, err
}

func (t *Token) rewrap(s *session, from, to object, old []byte) (wrapped []byte, err error) {
	secret, err := t.unwrapUnder(s, from.handle, old, t.sessionSecret(t.ways.mac.keyType, true))
	if unsupported(err) {
		return nil, t.notExtractable(s, from, old, at("C_UnwrapKey", err))
	}
	if err != nil {
		return nil, t.unwrapError(s, from, err)
	}
	defer t.destroy(s, secret, &err)
	wrapped, err = t.wrapUnder(s, to.handle, secret)
	if code, _ := codeOf(err); code == pkcs11.CKR_KEY_UNEXTRACTABLE { // the module ignores the template
		return nil, t.notExtractable(s, from, old, err)
	}
	return wrapped, err
}

// notExtractable returns the error of a secret that from does not release again. It first
// checks that from can unwrap the secret: it may belong to another key, which releases it.
func (t *Token) notExtractable(s *session, from object, wrapped []byte, refused error) (err error) {
	secret, err := t.unwrap(s, from, wrapped)
	if err != nil {
		return err
	}
	defer t.destroy(s, secret, &err)
	return fmt.Errorf("%v: CKA_UNWRAP_TEMPLATE of %s keeps what it unwraps from being wrapped anew: %w", refused, from.Label, errLacking)
}
