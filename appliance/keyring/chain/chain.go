// Package chain verifies the key registry under the roots of the appliance: each root by
// the one before, each other key by the KeyCert that its root signed.
package chain

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"

	"countersign/appliance/anchor"
	"countersign/appliance/keyring"
	"countersign/appliance/store"
	"countersign/hsm"
	"countersign/protocol"
	"countersign/protocol/trust"
)

var (
	// ErrUnpinned means that no root is known to compare the registry's roots with.
	ErrUnpinned = errors.New("no root is pinned: there is no anchor, and trust.root names none")
	// ErrRoots means that the registry's chain of roots is broken, is too short, or lacks
	// a pinned root.
	ErrRoots = errors.New("the database does not have the roots of this appliance")
	// ErrRow means that a row of the registry differs from what its root certified.
	ErrRow = errors.New("a key in the database is not what a root of this appliance certified")
)

// Pins are roots that the chain of a registry must contain. They must come from a place
// that those who can write to the registry cannot write to. One of the two is required:
// nothing is trusted on first use.
type Pins struct {
	Anchor anchor.Anchor      // the newest root that ever was in force; zero: not known
	Root   protocol.PublicKey // any root of the chain; zero: none
}

// Verify verifies the rows and settings of a registry: the chain of roots from the first
// to the newest, that it contains the pinned roots, and each row by the chain. Errors
// wrap [keyring.ErrNotInitialized], [ErrUnpinned], [ErrRoots] or [ErrRow].
func Verify(rows []store.Key, values map[string][]byte, pins Pins) ([]keyring.Key, keyring.Settings, error) {
	settings, err := keyring.ParseSettings(values)
	if err != nil {
		return nil, settings, err
	}
	c, err := chainOf(settings)
	if err != nil {
		return nil, settings, err
	}
	if err := pins.in(c); err != nil {
		return nil, settings, err
	}
	keys, err := c.keys(rows)
	return keys, settings, err
}

// Keys verifies rows by the chain of roots in the settings. The caller must know that he
// can trust one of the roots. Errors wrap [ErrRoots] or [ErrRow].
func Keys(settings keyring.Settings, rows []store.Key) ([]keyring.Key, error) {
	c, err := chainOf(settings)
	if err != nil {
		return nil, err
	}
	return c.keys(rows)
}

// Anchor returns the anchor of the newest root after verifying the chain from the first
// root on. The caller must know that he can trust one of the roots.
func Anchor(settings keyring.Settings) (anchor.Anchor, error) {
	c, err := chainOf(settings)
	if err != nil {
		return anchor.Anchor{}, err
	}
	newest := c.newest()
	return anchor.Anchor{Root: newest.Number, Key: newest.Key, CertHash: sha256.Sum256(c.certs[len(c.certs)-1])}, nil
}

// in returns an error unless the chain has each of the pinned roots.
func (p Pins) in(c chain) error {
	at := p.Anchor
	if at.Root == 0 && p.Root == (protocol.PublicKey{}) {
		return ErrUnpinned
	}
	switch {
	case at.Root > c.length():
		return fmt.Errorf("%w: it has %d, and the anchor knows root %d", ErrRoots, c.length(), at.Root)
	case at.Root > 0 && c.roots[at.Root-1].Key != at.Key:
		return fmt.Errorf("%w: root %d is %s, and the anchor has %s", ErrRoots, at.Root, c.roots[at.Root-1].Key, at.Key)
	case at.Root > 0 && sha256.Sum256(c.certs[at.Root-1]) != at.CertHash:
		return fmt.Errorf("%w: root %d has another certificate than in the anchor", ErrRoots, at.Root)
	case p.Root == (protocol.PublicKey{}):
		return nil
	}
	for _, root := range c.roots {
		if root.Key == p.Root {
			return nil
		}
	}
	return fmt.Errorf("%w: none of the %d is the pinned %s", ErrRoots, c.length(), p.Root)
}

// chain is the roots of a registry from the first to the newest, each verified by the
// one before.
type chain struct {
	certs [][]byte
	roots []trust.RootCert // decoded certs
}

func (c chain) length() uint64         { return uint64(len(c.roots)) }
func (c chain) newest() trust.RootCert { return c.roots[len(c.roots)-1] }

// Follow verifies RootCerts from root 1 on, each by the one before. The first vouches
// for itself: the caller must find a root that he knows. Errors wrap [ErrRoots].
func Follow(certs [][]byte) (roots []trust.RootCert, err error) {
	if len(certs) == 0 {
		return nil, fmt.Errorf("%w: there is none", ErrRoots)
	}
	first, err := trust.VerifyRootCert(certs[0])
	if err != nil {
		return nil, fmt.Errorf("%w: root 1: %w", ErrRoots, err)
	}
	next := sha256.Sum256(first.Key[:])
	for i, cert := range certs {
		root, err := trust.FollowRoots(uint64(i), next, [][]byte{cert})
		if err != nil {
			return nil, fmt.Errorf("%w: root %d: %w", ErrRoots, i+1, err)
		}
		roots, next = append(roots, root), root.NextHash
	}
	return roots, nil
}

// chainOf follows the RootCerts of the settings.
func chainOf(s keyring.Settings) (c chain, err error) {
	c.certs = s.RootCerts
	if c.roots, err = Follow(c.certs); err != nil {
		return c, err
	}
	if c.newest().NextHash != s.NextRootHash {
		return c, fmt.Errorf("%w: root %d names another next root than the settings", ErrRoots, c.length())
	}
	return c, nil
}

// keys verifies each row: roots by the chain, other keys by the KeyCert of their root.
func (c chain) keys(rows []store.Key) ([]keyring.Key, error) {
	roots, err := c.rootKeys(rows)
	if err != nil {
		return nil, err
	}
	keys := make([]keyring.Key, 0, len(rows))
	for _, row := range rows {
		key := keyring.Key{Key: row}
		if err := readPublic(&key); err != nil {
			return nil, err
		}
		if row.Name != keyring.Root {
			if err := verify(&key, roots); err != nil {
				return nil, err
			}
		}
		keys = append(keys, key)
	}
	return keys, nil
}

// readPublic reads the public half of a key pair, whose hash is the key's id.
func readPublic(k *keyring.Key) error {
	if k.Public == nil {
		if usage := keyring.UsageOf(k.Name); usage == hsm.SignP256 || usage == hsm.DeriveP256 {
			return fmt.Errorf("%w: %s has no public key", ErrRow, k.Label())
		}
		return nil
	}
	var err error
	if k.Point, err = protocol.ParsePublicKey(k.Public); err != nil {
		return fmt.Errorf("%w: public key of %s: %w", ErrRow, k.Label(), err)
	}
	spki, err := k.SPKI()
	if err != nil {
		return fmt.Errorf("%w: public key of %s: %w", ErrRow, k.Label(), err)
	}
	if sum := sha256.Sum256(spki); !bytes.Equal(sum[:len(k.ID)], k.ID[:]) {
		return fmt.Errorf("%w: %s has the id of another key", ErrRow, k.Label())
	}
	return nil
}

// rootKeys returns the keys of all roots that may have certified something, by number:
// the chain, and each root after it that the one before names. Only the rows of root 1
// and of the next root, until a rotation readies it, have no certificate.
func (c chain) rootKeys(rows []store.Key) (map[uint64]protocol.PublicKey, error) {
	byNumber := map[uint64]store.Key{}
	for _, row := range rows {
		if row.Name == keyring.Root {
			byNumber[row.Version] = row
		}
	}
	keys := map[uint64]protocol.PublicKey{}
	for i, root := range c.roots {
		row, ok := byNumber[root.Number]
		switch {
		case !ok:
			return nil, fmt.Errorf("%w: root %d has no row", ErrRow, root.Number)
		case !bytes.Equal(row.Public, root.Key[:]):
			return nil, fmt.Errorf("%w: %s is %x, and the chain of roots has %s", ErrRow, label(row), row.Public, root.Key)
		case !bytes.Equal(row.Cert, c.certs[i]) && (root.Number != 1 || row.Cert != nil):
			return nil, fmt.Errorf("%w: %s has another certificate than in the chain of roots", ErrRow, label(row))
		}
		keys[root.Number] = root.Key
	}
	for last := c.newest(); ; {
		row, ok := byNumber[last.Number+1]
		if !ok {
			break
		}
		if sha256.Sum256(row.Public) != last.NextHash {
			return nil, fmt.Errorf("%w: %s is not the root that root %d names", ErrRow, label(row), last.Number)
		}
		keys[row.Version] = protocol.PublicKey(row.Public) // 33 bytes, since the hash is right
		if row.Cert == nil {
			break
		}
		var err error
		if last, err = trust.FollowRoots(last.Number, last.NextHash, [][]byte{row.Cert}); err != nil {
			return nil, fmt.Errorf("%w: certificate of %s: %w", ErrRow, label(row), err)
		}
	}
	return keys, c.noStrangers(byNumber, keys)
}

func label(row store.Key) string { return keyring.Label(row.Name, row.Version) }

// noStrangers returns an error for a root that no other names. The one exception is the
// second after the chain, left where a rotation was taken back: it has certified
// nothing, and keyplan uses it only if it is on the token.
func (c chain) noStrangers(byNumber map[uint64]store.Key, known map[uint64]protocol.PublicKey) error {
	for number, row := range byNumber {
		if _, ok := known[number]; !ok && (number != c.length()+2 || row.Cert != nil) {
			return fmt.Errorf("%w: no root leads to %s", ErrRow, label(row))
		}
	}
	return nil
}

// verify compares the row of a key with the KeyCert by its root, which is all that phones
// and devices know of it.
func verify(k *keyring.Key, roots map[uint64]protocol.PublicKey) error {
	if !keyring.IsCertified(k.Name) {
		if k.Cert != nil || k.Root != 0 {
			return fmt.Errorf("%w: %s has a certificate, and no key of this name has one", ErrRow, k.Label())
		}
		return nil
	}
	root, ok := roots[k.Root]
	if !ok {
		return fmt.Errorf("%w: %s is certified by root %d, which is not known", ErrRow, k.Label(), k.Root)
	}
	cert, err := trust.VerifyKeyCert(k.Cert, root)
	if err != nil {
		return fmt.Errorf("%w: %s: %w", ErrRow, k.Label(), err)
	}
	if field := differs(cert, k.KeyCert()); field != "" {
		return fmt.Errorf("%w: %s has a certificate with another %s", ErrRow, k.Label(), field)
	}
	k.RulesOut, k.Suite = cert.MinEpoch != nil, cert.Suite
	return nil
}

// differs names the first field of a KeyCert that differs from the row, or returns "". A
// KeyCert may rule out the epochs before it, and no others.
func differs(cert, row trust.KeyCert) string {
	for _, field := range []struct {
		name string
		same bool
	}{
		{"use", cert.Use == row.Use},
		{"epoch", cert.Epoch == row.Epoch},
		{"public key", cert.Key == row.Key},
		{"not-before", cert.NotBefore == row.NotBefore},
		{"not-after", cert.NotAfter == row.NotAfter},
		{"minimum epoch", cert.MinEpoch == nil || *cert.MinEpoch == cert.Epoch},
	} {
		if !field.same {
			return field.name
		}
	}
	return ""
}
