package memory

import "countersign/hsm"

// form is how PKCS#11 has the keys of a usage.
type form struct {
	keyType    string
	usages     hsm.Attributes
	mechanisms []string
}

var (
	ecdsaForm = form{"CKK_EC", hsm.AttrSign, []string{"CKM_ECDSA"}}
	rsaForm   = form{"CKK_RSA", hsm.AttrSign, []string{"CKM_RSA_PKCS", "CKM_RSA_PKCS_PSS"}}
)

var forms = map[hsm.Usage]form{
	hsm.SignP256:    ecdsaForm,
	hsm.SignP384:    ecdsaForm,
	hsm.SignEd25519: {"CKK_EC_EDWARDS", hsm.AttrSign, []string{"CKM_EDDSA"}},
	hsm.SignRSA2048: rsaForm,
	hsm.SignRSA3072: rsaForm,
	hsm.SignRSA4096: rsaForm,
	hsm.DeriveP256:  {"CKK_EC", hsm.AttrDerive, []string{"CKM_ECDH1_DERIVE"}},
	hsm.MACKey:      {"CKK_GENERIC_SECRET", hsm.AttrSign, []string{"CKM_SHA256_HMAC"}},
	hsm.WrapKey:     {"CKK_AES", hsm.AttrWrap | hsm.AttrUnwrap, []string{"CKM_AES_KEY_WRAP_PAD"}},
	hsm.SealAES:     {"CKK_AES", hsm.AttrEncrypt | hsm.AttrDecrypt, []string{"CKM_AES_GCM"}},
}

// object is the key as a PKCS#11 token would describe it.
func (e entry) object() hsm.Object {
	f := forms[e.Usage]
	o := hsm.Object{Class: "CKO_SECRET_KEY", KeyType: f.keyType, ID: e.ID[:], Label: e.Label, Mechanisms: f.mechanisms}
	if e.Usage.Pair() {
		o.Class = "CKO_PRIVATE_KEY"
	}
	o.Told = hsm.AttrPrivate | hsm.AttrSensitive | hsm.AttrExtractable | hsm.AttrModifiable | hsm.AttrUsages | hsm.AttrAges
	o.True = hsm.AttrPrivate | hsm.AttrSensitive | f.usages | e.born
	return o
}
