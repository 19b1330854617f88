package hsmtest

import (
	"bytes"
	"errors"
	"testing"

	"countersign/hsm"
)

func (s *suite) gcm(t *testing.T) {
	t.Run("RoundTrip", s.testCrypt)
	t.Run("Refused", s.testCryptRefused)
}

func (s *suite) testCrypt(t *testing.T) {
	k := s.key(t, hsm.SealAES)
	nonces := map[string]bool{}
	for _, size := range []int{1, 15, 16, 17, 64 << 10, 0} {
		for _, aad := range []string{"", "a row"} {
			plain := bytes.Repeat([]byte{7}, max(size-len(aad), 0))
			box, err := s.token.Encrypt(t.Context(), k.ID, plain, []byte(aad))
			must(t, err)
			if len(box) != 12+len(plain)+16 {
				t.Fatalf("box of %d bytes for %d", len(box), len(plain))
			}
			nonces[string(box[:12])] = true
			got, err := s.token.Decrypt(t.Context(), k.ID, box, []byte(aad))
			if err != nil || !bytes.Equal(got, plain) {
				t.Errorf("%d bytes with %q: %d bytes, %v", len(plain), aad, len(got), err)
			}
		}
	}
	if len(nonces) != 12 {
		t.Errorf("%d nonces in 12 boxes", len(nonces))
	}
}

func (s *suite) testCryptRefused(t *testing.T) {
	k, aad := s.key(t, hsm.SealAES), []byte("a row")
	box, err := s.token.Encrypt(t.Context(), k.ID, []byte("a secret of some length"), aad)
	must(t, err)
	bad := append(flips(box), nil, box[:27], box[:28], append(bytes.Clone(box), 0))
	for _, b := range bad {
		if got, err := s.token.Decrypt(t.Context(), k.ID, b, aad); !errors.Is(err, hsm.ErrInput) {
			t.Errorf("box %x: %x, %v, want ErrInput", b, got, err)
		}
	}
	for _, other := range [][]byte{nil, []byte("a rox"), []byte("a row ")} {
		if got, err := s.token.Decrypt(t.Context(), k.ID, box, other); !errors.Is(err, hsm.ErrInput) {
			t.Errorf("with %q: %x, %v, want ErrInput", other, got, err)
		}
	}
	another := s.generate(t, "seal@2", hsm.SealAES)
	if got, err := s.token.Decrypt(t.Context(), another.ID, box, aad); !errors.Is(err, hsm.ErrInput) {
		t.Errorf("with another key: %x, %v, want ErrInput", got, err)
	}
	long := make([]byte, 64<<10)
	if _, err := s.token.Encrypt(t.Context(), k.ID, long, []byte{0}); !errors.Is(err, hsm.ErrInput) {
		t.Errorf("64 KiB + 1: %v, want ErrInput", err)
	}
	if _, err := s.token.Decrypt(t.Context(), k.ID, append(long, make([]byte, 29)...), nil); !errors.Is(err, hsm.ErrInput) {
		t.Errorf("box of 64 KiB + 1: %v, want ErrInput", err)
	}
	if _, err := s.token.Decrypt(t.Context(), k.ID, box, aad); err != nil {
		t.Errorf("Decrypt after the refusals: %v", err)
	}
}
