package pkcs11

import (
	"errors"
	"strings"
	"testing"

	"github.com/miekg/pkcs11"

	"countersign/hsm"
)

func TestLackingMechanisms(t *testing.T) {
	all := available{}
	for _, code := range mechanisms {
		all[code] = true
	}
	serving := []hsm.Usage{hsm.SignP256, hsm.DeriveP256, hsm.MACKey}
	if required, notices := (&Token{have: all}).missingFor(serving); len(required)+len(notices) != 0 {
		t.Errorf("all there: %q, %q", required, notices)
	}
	delete(all, pkcs11.CKM_ECDH1_DERIVE)
	delete(all, ckmEdDSA)
	required, notices := (&Token{have: all}).missingFor(serving)
	if len(required) != 1 || required[0] != "module lacks CKM_ECDH1_DERIVE, needed for opening authorization requests" {
		t.Errorf("required %q", required)
	}
	if len(notices) != 1 || !strings.Contains(notices[0], "CKM_EDDSA") {
		t.Errorf("notices %q", notices)
	}
	if required, notices = (&Token{have: all}).missingFor(nil); len(required) != 0 || len(notices) != 2 {
		t.Errorf("nothing required: %q, %q", required, notices)
	}
}

// without makes the shared token lack a mechanism until the end of the test.
func without(t *testing.T, name string) {
	t.Helper()
	shared.have[mechanisms[name]] = false
	t.Cleanup(func() { shared.have[mechanisms[name]] = true })
}

// The error names the mechanism that the module lacks, and the module is not asked.
func TestUnsupported(t *testing.T) {
	for usage, name := range map[hsm.Usage]string{
		hsm.SignP384: "CKM_EC_KEY_PAIR_GEN", hsm.SignEd25519: "CKM_EDDSA", hsm.SignRSA2048: "CKM_RSA_PKCS_KEY_PAIR_GEN",
		hsm.MACKey: "CKM_SHA256_HMAC",
	} {
		t.Run(name, func(t *testing.T) {
			without(t, name)
			_, err := shared.Generate(t.Context(), hsm.KeySpec{Label: fresh("unsupported"), Usage: usage})
			if !errors.Is(err, hsm.ErrUnsupported) || !strings.Contains(err.Error(), name) {
				t.Errorf("%v, want ErrUnsupported and %s", err, name)
			}
		})
	}
	t.Run("RSA-PSS", func(t *testing.T) {
		k := generate(t, "unsupported", hsm.SignRSA2048)
		without(t, "CKM_RSA_PKCS_PSS")
		if _, err := shared.Sign(t.Context(), k.ID, hsm.PS256, make([]byte, 32)); !errors.Is(err, hsm.ErrUnsupported) {
			t.Errorf("PS256: %v, want ErrUnsupported", err)
		}
		if _, err := shared.Sign(t.Context(), k.ID, hsm.RS256, make([]byte, 32)); err != nil {
			t.Errorf("RS256: %v", err)
		}
	})
	t.Run("copies", func(t *testing.T) {
		without(t, encryptData)
		spec := hsm.KeySpec{Label: fresh("unsupported"), Usage: hsm.MACKey}
		spec.Recipients = append(spec.Recipients, mustECDH(t, generate(t, "recipient", hsm.DeriveP256)))
		if _, err := shared.Generate(t.Context(), spec); !errors.Is(err, hsm.ErrUnsupported) || !strings.Contains(err.Error(), "sealed copies") {
			t.Errorf("%v, want ErrUnsupported", err)
		}
	})
}
