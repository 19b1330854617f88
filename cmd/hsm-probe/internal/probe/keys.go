package probe

import (
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/asn1"
	"math/big"

	"github.com/miekg/pkcs11"
)

// curve is a NIST curve with CKA_EC_PARAMS and the digest signed on it.
type curve struct {
	elliptic.Curve
	params []byte
	size   int // of r, of s and of the digest in bytes
}

var (
	curveP256 = curve{elliptic.P256(), []byte{6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7}, 32}
	curveP384 = curve{elliptic.P384(), []byte{6, 5, 0x2b, 0x81, 4, 0, 0x22}, 48}
	// paramsEd25519 is the OID of RFC 8410; curveName the PrintableString that
	// PKCS#11 v3.0 §2.3.10 has too, and SoftHSM wants.
	paramsEd25519 = []byte{6, 3, 0x2b, 0x65, 0x70}
	curveName     = append([]byte{0x13, 12}, "edwards25519"...)
)

func (p *prober) makeP256() (err error) {
	if p.p256, err = p.generateEC(curveP256.params, pkcs11.CKA_SIGN); err != nil {
		return err
	}
	p.derive, err = p.generateEC(curveP256.params, pkcs11.CKA_DERIVE)
	return err
}

func (p *prober) makeP384() (err error) {
	p.p384, err = p.generateEC(curveP384.params, pkcs11.CKA_SIGN)
	return err
}

// generateEC makes a pair with one usage, as the appliance's are.
func (p *prober) generateEC(params []byte, usage uint) (pair, error) {
	return p.curvePair(pkcs11.CKM_EC_KEY_PAIR_GEN, params, usage)
}

func (p *prober) curvePair(mechanism uint, params []byte, usage uint) (pair, error) {
	k, err := p.generatePair(mechanism,
		[]*pkcs11.Attribute{attr(pkcs11.CKA_EC_PARAMS, params), attr(pkcs11.CKA_VERIFY, usage == pkcs11.CKA_SIGN)},
		[]*pkcs11.Attribute{
			attr(pkcs11.CKA_SENSITIVE, true), attr(pkcs11.CKA_EXTRACTABLE, false),
			attr(pkcs11.CKA_SIGN, usage == pkcs11.CKA_SIGN), attr(pkcs11.CKA_DERIVE, usage == pkcs11.CKA_DERIVE),
		})
	if err != nil {
		return pair{}, err
	}
	k.point, err = p.value(k.public, pkcs11.CKA_EC_POINT)
	return k, err
}

func (p *prober) makeEd25519() (err error) {
	p.ed25519, err = p.curvePair(ckmEdwardsKeyPairGen, paramsEd25519, pkcs11.CKA_SIGN)
	if err != nil {
		if k, again := p.curvePair(ckmEdwardsKeyPairGen, curveName, pkcs11.CKA_SIGN); again == nil {
			p.ed25519, err = k, nil
		}
	}
	return err
}

// sign is C_SignInit and C_Sign.
func (p *prober) sign(m []*pkcs11.Mechanism, key pkcs11.ObjectHandle, in []byte) ([]byte, error) {
	if key == 0 {
		return nil, errNoKey
	}
	if err := p.SignInit(p.main, m, key); err != nil {
		return nil, at("C_SignInit", err)
	}
	out, err := p.Sign(p.main, in)
	return out, at("C_Sign", err)
}

func (p *prober) ecdsa(k pair, c curve) error {
	sum := sha512.Sum512([]byte("probe"))
	digest := sum[:c.size]
	sig, err := p.sign(mech(pkcs11.CKM_ECDSA, nil), k.private, digest)
	if err != nil {
		return err
	}
	return verify(k.point, c, signed{digest, sig})
}

func (p *prober) ecdsaSHA256() error {
	sig, err := p.sign(mech(pkcs11.CKM_ECDSA_SHA256, nil), p.p256.private, []byte("probe"))
	if err != nil {
		return err
	}
	digest := sha256.Sum256([]byte("probe"))
	return verify(p.p256.point, curveP256, signed{digest[:], sig})
}

// signed is a digest with its signature r‖s.
type signed struct{ digest, sig []byte }

func verify(point []byte, c curve, s signed) error {
	public, ok := publicKey(point, c)
	if !ok || len(s.sig) != 2*c.size ||
		!ecdsa.Verify(public, s.digest, new(big.Int).SetBytes(s.sig[:c.size]), new(big.Int).SetBytes(s.sig[c.size:])) {
		return errWrong
	}
	return nil
}

func publicKey(v []byte, c curve) (*ecdsa.PublicKey, bool) {
	point, _ := bare(v)
	key, err := ecdsa.ParseUncompressedPublicKey(c.Curve, point)
	return key, err == nil
}

// bare decodes CKA_EC_POINT and names its encoding.
func bare(v []byte) (point []byte, form string) {
	var octets []byte
	if rest, err := asn1.Unmarshal(v, &octets); err == nil && len(rest) == 0 {
		return octets, "OCTET STRING"
	}
	var bits asn1.BitString
	if rest, err := asn1.Unmarshal(v, &bits); err == nil && len(rest) == 0 {
		return bits.Bytes, "BIT STRING"
	}
	return v, "raw"
}

func (p *prober) eddsa() error {
	message := []byte("probe")
	sig, err := p.sign(mech(ckmEdDSA, nil), p.ed25519.private, message)
	if err != nil {
		return err
	}
	point, _ := bare(p.ed25519.point)
	if len(point) != ed25519.PublicKeySize || !ed25519.Verify(point, message, sig) {
		return errWrong
	}
	return nil
}

// ecdh derives, reads the secret and destroys it, as the appliance does.
func (p *prober) ecdh() error {
	if p.derive.private == 0 {
		return errNoKey
	}
	point, _ := bare(p.derive.point)
	theirs, err := ecdh.P256().NewPublicKey(point)
	if err != nil {
		return errWrong
	}
	ours, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	want, err := ours.ECDH(theirs)
	if err != nil {
		return err
	}
	h, err := p.deriveSecret(p.derive.private, ours.PublicKey().Bytes())
	if err != nil {
		return err
	}
	got, err := p.value(h, pkcs11.CKA_VALUE)
	if gone := p.DestroyObject(p.main, h); err == nil {
		err = at("C_DestroyObject", gone)
	}
	if err == nil && string(got) != string(want) {
		err = errWrong
	}
	return err
}

func (p *prober) deriveSecret(key pkcs11.ObjectHandle, peer []byte) (pkcs11.ObjectHandle, error) {
	params := pkcs11.NewECDH1DeriveParams(pkcs11.CKD_NULL, nil, peer)
	h, err := p.DeriveKey(p.main, mech(pkcs11.CKM_ECDH1_DERIVE, params), key, []*pkcs11.Attribute{
		attr(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY), attr(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_GENERIC_SECRET),
		attr(pkcs11.CKA_VALUE_LEN, 32), attr(pkcs11.CKA_TOKEN, false), attr(pkcs11.CKA_PRIVATE, false),
		attr(pkcs11.CKA_SENSITIVE, false), attr(pkcs11.CKA_EXTRACTABLE, true),
	})
	return h, at("C_DeriveKey", err)
}

// pairOnToken makes a key pair on the token in one call, as the appliance does.
func (p *prober) pairOnToken() error {
	before := p.token
	p.token = true
	defer func() { p.token = before }()
	_, err := p.generateEC(curveP256.params, pkcs11.CKA_SIGN)
	return err
}

// copyToToken copies a private key to the token, as the appliance does with a key of which it makes
// sealed copies.
func (p *prober) copyToToken() error {
	if p.p256.private == 0 {
		return errNoKey
	}
	h, err := p.CopyObject(p.main, p.p256.private, append(p.draft(true), attr(pkcs11.CKA_MODIFIABLE, false)))
	if err != nil {
		return at("C_CopyObject", err)
	}
	return at("C_DestroyObject", p.DestroyObject(p.main, h))
}

// sha256Info is what PKCS#1 v1.5 puts before a SHA-256 digest (RFC 8017 §9.2).
var sha256Info = []byte{0x30, 0x31, 0x30, 0x0d, 6, 9, 0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 1, 5, 0, 4, 0x20}

func (p *prober) makeRSA() (err error) {
	p.rsa, err = p.generatePair(pkcs11.CKM_RSA_PKCS_KEY_PAIR_GEN,
		[]*pkcs11.Attribute{
			attr(pkcs11.CKA_MODULUS_BITS, 2048), attr(pkcs11.CKA_PUBLIC_EXPONENT, []byte{1, 0, 1}), attr(pkcs11.CKA_VERIFY, true),
		},
		[]*pkcs11.Attribute{attr(pkcs11.CKA_SENSITIVE, true), attr(pkcs11.CKA_EXTRACTABLE, false), attr(pkcs11.CKA_SIGN, true)})
	return err
}

func (p *prober) pkcs1() error {
	digest := sha256.Sum256([]byte("probe"))
	return p.checkPKCS1(pkcs11.CKM_RSA_PKCS, append(append([]byte{}, sha256Info...), digest[:]...))
}

func (p *prober) rsaSHA256() error { return p.checkPKCS1(pkcs11.CKM_SHA256_RSA_PKCS, []byte("probe")) }

func (p *prober) checkPKCS1(mechanism uint, in []byte) error {
	sig, err := p.sign(mech(mechanism, nil), p.rsa.private, in)
	if err != nil {
		return err
	}
	key, err := p.rsaPublic()
	if err != nil {
		return err
	}
	digest := sha256.Sum256([]byte("probe"))
	if rsa.VerifyPKCS1v15(key, crypto.SHA256, digest[:], sig) != nil {
		return errWrong
	}
	return nil
}

func (p *prober) pss() error {
	digest := sha256.Sum256([]byte("probe"))
	params := pkcs11.NewPSSParams(pkcs11.CKM_SHA256, pkcs11.CKG_MGF1_SHA256, 32)
	sig, err := p.sign(mech(pkcs11.CKM_RSA_PKCS_PSS, params), p.rsa.private, digest[:])
	if err != nil {
		return err
	}
	key, err := p.rsaPublic()
	if err != nil {
		return err
	}
	if rsa.VerifyPSS(key, crypto.SHA256, digest[:], sig, &rsa.PSSOptions{SaltLength: 32}) != nil {
		return errWrong
	}
	return nil
}

func (p *prober) rsaPublic() (*rsa.PublicKey, error) {
	n, err := p.value(p.rsa.public, pkcs11.CKA_MODULUS)
	if err != nil {
		return nil, err
	}
	return &rsa.PublicKey{N: new(big.Int).SetBytes(n), E: 65537}, nil
}
