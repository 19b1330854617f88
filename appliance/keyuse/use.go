package keyuse

import (
	"context"
	"crypto/ecdh"
	"crypto/hmac"
	"errors"
	"fmt"
	"time"

	"countersign/appliance/keyring"
	"countersign/hsm"
	"countersign/protocol"
	"countersign/protocol/derive"
	"countersign/protocol/message"
)

// Recipient decrypts what phones encrypt to one kem epoch.
type Recipient struct {
	message.KEM                 // runs on the token
	Root        protocol.RootID // of the root that certified the epoch
}

// Recipient returns the kem epoch that is e modulo 64; it decapsulates within ctx. ok is
// false if that epoch is over, retired, or certified by a root that was replaced: phones
// must then learn of the new one.
func (k *Keys) Recipient(ctx context.Context, e uint8, now time.Time) (to Recipient, ok bool) {
	ring := k.Ring()
	for _, kem := range ring.Accepted(keyring.KEM, now) {
		if uint8(kem.Version%64) != e || kem.Root != ring.RootNumber() {
			continue
		}
		return Recipient{KEM: &kemKey{ctx: ctx, token: k.token, key: kem}, Root: ring.Root().Point.RootID()}, true
	}
	return to, false
}

// kemKey decapsulates on the token. It lives for one request and carries its context, because
// message.KEM has no place for one.
type kemKey struct {
	ctx   context.Context
	token hsm.Token
	key   keyring.Key
}

func (k *kemKey) Suite() uint8 { return uint8(k.key.KEM()) }

func (k *kemKey) Decap(enc []byte) ([]byte, error) {
	point, err := ecdh.P256().NewPublicKey(enc)
	if err != nil {
		return nil, protocol.CodeFormat.Errorf("enc: %v", err)
	}
	return k.token.Decap(k.ctx, k.key.ID, k.key.KEM(), point)
}

// Signer signs digests with one key of the token.
type Signer struct {
	token hsm.Token
	key   keyring.Key
}

// Signer returns a signer for this key version.
func (k *Keys) Signer(key keyring.Key) Signer { return Signer{token: k.token, key: key} }

// SignDigest signs a 32-byte SHA-256 digest and returns r‖s, 64 bytes. The token has
// verified the signature with the public key that the key's id is the hash of, which is
// the registry's: [keyring.New] compared them.
func (s Signer) SignDigest(ctx context.Context, digest []byte) ([]byte, error) {
	sig, err := s.token.Sign(ctx, s.key.ID, hsm.ES256, digest)
	if err != nil {
		return nil, fmt.Errorf("signing with %s: %w", s.key.Label(), err)
	}
	return sig, nil
}

// MAC returns the HMAC-SHA-256 under a mac key of an input that begins with one of its
// domain strings (protocol's RecordInput, PairwiseInput, HandleKeyInput). The result is
// stored or kept and cannot be verified here, so the token is asked until two answers
// agree. Three different answers are [hsm.ErrGarbled].
func (k *Keys) MAC(ctx context.Context, key keyring.Key, input []byte) ([]byte, error) {
	mac, err := agreed(func() ([]byte, error) { return k.token.MAC(ctx, key.ID, input) })
	if err != nil {
		return nil, fmt.Errorf("MAC by %s: %w", key.Label(), err)
	}
	return mac, nil
}

// CheckMAC reports whether mac is the MAC of input under a mac key of the token. If the
// token's answer differs, it is asked until two answers agree.
func CheckMAC(ctx context.Context, token hsm.Token, key keyring.Key, input, mac []byte) (bool, error) {
	ask := func() ([]byte, error) { return token.MAC(ctx, key.ID, input) }
	again, err := ask()
	if err == nil && !hmac.Equal(again, mac) {
		again, err = agreed(ask, again)
	}
	return err == nil && hmac.Equal(again, mac), err
}

// agreed returns the first answer that came twice, of at most three, including those
// before. A token that errs once costs one more call; one that always errs is
// [hsm.ErrGarbled].
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
	return nil, errContradiction
}

var errContradiction = fmt.Errorf("three answers to one question: %w", hsm.ErrGarbled)

// MACKeys returns the versions of mac that an earlier MAC may be under, the one in use
// first. An error wraps [keyring.ErrNoKey].
func (k *Keys) MACKeys(now time.Time) ([]keyring.Key, error) {
	ring := k.Ring()
	if _, err := ring.Current(keyring.MAC, now); err != nil {
		return nil, err
	}
	return ring.Accepted(keyring.MAC, now), nil
}

// PairwiseKey returns the version of mac that pairwise ids are made under: the oldest
// that was not destroyed, in use or not, because the ids must stay the same for the
// devices that know them (PROTOCOL.md §7).
func (k *Keys) PairwiseKey() (keyring.Key, error) {
	for _, mac := range k.Ring().Versions(keyring.MAC) {
		if mac.DestroyedAt.IsZero() {
			return mac, nil
		}
	}
	return keyring.Key{}, fmt.Errorf("key %q: %w", keyring.MAC, keyring.ErrNoKey)
}

// VerifierImport is a password verifier as a phone sends it, PROTOCOL.md §4.1.
type VerifierImport struct {
	Ephemeral  *ecdh.PublicKey
	Point      protocol.PublicKey // Ephemeral, compressed
	SigningKey protocol.PublicKey
	Wrapped    []byte // 40 bytes
}

// ImportVerifier moves a verifier from the enrol key to the wrap key inside the token and
// returns the bytes to keep. A phone may have wrapped it for an older enrol key that
// is still valid, so each is tried. If none fits, the error is [hsm.ErrInput].
func (k *Keys) ImportVerifier(ctx context.Context, i VerifierImport, now time.Time) (wrapped []byte, err error) {
	ring := k.Ring()
	wrap, err := ring.Current(keyring.Wrap, now)
	if err != nil {
		return nil, err
	}
	err = fmt.Errorf("key %q: %w", keyring.Enrol, keyring.ErrNoKey)
	for _, enrol := range ring.Accepted(keyring.Enrol, now) {
		root, known := ring.Find(keyring.Root, enrol.Root)
		if !enrol.Dated(now) || !known {
			continue
		}
		what := derive.PasswordImport{
			Root: root.Point.RootID(), Ephemeral: i.Point, Enrol: enrol.Point, SigningKey: i.SigningKey,
		}
		wrapped, err = k.token.Import(ctx, hsm.Import{
			Enrol: enrol.ID, Wrap: wrap.ID, Ephemeral: i.Ephemeral, Context: what.Context(), Wrapped: i.Wrapped,
		})
		if !errors.Is(err, hsm.ErrInput) {
			return wrapped, err
		}
	}
	return nil, fmt.Errorf("importing a password verifier: %w", err)
}

// Verifier is a stored password verifier and the input of its MAC.
type Verifier struct{ Wrapped, Input []byte }

// ErrUnchecked means that no answer of the token was compared with the proof, or that its
// answers contradict each other. The caller has learned nothing about the proof. It wraps
// [hsm.ErrUnavailable].
var ErrUnchecked = fmt.Errorf("the token did not check a password: %w", hsm.ErrUnavailable)

// ErrDamaged means that a stored verifier unwraps under no wrap key in use. It wraps
// [ErrUnchecked].
var ErrDamaged = fmt.Errorf("a stored password verifier does not unwrap: %w", ErrUnchecked)

// CheckVerifier reports whether proof is a prefix of the HMAC-SHA-256 of a stored
// verifier's input, computed inside the token. A verifier that was not moved to the wrap
// key in use is under an earlier one, so each accepted key is tried. If none fits, the
// error is [ErrDamaged]. If the proof is wrong, the token is asked again, so that an
// error of the token does not count as a wrong password. An error after the first answer
// that did not fit is not [ErrUnchecked]: its time already shows that the proof is wrong.
func (k *Keys) CheckVerifier(ctx context.Context, stored Verifier, proof []byte) (right bool, err error) {
	err = fmt.Errorf("key %q: %w", keyring.Wrap, keyring.ErrNoKey)
	for _, wrap := range k.Ring().Accepted(keyring.Wrap, time.Now()) {
		ask := func() ([]byte, error) { return k.token.MACWrapped(ctx, wrap.ID, stored.Wrapped, stored.Input) }
		var mac []byte
		switch mac, err = ask(); {
		case errors.Is(err, hsm.ErrInput):
			err = fmt.Errorf("%v: %w", err, ErrDamaged)
			continue
		case err != nil && ctx.Err() == nil:
			return false, fmt.Errorf("%w: %w", err, ErrUnchecked)
		case err != nil:
			return false, err
		case hasProof(mac, proof):
			return true, nil
		}
		mac, err = agreed(ask, mac)
		if errors.Is(err, errContradiction) {
			return false, fmt.Errorf("%w: %w", err, ErrUnchecked)
		}
		return err == nil && hasProof(mac, proof), err
	}
	return false, err
}

func hasProof(mac, proof []byte) bool {
	return len(proof) == message.ProofSize && hmac.Equal(mac[:message.ProofSize], proof)
}
