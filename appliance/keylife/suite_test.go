package keylife_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"countersign/appliance/keylife"
	"countersign/appliance/keyring"
	"countersign/appliance/keyuse"
	"countersign/hsm"
	"countersign/hsm/memory"
	"countersign/protocol"
	"countersign/protocol/message"
)

// TestSuite: a new kem key has suite 1 wherever its token can do that, and M1s of its suite open, as of no
// other.
func TestSuite(t *testing.T) {
	now := time.Now()
	for _, c := range []struct {
		kems  []hsm.KEM
		suite uint8
	}{
		{[]hsm.KEM{hsm.DHKEM, hsm.KEM2}, 1},
		{[]hsm.KEM{hsm.DHKEM}, 1},
		{[]hsm.KEM{hsm.KEM2}, 2},
	} {
		token := memory.With(c.kems...)
		trusted, err := keylife.Ceremony(t.Context(), token, "test.example", now)
		if err != nil {
			t.Fatal(err)
		}
		keys, err := keyuse.Load(t.Context(), token, registry{trusted}, pinned(trusted))
		if err != nil {
			t.Fatal(err)
		}
		if err := keylife.SelfTest(t.Context(), keys, now); err != nil {
			t.Errorf("%v: self-test: %v", c.kems, err)
		}
		kem, err := keys.Current(keyring.KEM, now)
		if err != nil {
			t.Fatal(err)
		}
		to := kem.KeyCert().Recipient(keys.Ring().Root().Point.RootID())
		if to.Suite != c.suite {
			t.Errorf("%v: the KeyCert names suite %d, want %d", c.kems, to.Suite, c.suite)
		}
		for suite := message.Suite1; suite <= message.Suite2; suite++ {
			to.Suite = suite
			if err := opens(t.Context(), keys, to); suite == c.suite && err != nil || suite != c.suite && !errors.Is(err, protocol.CodeVersion) {
				t.Errorf("%v: M1 of suite %d: %v", c.kems, suite, err)
			}
		}
	}
}

// opens seals an M1 and opens it with the key of its epoch.
func opens(ctx context.Context, keys *keyuse.Keys, to message.Recipient) error {
	raw, _, err := message.SealM1(to, []byte("p1"))
	if err != nil {
		return err
	}
	m1, err := message.ParseM1(raw)
	if err != nil {
		return err
	}
	key, held := keys.Recipient(ctx, m1.Epoch, time.Now())
	if !held {
		return errors.New("the epoch is not held")
	}
	_, _, err = m1.Open(key, key.Root)
	return err
}

// narrowed is a token that offers other KEMs than when its keys were made.
type narrowed struct {
	hsm.Token
	kems []hsm.KEM
}

func (n narrowed) KEMs() []hsm.KEM { return n.kems }

// TestSuiteLost: a kem key whose suite the token cannot do is an error at the start, which names the key,
// the suite and what the token offers.
func TestSuiteLost(t *testing.T) {
	token, r := ceremony(t, time.Now())
	_, err := keyuse.Load(t.Context(), narrowed{token, []hsm.KEM{hsm.KEM2}}, r, pinned(r.trust))
	if !errors.Is(err, hsm.ErrUnavailable) {
		t.Fatalf("%v, want ErrUnavailable", err)
	}
	for _, want := range []string{"kem@1", "suite 1", "[suite 2]"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("no %q in %q", want, err)
		}
	}
	if _, err := keyuse.Load(t.Context(), narrowed{token, nil}, r, pinned(r.trust)); err != nil {
		t.Errorf("a token whose KEMs are not known yet: %v", err)
	}
}
