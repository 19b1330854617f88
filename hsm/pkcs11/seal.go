package pkcs11

import (
	"github.com/miekg/pkcs11"

	"countersign/hsm"
	"countersign/hsm/internal/kwp"
)

// sealAll makes a sealed copy of a key for each recipient of its spec. Nothing
// of the key, nor of what wraps it, leaves the module but the copies.
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

// seal makes one copy, with an ephemeral key pair of the module's.
func (t *Token) seal(s *session, key pkcs11.ObjectHandle, spec hsm.KeySpec, recipient []byte) (sealed hsm.Sealed, err error) {
	p := profiles[hsm.DeriveP256]
	id := random(len(hsm.KeyID{}))
	ephemeral, err := t.draftAlone(s, p, pair{p.publicHalf(id), p.privateHalf(id, false)})
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
	wrapped, err := t.native.wrap(s, t.kwp, kek, key)
	if err != nil {
		return nil, at("C_WrapKey with CKM_AES_KEY_WRAP_PAD of a key for "+spec.Usage.String(), err)
	}
	return append(point, wrapped...), nil
}

// point is the point of a public key on P-256, 65 bytes.
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
