package keyring

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"

	"countersign/protocol/derive"
)

// Settings are the trust settings that the store keeps beside the keys.
type Settings struct {
	Domain       string   // SPIFFE trust domain
	RootCerts    [][]byte // RootCert(1) to the current one
	NextRootHash [32]byte
	// HandleEpoch enters the key of every handle. The ceremony makes it, and each
	// restore another, so that no challenge from before is answered: it may have been
	// spent. A document or store of a release before it has zero.
	HandleEpoch derive.HandleEpoch
}

const (
	settingDomain = "trust_domain"
	settingRoots  = "root_certs"
	settingNext   = "next_root_hash"
	settingEpoch  = "handle_epoch"
)

// Values are the settings as the store keeps them.
func (s Settings) Values() map[string][]byte {
	var roots []byte
	for _, cert := range s.RootCerts {
		roots = binary.BigEndian.AppendUint16(roots, uint16(len(cert)))
		roots = append(roots, cert...)
	}
	values := map[string][]byte{settingDomain: []byte(s.Domain), settingRoots: roots, settingNext: s.NextRootHash[:]}
	if s.HandleEpoch != (derive.HandleEpoch{}) {
		values[settingEpoch] = s.HandleEpoch[:]
	}
	return values
}

// NewHandleEpoch is one that no handle has been under.
func NewHandleEpoch() (e derive.HandleEpoch) {
	_, _ = rand.Read(e[:]) // never fails, crypto/rand
	return e
}

// Sentinels of the settings.
var (
	// ErrNotInitialized: no ceremony has been held for this store.
	ErrNotInitialized = errors.New("the store holds no keys and no trust")
	// ErrOldStore: the store is of an earlier release and lacks what this one needs.
	ErrOldStore = errors.New("the store is of an earlier release")
)

// ParseSettings reads what [Settings.Values] writes; errors wrap [ErrNotInitialized].
func ParseSettings(values map[string][]byte) (Settings, error) {
	s := Settings{Domain: string(values[settingDomain])}
	if s.Domain == "" || len(values[settingNext]) != len(s.NextRootHash) {
		return s, ErrNotInitialized
	}
	s.NextRootHash = [32]byte(values[settingNext])
	for b := values[settingRoots]; len(b) > 0; {
		if len(b) < 2 || len(b) < 2+int(binary.BigEndian.Uint16(b)) {
			return s, fmt.Errorf("root certificates are cut off: %w", ErrNotInitialized)
		}
		n := int(binary.BigEndian.Uint16(b))
		s.RootCerts = append(s.RootCerts, b[2:2+n])
		b = b[2+n:]
	}
	if b := values[settingEpoch]; b != nil {
		if len(b) != len(s.HandleEpoch) {
			return s, fmt.Errorf("handle epoch of %d bytes: %w", len(b), ErrNotInitialized)
		}
		s.HandleEpoch = derive.HandleEpoch(b)
	}
	return s, nil
}

// ErrOtherTrust: two settings are not of one appliance.
var ErrOtherTrust = errors.New("of another appliance")

// Newer is the later of two settings of one appliance: those with more roots. An error
// wraps [ErrOtherTrust].
func (s Settings) Newer(other Settings) (Settings, error) {
	if s.Domain != other.Domain {
		return s, fmt.Errorf("trust domains %q and %q: %w", s.Domain, other.Domain, ErrOtherTrust)
	}
	for i := range min(len(s.RootCerts), len(other.RootCerts)) {
		if !bytes.Equal(s.RootCerts[i], other.RootCerts[i]) {
			return s, fmt.Errorf("certificates of root %d differ: %w", i+1, ErrOtherTrust)
		}
	}
	if len(s.RootCerts) == len(other.RootCerts) && s.NextRootHash != other.NextRootHash {
		return s, fmt.Errorf("hashes of the next root differ: %w", ErrOtherTrust)
	}
	if len(other.RootCerts) > len(s.RootCerts) {
		return other, nil
	}
	return s, nil
}
