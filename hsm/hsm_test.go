package hsm_test

import (
	"fmt"
	"strings"
	"testing"

	"countersign/hsm"
)

// Every usage and algorithm has a name of its own; other numbers print as numbers.
func TestNames(t *testing.T) {
	seen := map[string]bool{}
	for a := hsm.ES256; a <= hsm.PS512; a++ {
		seen[a.String()] = true
	}
	for _, u := range hsm.Usages() {
		seen[u.String()] = true
	}
	if len(seen) != 9+9 || seen["algorithm(1)"] || seen["usage(1)"] {
		t.Errorf("names %v", seen)
	}
	for text, want := range map[string]string{hsm.Algorithm(0).String(): "algorithm(0)", (hsm.PS512 + 1).String(): "algorithm(10)", hsm.Usage(10).String(): "usage(10)"} {
		if text != want {
			t.Errorf("%s, want %s", text, want)
		}
	}
}

// Every key that signs has an algorithm, no other has, and sealed copies depend
// on the numbers.
func TestAlgorithmsFitUsages(t *testing.T) {
	numbers := map[hsm.Usage]uint8{
		hsm.SignP256: 1, hsm.DeriveP256: 2, hsm.MACKey: 3, hsm.WrapKey: 4, hsm.SignP384: 5, hsm.SignEd25519: 6,
		hsm.SignRSA2048: 7, hsm.SignRSA3072: 8, hsm.SignRSA4096: 9,
	}
	for _, u := range hsm.Usages() {
		n := 0
		for a := hsm.Algorithm(0); a <= hsm.PS512+1; a++ {
			if a.For(u) {
				n++
			}
		}
		want := map[hsm.Usage]int{hsm.SignP256: 1, hsm.SignP384: 1, hsm.SignEd25519: 1, hsm.SignRSA2048: 6, hsm.SignRSA3072: 6, hsm.SignRSA4096: 6}
		if n != want[u] || uint8(u) != numbers[u] {
			t.Errorf("%s: %d algorithms, number %d", u, n, u)
		}
	}
}

// The rows that other programs and tokens see, written out.
func TestKinds(t *testing.T) {
	for u, want := range map[hsm.Usage]string{
		hsm.SignP256:    "CKO_PRIVATE_KEY CKK_EC [CKA_SIGN] [CKM_ECDSA] ES256 64",
		hsm.DeriveP256:  "CKO_PRIVATE_KEY CKK_EC [CKA_DERIVE] [CKM_ECDH1_DERIVE] algorithm(0) 0",
		hsm.MACKey:      "CKO_SECRET_KEY CKK_GENERIC_SECRET [CKA_SIGN] [CKM_SHA256_HMAC] algorithm(0) 32",
		hsm.WrapKey:     "CKO_SECRET_KEY CKK_AES [CKA_WRAP CKA_UNWRAP] [CKM_AES_KEY_WRAP_PAD] algorithm(0) 32",
		hsm.SignP384:    "CKO_PRIVATE_KEY CKK_EC [CKA_SIGN] [CKM_ECDSA] ES384 96",
		hsm.SignEd25519: "CKO_PRIVATE_KEY CKK_EC_EDWARDS [CKA_SIGN] [CKM_EDDSA] EdDSA 64",
		hsm.SignRSA3072: "CKO_PRIVATE_KEY CKK_RSA [CKA_SIGN] [CKM_RSA_PKCS CKM_RSA_PKCS_PSS] RS256 384",
	} {
		k := u.Kind()
		if got := fmt.Sprintln(u.Class(), k.KeyType, k.May.Names(), k.Mechanisms, u.Proof(), u.Proof().Size(u)); got != want+"\n" {
			t.Errorf("%s: %s, want %s", u, got, want)
		}
	}
	for _, u := range []hsm.Usage{0, 10, 255} {
		if u.Kind().Name != "" || u.Pair() || u.Proof() != 0 || u.Fits(nil) {
			t.Errorf("%s is known", u)
		}
	}
}

func TestPINIsHidden(t *testing.T) {
	c := struct{ PIN hsm.PIN }{hsm.PIN("canary")}
	for _, text := range []string{fmt.Sprint(c.PIN), fmt.Sprintf("%v %+v %#v", c, c, c), fmt.Sprintf("%s %q %x %d", c.PIN, c.PIN, c.PIN, c.PIN)} {
		if strings.Contains(text, "canary") || strings.Contains(text, "63616e") || strings.Contains(text, "99 97") || !strings.Contains(text, "[redacted]") {
			t.Errorf("%s", text)
		}
	}
	if c.PIN.Zero(); string(c.PIN) != "\x00\x00\x00\x00\x00\x00" {
		t.Errorf("zeroed PIN is %x", []byte(c.PIN))
	}
}
