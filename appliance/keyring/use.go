package keyring

import (
	"context"
	"crypto/ecdh"
	"crypto/hmac"
	"crypto/hpke"
	"fmt"
	"time"

	"countersign/hsm"
	"countersign/protocol"
)

// Recipient opens what phones seal to one kem epoch.
type Recipient struct {
	hpke.PrivateKey                 // its one ECDH runs on the token
	Root            protocol.RootID // of the root that certified the epoch
}

// Recipient is of the kem epoch that is e modulo 64; its ECDH runs within ctx. ok is
// false when that epoch is not held: it is over, retired, or certified by a root that
// has been replaced, so that its phones are told of the new one.
func (r *Keyring) Recipient(ctx context.Context, e uint8, now time.Time) (to Recipient, ok bool, err error) {
	v := r.live.Load()
	for _, k := range v.acceptedOf(KEM, now) {
		if uint8(k.Version%64) != e || k.Root != v.rootNumber() {
			continue
		}
		public, err := k.Point.ECDH()
		if err != nil {
			return to, false, err
		}
		to.Root = v.root().Point.RootID()
		to.PrivateKey, err = hpke.NewDHKEMPrivateKey(&exchanger{ctx: ctx, token: r.token, id: k.ID, public: public})
		return to, true, err
	}
	return to, false, nil
}

// exchanger runs a key agreement on the token. It is made for one request, whose
// context it carries because ecdh.KeyExchanger has no place for one.
type exchanger struct {
	ctx    context.Context
	token  hsm.Token
	id     hsm.KeyID
	public *ecdh.PublicKey
}

func (e *exchanger) PublicKey() *ecdh.PublicKey { return e.public }
func (e *exchanger) Curve() ecdh.Curve          { return ecdh.P256() }

func (e *exchanger) ECDH(peer *ecdh.PublicKey) ([]byte, error) {
	return e.token.Derive(e.ctx, e.id, peer)
}

// MAC is HMAC-SHA-256 under a mac key over an input that begins with one of its
// domain strings (protocol's RecordInput, PairwiseInput, HandleKeyInput). What comes
// out is stored or kept, and nothing here can verify it, so the token is asked until
// two answers agree: see [agreed].
func (r *Keyring) MAC(ctx context.Context, key Key, input []byte) ([]byte, error) {
	mac, err := agreed(func() ([]byte, error) { return r.token.MAC(ctx, key.ID, input) })
	if err != nil {
		return nil, fmt.Errorf("MAC by %s: %w", key.label(), err)
	}
	return mac, nil
}

// CheckMAC tells whether mac is what [Keyring.MAC] gave for the input. A MAC that the
// token gives again is right at once; another one is asked for until two agree.
func (r *Keyring) CheckMAC(ctx context.Context, key Key, input, mac []byte) (bool, error) {
	ask := func() ([]byte, error) { return r.token.MAC(ctx, key.ID, input) }
	again, err := ask()
	if err == nil && !hmac.Equal(again, mac) {
		again, err = agreed(ask, again)
	}
	if err != nil {
		return false, fmt.Errorf("MAC by %s: %w", key.label(), err)
	}
	return hmac.Equal(again, mac), nil
}

// agreed is the first answer that came twice, of three at most, those before
// included: a token that errs once costs one call more, and one that errs always
// is [hsm.ErrGarbled].
func agreed(ask func() ([]byte, error), before ...[]byte) ([]byte, error) {
	for len(before) < hsm.Tries {
		answer, err := ask()
		if err != nil {
			return nil, err
		}
		for _, b := range before {
			if hmac.Equal(answer, b) {
				return answer, nil
			}
		}
		before = append(before, answer)
	}
	return nil, fmt.Errorf("three answers to one question: %w", hsm.ErrGarbled)
}

// MACKeys are the versions of mac under which a MAC made earlier may be, the one in
// use first.
func (r *Keyring) MACKeys(now time.Time) ([]Key, error) {
	v := r.live.Load()
	if _, err := v.current(MAC, now); err != nil {
		return nil, err
	}
	return v.acceptedOf(MAC, now), nil
}

// PairwiseKey is the version of mac under which pairwise ids are made: the oldest
// that was not destroyed, in use or not, since they have to stay the same for the
// devices that know them (PROTOCOL.md §7).
func (r *Keyring) PairwiseKey() (Key, error) {
	for _, k := range r.live.Load().keys[MAC] {
		if k.DestroyedAt.IsZero() {
			return k, nil
		}
	}
	return Key{}, fmt.Errorf("key %q: %w", MAC, ErrNoKey)
}
