package keylife_test

import (
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"errors"
	"fmt"
	"testing"

	"countersign/appliance/keylife"
	"countersign/appliance/keyplan"
	"countersign/appliance/keyring"
	"countersign/appliance/keyuse"
	"countersign/hsm"
	"countersign/protocol"
	"countersign/protocol/derive"
	"countersign/protocol/password"
)

// imported returns a verifier as the appliance stores it, with a valid proof.
func (l *life) imported() (stored keyuse.Verifier, proof []byte) {
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
	kept, err := l.ImportVerifier(l.Context(), keyuse.VerifierImport{Ephemeral: own.PublicKey(), Point: point, Wrapped: sent}, l.now)
	if err != nil {
		l.Fatal(err)
	}
	right := verifier.Proof([32]byte{7})
	return keyuse.Verifier{Wrapped: kept, Input: derive.PasswordProofInput([32]byte{7})}, right[:]
}

// TestRewrap: a verifier moves from the first and the second version of wrap to the third
// and stays the same; one under the version in use stays as it is.
func TestRewrap(t *testing.T) {
	l := newLife(t)
	first, proof := l.imported()
	if moved, err := keylife.Rewrap(t.Context(), l.Keys, first.Wrapped, l.now); err != nil || moved != nil {
		t.Errorf("under the key in use: %x, %v", moved, err)
	}
	l.must(keyplan.Rotate, "wrap")
	l.must(keyplan.Activate, "wrap")
	second, _ := l.imported()
	l.must(keyplan.Rotate, "wrap")
	l.must(keyplan.Activate, "wrap")
	for _, v := range []keyuse.Verifier{first, second} {
		moved, err := keylife.Rewrap(t.Context(), l.Keys, v.Wrapped, l.now)
		if err != nil || len(moved) != 40 {
			t.Fatalf("%x, %v", moved, err)
		}
		if again, err := keylife.Rewrap(t.Context(), l.Keys, moved, l.now); err != nil || again != nil {
			t.Errorf("not under the key in use: %x, %v", again, err)
		}
		v.Wrapped = moved
		if right, err := l.CheckVerifier(t.Context(), v, proof); err != nil || !right {
			t.Errorf("its password: %v, %v", right, err)
		}
	}
	if _, err := keylife.Rewrap(t.Context(), l.Keys, make([]byte, 40), l.now); !errors.Is(err, hsm.ErrInput) {
		t.Errorf("no verifier: %v", err)
	}
}

// garbling is a token that rewraps something else than it was given, or nothing.
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

// TestRewrapGarbled: a verifier is never replaced by a different one, and a wrap key
// whose verifiers cannot leave it says so.
func TestRewrapGarbled(t *testing.T) {
	l := newLife(t)
	other, _ := l.imported()
	l.must(keyplan.Rotate, "wrap")
	l.must(keyplan.Activate, "wrap")
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
		if moved, err := keylife.Rewrap(t.Context(), l.Keys, other.Wrapped, l.now); !errors.Is(err, c.want) || moved != nil {
			t.Errorf("%x, %v, want %v", moved, err, c.want)
		}
		if moved, err := keylife.Rewrap(t.Context(), l.Keys, stored.Wrapped, l.now); err != nil || moved != nil {
			t.Errorf("one that stays: %x, %v", moved, err)
		}
	}
}
