package hsm_test

import (
	"errors"
	"testing"

	"countersign/hsm"
)

// What is printed is what is read.
func TestNames(t *testing.T) {
	for a := hsm.ES256; a <= hsm.PS512; a++ {
		if got, err := hsm.ParseAlgorithm(a.String()); err != nil || got != a {
			t.Errorf("%s is %v, %v", a, got, err)
		}
	}
	for u := hsm.SignP256; u <= hsm.SealAES; u++ {
		if got, err := hsm.ParseUsage(u.String()); err != nil || got != u {
			t.Errorf("%s is %v, %v", u, got, err)
		}
	}
	for _, name := range []string{"", "es256", "ES512", "none", "algorithm(0)", "usage(0)"} {
		if a, err := hsm.ParseAlgorithm(name); !errors.Is(err, hsm.ErrInput) {
			t.Errorf("algorithm %q is %v, %v", name, a, err)
		}
		if u, err := hsm.ParseUsage(name); !errors.Is(err, hsm.ErrInput) {
			t.Errorf("usage %q is %v, %v", name, u, err)
		}
	}
}

// Every key that signs has an algorithm, no other has, and sealed copies depend
// on the numbers.
func TestAlgorithmsFitUsages(t *testing.T) {
	numbers := map[hsm.Usage]uint8{
		hsm.SignP256: 1, hsm.DeriveP256: 2, hsm.MACKey: 3, hsm.WrapKey: 4, hsm.SignP384: 5, hsm.SignEd25519: 6,
		hsm.SignRSA2048: 7, hsm.SignRSA3072: 8, hsm.SignRSA4096: 9, hsm.SealAES: 10,
	}
	for u := hsm.SignP256; u <= hsm.SealAES; u++ {
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
