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
	for _, c := range append([]capability{copying}, capabilityList()...) {
		for _, m := range c.mechanisms {
			all[m.code] = true
		}
	}
	serving := []hsm.Usage{hsm.SignP256, hsm.DeriveP256, hsm.MACKey}
	if required, notices := all.shortcomings(serving); len(required)+len(notices) != 0 {
		t.Errorf("all there: %q, %q", required, notices)
	}
	delete(all, ecdh1.code)
	delete(all, encryptData.code)
	delete(all, aesGCM.code)
	required, notices := all.shortcomings(serving)
	if len(required) != 1 || required[0] != "module lacks CKM_ECDH1_DERIVE, needed for opening authorization requests" {
		t.Errorf("required %q", required)
	}
	if len(notices) != 2 || !strings.HasPrefix(notices[0], "module lacks CKM_AES_ECB_ENCRYPT_DATA: ") || !strings.Contains(notices[1], "CKM_AES_GCM") {
		t.Errorf("notices %q", notices)
	}
	if required, notices = all.shortcomings(nil); len(required) != 0 || len(notices) != 3 {
		t.Errorf("nothing required: %q, %q", required, notices)
	}
}

func capabilityList() (all []capability) {
	for _, c := range capabilities {
		all = append(all, c)
	}
	return all
}

// without has the shared token lack a mechanism for a while.
func without(t *testing.T, m mechanism) {
	t.Helper()
	shared.have[m.code] = false
	t.Cleanup(func() { shared.have[m.code] = true })
}

// What a module lacks is named, whatever it is needed for, and nothing is asked
// of the module.
func TestUnsupported(t *testing.T) {
	for usage, m := range map[hsm.Usage]mechanism{
		hsm.SignP384: ecKeyGen, hsm.SignEd25519: eddsa, hsm.SignRSA2048: rsaKeyGen, hsm.SealAES: aesGCM, hsm.MACKey: hmac256,
	} {
		t.Run(m.name, func(t *testing.T) {
			without(t, m)
			_, err := shared.Generate(t.Context(), hsm.KeySpec{Label: fresh("unsupported"), Usage: usage})
			if !errors.Is(err, hsm.ErrUnsupported) || !strings.Contains(err.Error(), m.name) {
				t.Errorf("%v, want ErrUnsupported and %s", err, m.name)
			}
		})
	}
	t.Run("RSA-PSS", func(t *testing.T) {
		k := generate(t, "unsupported", hsm.SignRSA2048)
		without(t, rsaPSS)
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

// CKM_AES_KEY_WRAP_PAD does what RFC 5649 says on SoftHSM, which a module that
// has the other name as well is asked to show.
func TestChooseWrapping(t *testing.T) {
	if shared.kwp != pkcs11.CKM_AES_KEY_WRAP_PAD {
		t.Errorf("mechanism %#x", shared.kwp)
	}
	shared.have[wrapKWP.code] = true
	defer delete(shared.have, wrapKWP.code)
	if err := shared.chooseWrapping(); err != nil || shared.kwp != pkcs11.CKM_AES_KEY_WRAP_PAD {
		t.Errorf("mechanism %#x, %v", shared.kwp, err)
	}
}
