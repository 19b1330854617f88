package keyring

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"

	"countersign/protocol/derive"
)

// Settings are the trust settings that the store keeps with the keys.
type Settings struct {
	Domain       string   // SPIFFE trust domain
	RootCerts    [][]byte // RootCert(1) to the current one
	NextRootHash [32]byte
	// HandleEpoch enters the key of every handle. The ceremony chooses it, and each
	// restore another, so that no challenge from before the restore is answered: it may
	// have been spent. Zero in documents and stores of releases that lack it.
	HandleEpoch derive.HandleEpoch
}

const (
	settingDomain = "trust_domain"
	settingRoots  = "root_certs"
	settingNext   = "next_root_hash"
	settingEpoch  = "handle_epoch"
)

// Values encodes the settings for the store.
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

// NewHandleEpoch returns a random handle epoch.
func NewHandleEpoch() (e derive.HandleEpoch) {
	_, _ = rand.Read(e[:]) // never fails, crypto/rand
	return e
}

// ErrNotInitialized means that no key ceremony was held for this store.
var ErrNotInitialized = errors.New("the store holds no keys and no trust settings")

// ParseSettings decodes what [Settings.Values] encodes. Errors wrap [ErrNotInitialized].
func ParseSettings(values map[string][]byte) (Settings, error) {
	s := Settings{Domain: string(values[settingDomain])}
	if s.Domain == "" || len(values[settingNext]) != len(s.NextRootHash) {
		return s, ErrNotInitialized
	}
	s.NextRootHash = [32]byte(values[settingNext])
	for b := values[settingRoots]; len(b) > 0; {
		if len(b) < 2 || len(b) < 2+int(binary.BigEndian.Uint16(b)) {
			return s, fmt.Errorf("root certificates are truncated: %w", ErrNotInitialized)
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
