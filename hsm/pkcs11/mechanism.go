package pkcs11

import (
	"fmt"
	"slices"
	"strings"

	"github.com/miekg/pkcs11"

	"countersign/hsm"
)

// capability is what a key of one usage needs of the module.
type capability struct {
	blocks     string // what cannot be done without it
	required   bool   // serving depends on it
	mechanisms []mechanism
}

type mechanism struct {
	name string
	code uint
}

var capabilities = map[hsm.Usage]capability{
	hsm.SignP256: {"signing decisions and certificates", true, []mechanism{
		{"CKM_EC_KEY_PAIR_GEN", pkcs11.CKM_EC_KEY_PAIR_GEN}, {"CKM_ECDSA", pkcs11.CKM_ECDSA},
	}},
	hsm.DeriveP256: {"opening authorization requests", true, []mechanism{
		{"CKM_EC_KEY_PAIR_GEN", pkcs11.CKM_EC_KEY_PAIR_GEN}, {"CKM_ECDH1_DERIVE", pkcs11.CKM_ECDH1_DERIVE},
	}},
	hsm.MACKey: {"authenticating stored records", true, []mechanism{
		{"CKM_GENERIC_SECRET_KEY_GEN", pkcs11.CKM_GENERIC_SECRET_KEY_GEN}, {"CKM_SHA256_HMAC", pkcs11.CKM_SHA256_HMAC},
	}},
	hsm.WrapKey: {"wrapping keys for a backup", false, []mechanism{
		{"CKM_AES_KEY_GEN", pkcs11.CKM_AES_KEY_GEN}, {"CKM_AES_KEY_WRAP_PAD", pkcs11.CKM_AES_KEY_WRAP_PAD},
	}},
}

// checkMechanisms compares the mechanism list with what is needed, so that a
// lacking one is an error at start and not at the first request.
func (t *Token) checkMechanisms() error {
	list, err := t.ctx.GetMechanismList(t.slot)
	if err != nil {
		return startError("C_GetMechanismList", err)
	}
	have := make([]uint, len(list))
	for i, m := range list {
		have[i] = m.Mechanism
	}
	required, notices := lacking(have)
	t.missing = notices
	if len(required) > 0 {
		return fmt.Errorf("%s: %w", strings.Join(required, "; "), hsm.ErrUnavailable)
	}
	return nil
}

func lacking(have []uint) (required, notices []string) {
	for usage := hsm.SignP256; usage <= hsm.WrapKey; usage++ {
		c := capabilities[usage]
		for _, m := range c.mechanisms {
			if slices.Contains(have, m.code) {
				continue
			}
			text := fmt.Sprintf("module lacks %s, needed for %s", m.name, c.blocks)
			if c.required {
				required = append(required, text)
			} else {
				notices = append(notices, text)
			}
		}
	}
	return required, notices
}
