package hsm

// Object is a private or secret key object as its token describes it, whoever made
// it: PKCS#11 v2.40 §4.7 to §4.10.
type Object struct {
	Token      string     // which of several tokens; "" where there is one
	Class      string     // CKA_CLASS, "CKO_PRIVATE_KEY" or "CKO_SECRET_KEY"
	KeyType    string     // CKA_KEY_TYPE, "CKK_EC", or as "0x80000001" what has no name here; "" not told
	ID         []byte     // CKA_ID, of any length
	Label      string     // CKA_LABEL
	True       Attributes // those that are true
	Told       Attributes // those that the token tells at all
	Mechanisms []string   // CKA_ALLOWED_MECHANISMS, "CKM_ECDSA", …; nil: not told, or not restricted
}

// Has tells whether all of the attributes are true.
func (o Object) Has(a Attributes) bool { return o.True&a == a }

// Attributes is a set of the attributes of a key object that are CK_BBOOL.
type Attributes uint32

// The attributes, by their names in PKCS#11 without CKA_.
const (
	AttrPrivate Attributes = 1 << iota
	AttrSensitive
	AttrExtractable
	AttrModifiable
	AttrLocal            // made by C_GenerateKey or C_GenerateKeyPair on this token
	AttrAlwaysSensitive  // sensitive since it was made
	AttrNeverExtractable // not extractable since it was made
	AttrSign
	AttrSignRecover
	AttrVerify
	AttrEncrypt
	AttrDecrypt
	AttrWrap
	AttrUnwrap
	AttrDerive

	lastAttr = AttrDerive
)

// AttrUsages are the attributes that say what a key may do.
const AttrUsages = AttrSign | AttrSignRecover | AttrVerify | AttrEncrypt | AttrDecrypt | AttrWrap | AttrUnwrap | AttrDerive

// AttrHistory are the attributes that tell of a key's youth. A module that forgets them
// of keys which it made itself does not tell them of any.
const AttrHistory = AttrLocal | AttrAlwaysSensitive | AttrNeverExtractable

var attributeNames = map[Attributes]string{
	AttrPrivate: "CKA_PRIVATE", AttrSensitive: "CKA_SENSITIVE", AttrExtractable: "CKA_EXTRACTABLE", AttrModifiable: "CKA_MODIFIABLE",
	AttrLocal: "CKA_LOCAL", AttrAlwaysSensitive: "CKA_ALWAYS_SENSITIVE", AttrNeverExtractable: "CKA_NEVER_EXTRACTABLE",
	AttrSign: "CKA_SIGN", AttrSignRecover: "CKA_SIGN_RECOVER", AttrVerify: "CKA_VERIFY", AttrEncrypt: "CKA_ENCRYPT",
	AttrDecrypt: "CKA_DECRYPT", AttrWrap: "CKA_WRAP", AttrUnwrap: "CKA_UNWRAP", AttrDerive: "CKA_DERIVE",
}

// Names are the names of the attributes in the set, "CKA_SIGN", in the order above.
func (a Attributes) Names() (names []string) {
	for one := AttrPrivate; one <= lastAttr; one <<= 1 {
		if a&one != 0 {
			names = append(names, attributeNames[one])
		}
	}
	return names
}
