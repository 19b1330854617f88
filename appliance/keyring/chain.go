package keyring

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"

	"countersign/appliance/anchor"
	"countersign/appliance/store"
	"countersign/hsm"
	"countersign/protocol"
	"countersign/protocol/trust"
)

// Pins are the roots that the registry is held against. They come from elsewhere: who
// can write the registry must not be able to write them. One of the two is needed, since
// nothing is trusted on first use.
type Pins struct {
	// Anchor has the newest root that ever was in force. A verified registry that has a
	// newer one moves it forward, before that root is used. nil: no anchor is kept.
	Anchor *anchor.File
	// Root is the key of any root of the chain; zero: none is known.
	Root protocol.PublicKey
}

var (
	// ErrUnpinned: there is nothing to hold the registry's roots against.
	ErrUnpinned = errors.New("no root is pinned: there is no anchor, and trust.root names none")
	// ErrRoots: the registry's chain of roots is broken, is too short, or is not the one
	// that is pinned.
	ErrRoots = errors.New("the database does not have the roots of this appliance")
	// ErrRow: a row of the registry is not what its root certified.
	ErrRow = errors.New("a key in the database is not what a root of this appliance certified")
)

// Verify verifies what a store claims as [Load] does, without a token: the chain of roots
// from the first to the newest, that it contains the pinned ones, and each row by the
// chain. It moves the anchor. Errors wrap [ErrNotInitialized], [ErrUnpinned], [ErrRoots]
// or [ErrRow].
func Verify(c store.Claims, pins Pins) error {
	_, _, err := pins.verified(c.Keys, c.Settings)
	return err
}

// Verified verifies rows by the chain of roots in the settings, as [Load] does. It does not
// decide whether the first root is trusted. Errors wrap [ErrRoots] or [ErrRow].
func (s Settings) Verified(rows []store.Key) ([]Key, error) {
	c, err := s.chain()
	if err != nil {
		return nil, err
	}
	return c.keys(rows)
}

// Anchor is the anchor of the newest root, at the end of a chain that is verified from
// its first root on. It does not decide whether the first root is trusted.
func (s Settings) Anchor() (anchor.Anchor, error) {
	c, err := s.chain()
	if err != nil {
		return anchor.Anchor{}, err
	}
	return c.anchor(), nil
}

// read reads the registry and verifies it.
func (p Pins) read(ctx context.Context, registry store.Keys) ([]Key, Settings, error) {
	rows, err := registry.ListKeys(ctx)
	if err != nil {
		return nil, Settings{}, fmt.Errorf("reading the key registry: %w", err)
	}
	values, err := registry.Settings(ctx)
	if err != nil {
		return nil, Settings{}, fmt.Errorf("reading the trust settings: %w", err)
	}
	return p.verified(rows, values)
}

// verified verifies a registry under the pins and moves the anchor to its newest root.
func (p Pins) verified(rows []store.Key, values map[string][]byte) ([]Key, Settings, error) {
	settings, err := ParseSettings(values)
	if err != nil {
		return nil, settings, err
	}
	c, err := settings.chain()
	if err != nil {
		return nil, settings, err
	}
	if err := p.in(c); err != nil {
		return nil, settings, err
	}
	keys, err := c.keys(rows)
	if err == nil && p.Anchor != nil {
		newest := c.anchor()
		err = p.Anchor.Root(newest.Root, newest.Key, newest.CertHash)
	}
	return keys, settings, err
}

// in holds the pinned roots against a chain, which must have each of them.
func (p Pins) in(c chain) error {
	var at anchor.Anchor
	if p.Anchor != nil {
		at = p.Anchor.Current()
	}
	if at.Root == 0 && p.Root == (protocol.PublicKey{}) {
		return ErrUnpinned
	}
	switch {
	case at.Root > c.length():
		return fmt.Errorf("%w: there are %d, and the anchor knows root %d", ErrRoots, c.length(), at.Root)
	case at.Root > 0 && c.roots[at.Root-1].Key != at.Key:
		return fmt.Errorf("%w: root %d is %s, and the anchor has %s", ErrRoots, at.Root, c.roots[at.Root-1].Key, at.Key)
	case at.Root > 0 && sha256.Sum256(c.certs[at.Root-1]) != at.CertHash:
		return fmt.Errorf("%w: root %d has another certificate than the anchor says", ErrRoots, at.Root)
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

// chain is the roots of a registry, from the first to the newest, each verified by the
// one before.
type chain struct {
	certs [][]byte
	roots []trust.RootCert // what certs say
}

func (c chain) length() uint64         { return uint64(len(c.roots)) }
func (c chain) newest() trust.RootCert { return c.roots[len(c.roots)-1] }

func (c chain) anchor() anchor.Anchor {
	newest := c.newest()
	return anchor.Anchor{Root: newest.Number, Key: newest.Key, CertHash: sha256.Sum256(c.certs[len(c.certs)-1])}
}

// Follow verifies RootCerts from that of root 1 on, each by the one before. The first
// vouches for itself: the caller looks for a root that he knows. Errors wrap [ErrRoots].
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

// chain follows the RootCerts of the settings from the first on.
func (s Settings) chain() (c chain, err error) {
	c.certs = s.RootCerts
	if c.roots, err = Follow(c.certs); err != nil {
		return c, err
	}
	if c.newest().NextHash != s.NextRootHash {
		return c, fmt.Errorf("%w: root %d names another next root than the settings", ErrRoots, c.length())
	}
	return c, nil
}

// keys are the rows, each verified: those of roots by the chain, others by the KeyCert
// that their root made for them.
func (c chain) keys(rows []store.Key) ([]Key, error) {
	roots, err := c.rootKeys(rows)
	if err != nil {
		return nil, err
	}
	keys := make([]Key, 0, len(rows))
	for _, row := range rows {
		key := Key{Key: row}
		if err := key.readPublic(); err != nil {
			return nil, err
		}
		if row.Name != Root {
			if err := key.verify(roots); err != nil {
				return nil, err
			}
		}
		keys = append(keys, key)
	}
	return keys, nil
}

// readPublic reads the public half of a pair, whose hash is the key's id.
func (k *Key) readPublic() error {
	if k.Public == nil {
		if usage := usages[k.Name]; usage == hsm.SignP256 || usage == hsm.DeriveP256 {
			return fmt.Errorf("%w: %s has no public key", ErrRow, k.label())
		}
		return nil
	}
	var err error
	if k.Point, err = protocol.ParsePublicKey(k.Public); err != nil {
		return fmt.Errorf("%w: public key of %s: %w", ErrRow, k.label(), err)
	}
	spki, err := k.SPKI()
	if err != nil {
		return fmt.Errorf("%w: public key of %s: %w", ErrRow, k.label(), err)
	}
	if sum := sha256.Sum256(spki); !bytes.Equal(sum[:len(k.ID)], k.ID[:]) {
		return fmt.Errorf("%w: %s has the id of another key", ErrRow, k.label())
	}
	return nil
}

// rootKeys are the keys of all roots that may have certified something, by number: the
// chain, and the roots after it for as far as each is named by the one before. Only the
// row of root 1 has no certificate, and that of a root that was not rotated to.
func (c chain) rootKeys(rows []store.Key) (map[uint64]protocol.PublicKey, error) {
	byNumber := map[uint64]store.Key{}
	for _, row := range rows {
		if row.Name == Root {
			byNumber[row.Version] = row
		}
	}
	keys := map[uint64]protocol.PublicKey{}
	for i, root := range c.roots {
		row, there := byNumber[root.Number]
		switch {
		case !there:
			return nil, fmt.Errorf("%w: root %d has no row", ErrRow, root.Number)
		case !bytes.Equal(row.Public, root.Key[:]):
			return nil, fmt.Errorf("%w: %s is %x, and the chain of roots has %s", ErrRow, Label(Root, root.Number), row.Public, root.Key)
		case !bytes.Equal(row.Cert, c.certs[i]) && (root.Number != 1 || row.Cert != nil):
			return nil, fmt.Errorf("%w: %s has another certificate than in the chain of roots", ErrRow, Label(Root, root.Number))
		}
		keys[root.Number] = root.Key
	}
	for last := c.newest(); ; {
		row, there := byNumber[last.Number+1]
		if !there {
			break
		}
		if sha256.Sum256(row.Public) != last.NextHash {
			return nil, fmt.Errorf("%w: %s is not the root that root %d names", ErrRow, Label(Root, row.Version), last.Number)
		}
		keys[row.Version] = protocol.PublicKey(row.Public) // 33 bytes, since the hash is right
		if row.Cert == nil {
			break
		}
		var err error
		if last, err = trust.FollowRoots(last.Number, last.NextHash, [][]byte{row.Cert}); err != nil {
			return nil, fmt.Errorf("%w: certificate of %s: %w", ErrRow, Label(Root, row.Version), err)
		}
	}
	return keys, c.noStrangers(byNumber, keys)
}

// noStrangers: a root that no other names is there only as the second after the chain,
// where a rotation was taken back. It has certified nothing; see [planner.rotateRoot].
func (c chain) noStrangers(byNumber map[uint64]store.Key, known map[uint64]protocol.PublicKey) error {
	for number, row := range byNumber {
		if _, ok := known[number]; !ok && (number != c.length()+2 || row.Cert != nil) {
			return fmt.Errorf("%w: no root leads to %s", ErrRow, Label(Root, number))
		}
	}
	return nil
}

// verify holds the row of a key against the KeyCert by its root, which says all that
// phones and devices know of it.
func (k *Key) verify(roots map[uint64]protocol.PublicKey) error {
	use, isCertified := certifiedNamed(k.Name)
	if !isCertified {
		if k.Cert != nil || k.Root != 0 {
			return fmt.Errorf("%w: %s has a certificate, and no key of this name has one", ErrRow, k.label())
		}
		return nil
	}
	root, known := roots[k.Root]
	if !known {
		return fmt.Errorf("%w: %s is certified by root %d, which is not known", ErrRow, k.label(), k.Root)
	}
	cert, err := trust.VerifyKeyCert(k.Cert, root)
	if err != nil {
		return fmt.Errorf("%w: %s: %w", ErrRow, k.label(), err)
	}
	if field := differs(cert, use.certificate(k.Key)); field != "" {
		return fmt.Errorf("%w: %s has a certificate with another %s", ErrRow, k.label(), field)
	}
	k.RulesOut = cert.MinEpoch != nil
	return nil
}

// differs names what a KeyCert says that the row does not; "" is nothing. It may rule out
// the epochs before it, and those only.
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
