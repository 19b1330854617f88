package pkcs11

import (
	"context"
	"crypto"
	"encoding/binary"

	"github.com/miekg/pkcs11"

	"countersign/hsm"
	"countersign/hsm/internal/check"
)

// Sign implements [hsm.Token] with CKM_ECDSA, CKM_EDDSA, CKM_RSA_PKCS and
// CKM_RSA_PKCS_PSS. It leaves the verifying to package worker, outside of the
// process that the module shares.
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
	m := making{mechanism: mechanisms[alg.Mechanism()], size: alg.Size(o.Usage)}
	switch m.mechanism {
	case pkcs11.CKM_RSA_PKCS:
		input = check.DigestInfo(alg.Hash(), input)
	case pkcs11.CKM_RSA_PKCS_PSS:
		m.parameter = pssParams(alg.Hash())
	}
	return t.native.sign(s, o.handle, m, input)
}

// pssParams is CK_RSA_PKCS_PSS_PARAMS: hash, mask generation function and length
// of the salt.
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
		mac, err = t.native.sign(s, o.handle, hmacSHA256, data)
		return err
	})
	return mac, err
}

var hmacSHA256 = making{mechanism: pkcs11.CKM_SHA256_HMAC, size: check.SecretLen}
