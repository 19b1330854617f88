package keyring_test

import (
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"errors"
	"fmt"
	"testing"

	"countersign/appliance/keyring"
	"countersign/hsm"
	"countersign/protocol"
	"countersign/protocol/derive"
	"countersign/protocol/password"
)

// imported is a verifier as the appliance keeps it, with a proof and what it is of.
func (l *life) imported() (stored keyring.Verifier, proof []byte) {
	l.Helper()
	own, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		l.Fatal(err)
	}
	point, err := protocol.CompressPoint(own.PublicKey().Bytes())
	if err != nil {
		l.Fatal(err)
	}
	enrol, err := l.Current(keyring.Enrol, l.now)
	if err != nil {
		l.Fatal(err)
	}
	verifier := password.Verifier{1, 2, 3}
	sent, err := password.Wrap(verifier, own, derive.PasswordImport{Root: l.Root().RootID(), Ephemeral: point, Enrol: enrol.Point})
	if err != nil {
		l.Fatal(err)
	}
	kept, err := l.ImportVerifier(l.Context(), keyring.VerifierImport{Ephemeral: own.PublicKey(), Point: point, Wrapped: sent}, l.now)
	if err != nil {
		l.Fatal(err)
	}
	right := verifier.Proof([32]byte{7})
	return keyring.Verifier{Wrapped: kept, Input: derive.PasswordProofInput([32]byte{7})}, right[:]
}

// TestRewrap: a verifier follows to the third version of wrap from the first and from the
// second, and is the same there; under the one in use it stays as it is.
func TestRewrap(t *testing.T) {
	l := newLife(t)
	first, proof := l.imported()
	if moved, err := l.Rewrap(t.Context(), first.Wrapped, l.now); err != nil || moved != nil {
		t.Errorf("under the key in use: %x, %v", moved, err)
	}
	l.must(keyring.Rotate, "wrap")
	l.must(keyring.Activate, "wrap")
	second, _ := l.imported()
	l.must(keyring.Rotate, "wrap")
	l.must(keyring.Activate, "wrap")
	for _, v := range []keyring.Verifier{first, second} {
		moved, err := l.Rewrap(t.Context(), v.Wrapped, l.now)
		if err != nil || len(moved) != 40 {
			t.Fatalf("%x, %v", moved, err)
		}
		if in, err := l.IsUnderCurrentWrap(t.Context(), moved, l.now); err != nil || !in {
			t.Errorf("under the key in use: %v, %v", in, err)
		}
		v.Wrapped = moved
		if right, err := l.CheckVerifier(t.Context(), v, proof); err != nil || !right {
			t.Errorf("its password: %v, %v", right, err)
		}
	}
	if _, err := l.Rewrap(t.Context(), make([]byte, 40), l.now); !errors.Is(err, hsm.ErrInput) {
		t.Errorf("no verifier: %v", err)
	}
}

// garbling is a token that wraps something else anew than it was given, or nothing.
type garbling struct {
	hsm.Token
	moved func([]byte) ([]byte, error)
}

func (g garbling) Rewrap(ctx context.Context, r hsm.Rewrap) ([]byte, error) {
	moved, err := g.Token.Rewrap(ctx, r)
	if err != nil {
		return nil, err
	}
	return g.moved(moved)
}

// TestRewrapGarbled: what is not the same verifier never takes its place, and a wrap key
// that keeps what it has says so.
func TestRewrapGarbled(t *testing.T) {
	l := newLife(t)
	other, _ := l.imported()
	l.must(keyring.Rotate, "wrap")
	l.must(keyring.Activate, "wrap")
	stored, _ := l.imported()
	for _, c := range []struct {
		moved func([]byte) ([]byte, error)
		want  error
	}{
		{func(b []byte) ([]byte, error) { b[8] ^= 1; return b, nil }, hsm.ErrGarbled},
		{func([]byte) ([]byte, error) { return other.Wrapped, nil }, hsm.ErrGarbled},
		{func([]byte) ([]byte, error) { return nil, fmt.Errorf("CKA_UNWRAP_TEMPLATE: %w", hsm.ErrUnsupported) }, hsm.ErrUnsupported},
	} {
		l.load(garbling{l.token, c.moved})
		if moved, err := l.Rewrap(t.Context(), other.Wrapped, l.now); !errors.Is(err, c.want) || moved != nil {
			t.Errorf("%x, %v, want %v", moved, err, c.want)
		}
		if moved, err := l.Rewrap(t.Context(), stored.Wrapped, l.now); err != nil || moved != nil {
			t.Errorf("one that stays: %x, %v", moved, err)
		}
	}
}
