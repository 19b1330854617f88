// Package custody splits the backup key into N shares, of which M recover it. Each share
// is in a file that one custodian can open. The private key exists only while it is split
// and during a restore.
//
// The split is Shamir's over the scalar field of P-256 with Feldman's commitments, so that
// each share can be verified by itself. Its arithmetic (cloudflare/circl) is not
// constant-time: run both ceremonies on a machine without other users. The files have the
// format of age (age-encryption.org/v1).
package custody

import (
	"crypto/ecdh"
	"crypto/rand"
	"errors"
	"fmt"

	"github.com/cloudflare/circl/group"
	"github.com/cloudflare/circl/secretsharing"

	"countersign/protocol"
)

var (
	// ErrShare means that a file or text is no share, or was changed.
	ErrShare = errors.New("not a share of a backup key")
	// ErrFew means that there are fewer different shares than the threshold.
	ErrFew = errors.New("not enough shares")
	// ErrMixed means that shares belong to more than one split.
	ErrMixed = errors.New("shares of different backup keys")
	// ErrSealed means that none of the identities opens the share's file.
	ErrSealed = errors.New("no identity opens this share")
	// ErrPassphrase means that the share's file needs a passphrase, and not one that was
	// given. It wraps [ErrSealed].
	ErrPassphrase = fmt.Errorf("%w: it takes its passphrase", ErrSealed)
	// ErrThreshold means that a scheme is out of range.
	ErrThreshold = errors.New("want 2 to 32 shares, and a threshold from 2 to their number")
)

// MaxShares is the maximum number of custodians. A threshold of one is refused, because
// each custodian alone could recover the key.
const (
	MaxShares    = 32
	minThreshold = 2
)

var p256 = group.P256

// Scheme says how many shares there are, and how many recover the key.
type Scheme struct{ Threshold, Shares int }

// Check returns an error wrapping [ErrThreshold] if the scheme is out of range.
func (s Scheme) Check() error {
	if s.Threshold < minThreshold || s.Threshold > s.Shares || s.Shares > MaxShares {
		return fmt.Errorf("%d of %d: %w", s.Threshold, s.Shares, ErrThreshold)
	}
	return nil
}

// Make generates a backup key, splits it and forgets it.
func Make(s Scheme) (*ecdh.PublicKey, []Share, error) {
	if err := s.Check(); err != nil {
		return nil, nil, err
	}
	private, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	shares, err := split(s, private)
	return private.PublicKey(), shares, err
}

func split(s Scheme, private *ecdh.PrivateKey) ([]Share, error) {
	secret := p256.NewScalar()
	raw := private.Bytes()
	defer clear(raw)
	if err := secret.UnmarshalBinary(raw); err != nil {
		return nil, fmt.Errorf("splitting the backup key: %w", err)
	}
	shamir := secretsharing.New(rand.Reader, uint(s.Threshold-1), secret)
	var commitments []protocol.PublicKey
	for _, c := range shamir.CommitSecret() {
		b, err := c.MarshalBinaryCompress()
		if err != nil || len(b) != len(protocol.PublicKey{}) {
			return nil, fmt.Errorf("splitting the backup key: commitment of %d bytes: %w", len(b), errors.Join(err, ErrShare))
		}
		commitments = append(commitments, protocol.PublicKey(b))
	}
	var shares []Share
	for i, one := range shamir.Share(uint(s.Shares)) {
		b, err := one.Value.MarshalBinary()
		if err != nil {
			return nil, fmt.Errorf("splitting the backup key: %w", err)
		}
		shares = append(shares, Share{Number: i + 1, Of: s.Shares, Commitments: commitments, value: [32]byte(b)})
		clear(b)
	}
	return shares, nil
}

// Combine recovers the private key from shares of one split. A repeated share counts once.
// Errors wrap [ErrShare], [ErrMixed] or [ErrFew].
func Combine(shares []Share) (*ecdh.PrivateKey, error) {
	distinct, err := together(shares)
	if err != nil {
		return nil, err
	}
	secret, err := secretsharing.Recover(uint(shares[0].Threshold()-1), distinct)
	if err != nil {
		return nil, fmt.Errorf("combining shares: %w", err)
	}
	raw, err := secret.MarshalBinary()
	if err != nil {
		return nil, fmt.Errorf("combining shares: %w", err)
	}
	defer clear(raw)
	private, err := ecdh.P256().NewPrivateKey(raw)
	if err != nil {
		return nil, fmt.Errorf("combining shares: %v: %w", err, ErrShare)
	}
	if public, err := shares[0].Key().ECDH(); err != nil || !private.PublicKey().Equal(public) {
		return nil, fmt.Errorf("combining shares: the result is another key than %s: %w", shares[0].Key(), ErrShare)
	}
	return private, nil
}

// together checks that shares belong to one split, are valid and reach the threshold.
func together(shares []Share) (distinct []secretsharing.Share, err error) {
	seen := map[int]bool{}
	for _, s := range shares {
		if !s.sameSplit(shares[0]) {
			return nil, fmt.Errorf("share %d is of backup key %s, share %d of %s: %w",
				shares[0].Number, shares[0].Key(), s.Number, s.Key(), ErrMixed)
		}
		one, err := s.scalars()
		if err != nil {
			return nil, err
		}
		if !seen[s.Number] {
			seen[s.Number] = true
			distinct = append(distinct, one)
		}
	}
	if len(shares) == 0 {
		return nil, fmt.Errorf("no shares: %w", ErrFew)
	}
	if len(distinct) < shares[0].Threshold() {
		return nil, fmt.Errorf("%d different shares of backup key %s, %d are needed: %w",
			len(distinct), shares[0].Key(), shares[0].Threshold(), ErrFew)
	}
	return distinct, nil
}
