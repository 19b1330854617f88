package backup

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	"countersign/appliance/keyring"
	"countersign/appliance/store"
	"countersign/protocol"
)

// chain is what a list of RootCerts comes to.
type chain struct {
	keys []protocol.PublicKey // of root 1 to the newest
	last protocol.RootCert
}

// follow verifies RootCerts from root 1 on. The first vouches for itself: a caller looks
// for a root that he knows.
func follow(certs [][]byte) (c chain, err error) {
	for _, cert := range certs {
		r, err := protocol.VerifyRootCert(cert)
		if err != nil {
			return c, err
		}
		c.keys = append(c.keys, r.Key)
	}
	if len(c.keys) == 0 {
		return c, fmt.Errorf("no root: %w", ErrFile)
	}
	c.last, err = protocol.FollowRoots(0, sha256.Sum256(c.keys[0][:]), certs)
	return c, err
}

// certs holds settings and rows of a state against each other: the chain of roots, the
// rows of roots against it, and each KeyCert against its row and the root of that. It
// gives the KeyCerts by label. Errors wrap [ErrFile].
func (s State) certs() (map[string]protocol.KeyCert, error) {
	c, err := follow(s.Settings.RootCerts)
	if err == nil && c.last.NextHash != s.Settings.NextRootHash {
		err = fmt.Errorf("the hash of the next root is not the one that root %d names", c.last.Number)
	}
	if err != nil {
		return nil, fmt.Errorf("roots: %v: %w", err, ErrFile)
	}
	for _, k := range s.Keys {
		if k.Name != keyring.Root {
			continue
		}
		if err := c.fits(k, s.Settings.RootCerts); err != nil {
			return nil, fmt.Errorf("row of root %d: %v: %w", k.Version, err, ErrFile)
		}
		if k.Version == c.last.Number+1 {
			c.keys = append(c.keys, protocol.PublicKey(k.Public))
		}
	}
	certs := map[string]protocol.KeyCert{}
	for _, k := range s.Keys {
		if k.Name == keyring.Root || k.Cert == nil {
			continue
		}
		label := keyring.Label(k.Name, k.Version)
		if certs[label], err = c.certOf(k); err != nil {
			return nil, fmt.Errorf("certificate of %s: %v: %w", label, err, ErrFile)
		}
	}
	return certs, nil
}

// fits compares the row of a root with the chain. The root after its newest is the one
// whose hash that names; one after that certifies nothing yet.
func (c chain) fits(row store.Key, certs [][]byte) error {
	next := c.last.Number + 1
	switch known := row.Version > 0 && row.Version < next; {
	case known && (!bytes.Equal(row.Public, c.keys[row.Version-1][:]) || row.Cert != nil && !bytes.Equal(row.Cert, certs[row.Version-1])):
		return errors.New("another than in the chain")
	case known:
		return nil
	case row.Version != next && row.Cert != nil:
		return errors.New("a certificate out of turn")
	case row.Version == next && (len(row.Public) != len(protocol.PublicKey{}) || sha256.Sum256(row.Public) != c.last.NextHash):
		return fmt.Errorf("another than root %d names", c.last.Number)
	case row.Cert != nil: // it waits
		_, err := protocol.FollowRoots(c.last.Number, c.last.NextHash, [][]byte{row.Cert})
		return err
	}
	return nil
}

// certOf is a row's KeyCert, which says what the row says, under its root.
func (c chain) certOf(row store.Key) (cert protocol.KeyCert, err error) {
	use, err := protocol.ParseUse(row.Name)
	if err != nil {
		return cert, err
	}
	if row.Root == 0 || row.Root > uint64(len(c.keys)) {
		return cert, fmt.Errorf("no root %d", row.Root)
	}
	if cert, err = protocol.VerifyKeyCert(row.Cert, c.keys[row.Root-1]); err != nil {
		return cert, err
	}
	if cert.Epoch != row.Version || cert.Use != use || !bytes.Equal(cert.Key[:], row.Public) ||
		cert.NotBefore != uint64(row.NotBefore.Unix()) || cert.NotAfter != uint64(row.NotAfter.Unix()) {
		return cert, errors.New("it says another epoch, use, key or date than the row")
	}
	return cert, nil
}

// counts finds what a state as of a time has against a decision key: a version in use
// that rules its epoch out, or its pair marked compromised. Errors wrap [ErrRuledOut] or
// [ErrFile].
func (s State) counts(by protocol.KeyCert, at time.Time) error {
	certs, err := s.certs()
	if err != nil {
		return err
	}
	for _, k := range s.Keys {
		if k.Name != keyring.Decision {
			continue
		}
		label := keyring.Label(k.Name, k.Version)
		if !k.CompromisedAt.IsZero() && bytes.Equal(k.Public, by.Key[:]) {
			return fmt.Errorf("%s is marked compromised: %w", label, ErrRuledOut)
		}
		least := certs[label].MinEpoch
		if least != nil && *least > by.Epoch && inUse(k, at) {
			return fmt.Errorf("%s rules out every epoch before %d, and %d signed: %w", label, *least, by.Epoch, ErrRuledOut)
		}
	}
	return nil
}

// inUse reports whether a version has come into use by a time. One that was rotated to
// and taken back has not.
func inUse(k store.Key, at time.Time) bool {
	return !k.ActivatedAt.IsZero() && !k.ActivatedAt.After(at) && (k.RetiredAt.IsZero() || !k.RetiredAt.Before(k.ActivatedAt))
}
