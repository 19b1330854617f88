package pkcs11

import (
	"crypto"
	"crypto/ecdh"
	goecdsa "crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/asn1"
	"fmt"
	"math/big"
	"slices"

	"github.com/miekg/pkcs11"

	"countersign/hsm"
	"countersign/hsm/internal/check"
)

// CKA_EC_PARAMS of our keys, the DER of 1.2.840.10045.3.1.7, 1.3.132.0.34 and
// 1.3.101.112 (RFC 5480 §2.1.1.1, RFC 8410 §3).
var (
	oidP256    = []byte{0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07}
	oidP384    = []byte{0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22}
	oidEd25519 = []byte{0x06, 0x03, 0x2b, 0x65, 0x70}
	// nameEd25519 is the curveName of PKCS#11 v3.0 §2.3.5, a PrintableString.
	nameEd25519 = append([]byte{0x13, 12}, "edwards25519"...)

	curves = map[string][]byte{"P-256": oidP256, "P-384": oidP384, "Ed25519": oidEd25519}
)

// publicKey is a public key on a token.
type publicKey struct {
	key    crypto.PublicKey
	spki   []byte
	id     hsm.KeyID           // from its hash, not its CKA_ID
	handle pkcs11.ObjectHandle // 0 if it is not on the token
}

// publicOf reads a public key. It returns false if package hsm has no usage for it.
func (t *Token) publicOf(s *session, h pkcs11.ObjectHandle, keyType uint) (p publicKey, ok bool, err error) {
	first, second := uint(pkcs11.CKA_EC_PARAMS), uint(pkcs11.CKA_EC_POINT)
	if keyType == pkcs11.CKK_RSA {
		first, second = pkcs11.CKA_MODULUS, pkcs11.CKA_PUBLIC_EXPONENT
	}
	a, ok, err := t.attributes(s, h, first, second)
	if err != nil || !ok {
		return p, false, err
	}
	if p.key, err = parsePublic(keyType, a[0], a[1]); err != nil {
		return p, false, nil
	}
	if p.spki, p.id, err = check.Encode(p.key); err != nil {
		return p, false, nil
	}
	return p, true, nil
}

// parsePublic decodes CKA_EC_PARAMS and CKA_EC_POINT, or CKA_MODULUS and
// CKA_PUBLIC_EXPONENT.
func parsePublic(keyType uint, first, second []byte) (crypto.PublicKey, error) {
	switch {
	case keyType == pkcs11.CKK_RSA && len(second) <= 4:
		e := new(big.Int).SetBytes(second)
		return &rsa.PublicKey{N: new(big.Int).SetBytes(first), E: int(e.Int64())}, nil
	case keyType == pkcs11.CKK_EC && slices.Equal(first, oidP256):
		return parsePoint(elliptic.P256(), second)
	case keyType == pkcs11.CKK_EC && slices.Equal(first, oidP384):
		return parsePoint(elliptic.P384(), second)
	case keyType == ckkECEdwards && (slices.Equal(first, oidEd25519) || slices.Equal(first, nameEd25519)):
		point, err := decodePoint(second, ed25519.PublicKeySize)
		return ed25519.PublicKey(point), err
	}
	return nil, fmt.Errorf("public key of type %#x is of an unsupported kind", keyType)
}

func parsePoint(curve elliptic.Curve, v []byte) (crypto.PublicKey, error) {
	point, err := decodePoint(v, 1+2*((curve.Params().BitSize+7)/8))
	if err != nil {
		return nil, err
	}
	return goecdsa.ParseUncompressedPublicKey(curve, point)
}

// decodePoint accepts CKA_EC_POINT of size bytes as the OCTET STRING of the standard, and
// as the bare point and the BIT STRING that some modules return.
func decodePoint(v []byte, size int) ([]byte, error) {
	if len(v) == size {
		return v, nil
	}
	var octets []byte
	if rest, err := asn1.Unmarshal(v, &octets); err == nil && len(rest) == 0 && len(octets) == size {
		return octets, nil
	}
	var bits asn1.BitString
	if rest, err := asn1.Unmarshal(v, &bits); err == nil && len(rest) == 0 && bits.BitLength == 8*size {
		return bits.Bytes, nil
	}
	return nil, fmt.Errorf("EC point of %d bytes has an unsupported encoding", len(v))
}

// values returns the attributes that determine the public key; the inverse of parsePublic.
func (p publicKey) values() ([]*pkcs11.Attribute, error) {
	params, point := []byte(nil), []byte(nil)
	switch k := p.key.(type) {
	case *rsa.PublicKey:
		return []*pkcs11.Attribute{
			pkcs11.NewAttribute(pkcs11.CKA_MODULUS, k.N.Bytes()),
			pkcs11.NewAttribute(pkcs11.CKA_PUBLIC_EXPONENT, big.NewInt(int64(k.E)).Bytes()),
		}, nil
	case *goecdsa.PublicKey:
		if params = oidP256; k.Curve == elliptic.P384() {
			params = oidP384
		}
		var err error
		if point, err = k.Bytes(); err != nil {
			return nil, err
		}
	case *ecdh.PublicKey:
		params, point = oidP256, k.Bytes()
	case ed25519.PublicKey:
		params, point = oidEd25519, k
	}
	octets, err := asn1.Marshal(point)
	return []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_EC_PARAMS, params),
		pkcs11.NewAttribute(pkcs11.CKA_EC_POINT, octets),
	}, err
}
