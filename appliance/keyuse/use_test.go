package keyuse_test

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"countersign/appliance/appliancetest"
	"countersign/appliance/keyplan"
	"countersign/appliance/keyring"
	"countersign/appliance/keyuse"
	"countersign/hsm"
)

// erring is a token whose next MACs are wrong in one bit, each in another.
type erring struct {
	hsm.Token
	wrong int
}

func (e *erring) MAC(ctx context.Context, key hsm.KeyID, data []byte) ([]byte, error) {
	mac, err := e.Token.MAC(ctx, key, data)
	if err == nil && e.wrong > 0 {
		mac[e.wrong] ^= 1
		e.wrong--
	}
	return mac, err
}

// TestMACAgreed: a MAC, which nothing can verify, is returned only after the token gave it twice.
func TestMACAgreed(t *testing.T) {
	b := appliancetest.New(t)
	token := &erring{Token: b.Token}
	keys, err := keyuse.Load(t.Context(), token, b.Store, keyuse.Pins{Root: b.Keyring.Root()})
	if err != nil {
		t.Fatal(err)
	}
	mac, err := keys.Current(keyring.MAC, b.Clock.Now())
	if err != nil {
		t.Fatal(err)
	}
	input := []byte("input")
	right, err := b.Token.MAC(t.Context(), mac.ID, input)
	if err != nil {
		t.Fatal(err)
	}
	for wrong, want := range []error{nil, nil, hsm.ErrGarbled, hsm.ErrGarbled} {
		token.wrong = wrong
		got, err := keys.MAC(t.Context(), mac, input)
		if !errors.Is(err, want) || err == nil && !bytes.Equal(got, right) {
			t.Errorf("after %d wrong answers: %v, the right one: %t; want %v", wrong, err, bytes.Equal(got, right), want)
		}
		token.wrong = wrong
		same, err := keyuse.CheckMAC(t.Context(), token, mac, input, right)
		if !errors.Is(err, want) || same != (want == nil) {
			t.Errorf("a right MAC, after %d wrong answers: %t, %v; want %v", wrong, same, err, want)
		}
	}
	token.wrong = 0
	if same, err := keyuse.CheckMAC(t.Context(), token, mac, input, make([]byte, len(right))); same || err != nil {
		t.Errorf("another MAC: %t, %v", same, err)
	}
}

// TestDoubtfulCertificate: a client certificate proves nothing once its epoch is compromised, whether or not a
// later epoch rules it out.
func TestDoubtfulCertificate(t *testing.T) {
	b := appliancetest.New(t)
	b.EnrolFull("alice")
	cert := b.Client("alice").Cert
	doubtful := func(want bool) {
		t.Helper()
		i, err := b.Keyring.ReadClientCert(cert, b.Clock.Now())
		if err != nil || i.Doubtful != want || i.Held == want {
			t.Errorf("doubtful: %t, held: %t, %v", i.Doubtful, i.Held, err)
		}
	}
	doubtful(false)
	b.Step(keyplan.Rotate, keyring.ClientCA)
	b.Step(keyplan.Activate, keyring.ClientCA)
	doubtful(false)
	if _, err := b.TryStep(keyplan.Step{Verb: keyplan.Retire, Compromised: true}, keyring.ClientCA+"@1"); err != nil {
		t.Fatal(err)
	}
	doubtful(true)
}
