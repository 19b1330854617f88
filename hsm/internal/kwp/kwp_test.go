package kwp_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"testing"

	"countersign/hsm"
	"countersign/hsm/internal/kwp"
)

func TestRoundTrip(t *testing.T) {
	key, secret := bytes.Repeat([]byte{7}, 32), []byte("0123456789abcdef0123456789abcdef")
	wrapped, err := kwp.Wrap(key, secret)
	if err != nil || len(wrapped) != 40 {
		t.Fatalf("%d bytes, %v", len(wrapped), err)
	}
	if got, err := kwp.Unwrap(key, wrapped); err != nil || !bytes.Equal(got, secret) {
		t.Errorf("%x, %v", got, err)
	}
	for i := range wrapped {
		bad := bytes.Clone(wrapped)
		bad[i] ^= 1
		if got, err := kwp.Unwrap(key, bad); !errors.Is(err, hsm.ErrInput) {
			t.Errorf("byte %d flipped: %x, %v, want ErrInput", i, got, err)
		}
	}
}

// 25 to 31 bytes have wrappings of the same length as 32.
func TestShortSecret(t *testing.T) {
	key := make([]byte, 32)
	for n := 25; n < 32; n++ {
		wrapped, err := kwp.Wrap(key, make([]byte, n))
		if err != nil || len(wrapped) != 40 {
			t.Fatalf("%d bytes: wrapping of %d bytes, %v", n, len(wrapped), err)
		}
		if got, err := kwp.Unwrap(key, wrapped); !errors.Is(err, hsm.ErrInput) {
			t.Errorf("%d bytes: %x, %v, want ErrInput", n, got, err)
		}
	}
}

// TestKEK encrypts the two equal blocks of FIPS 197 appendix C.3.
func TestKEK(t *testing.T) {
	key, err := hex.DecodeString("000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f")
	if err != nil {
		t.Fatal(err)
	}
	block, err := hex.DecodeString("00112233445566778899aabbccddeeff")
	if err != nil {
		t.Fatal(err)
	}
	kek, err := kwp.KEK(key, [32]byte(append(block, block...)))
	want := "8ea2b7ca516745bfeafc49904b496089"
	if err != nil || hex.EncodeToString(kek) != want+want {
		t.Errorf("%x, %v, want twice %s", kek, err, want)
	}
	if _, err := kwp.KEK(key[:31], [32]byte{}); !errors.Is(err, hsm.ErrInput) {
		t.Errorf("Z of 31 bytes: %v, want ErrInput", err)
	}
}
