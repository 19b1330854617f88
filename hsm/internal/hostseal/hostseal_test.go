package hostseal

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"testing"

	"countersign/hsm"
	"countersign/hsm/internal/kwp"
)

// under returns the MAC of a key in memory.
func under(key []byte) MAC {
	return func(data []byte) ([]byte, error) {
		m := hmac.New(sha256.New, key)
		m.Write(data)
		return m.Sum(nil), nil
	}
}

func TestRoundTrip(t *testing.T) {
	h, secret := bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 32)
	sealed, err := Seal(under(h), secret)
	if err != nil || len(sealed) != 56 {
		t.Fatalf("%d bytes, %v", len(sealed), err)
	}
	if got, err := Open(under(h), sealed); err != nil || !bytes.Equal(got, secret) {
		t.Errorf("%x, %v", got, err)
	}
	again, err := Seal(under(h), secret)
	if err != nil || bytes.Equal(again[16:], sealed[16:]) {
		t.Errorf("two seals of a secret are alike: %v", err)
	}
}

// TestForm computes a seal from the text of the package, with a known salt.
func TestForm(t *testing.T) {
	h, salt, secret := bytes.Repeat([]byte{3}, 32), bytes.Repeat([]byte{4}, 16), bytes.Repeat([]byte{5}, 32)
	m := hmac.New(sha256.New, h)
	m.Write([]byte("OA1 pw seal v1"))
	m.Write(salt)
	wrapped, err := kwp.Wrap(m.Sum(nil), secret)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := Open(under(h), append(salt, wrapped...)); err != nil || !bytes.Equal(got, secret) {
		t.Errorf("%s, %v", hex.EncodeToString(got), err)
	}
}

func TestRefused(t *testing.T) {
	h := bytes.Repeat([]byte{1}, 32)
	good, err := Seal(under(h), make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 1
		if got, err := Open(under(h), bad); !errors.Is(err, hsm.ErrInput) {
			t.Errorf("byte %d changed: %x, %v", i, got, err)
		}
	}
	for _, bad := range [][]byte{nil, good[:40], append(bytes.Clone(good), 0)} {
		if _, err := Open(under(h), bad); !errors.Is(err, hsm.ErrInput) {
			t.Errorf("%d bytes: %v", len(bad), err)
		}
	}
	if _, err := Open(under(make([]byte, 32)), good); !errors.Is(err, hsm.ErrInput) {
		t.Errorf("under another key: %v", err)
	}
	lost := errors.New("lost")
	broken := func([]byte) ([]byte, error) { return nil, lost }
	if _, err := Open(broken, good); !errors.Is(err, lost) {
		t.Errorf("a token that is lost: %v", err)
	}
	if _, err := Seal(broken, make([]byte, 32)); !errors.Is(err, lost) {
		t.Errorf("sealing, with a token that is lost: %v", err)
	}
}
