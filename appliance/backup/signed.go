package backup

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"time"

	"countersign/appliance/keyring"
	"countersign/protocol"
)

// signed is the form of both files, det-CBOR: what they hold, and the way from the
// first root to the decision key that signed it. COSE's Sig_structure (RFC 9052 §4.4)
// with the external_aad "countersign KIND v1" is what is signed.
type signed struct {
	_         struct{} `cbor:",toarray"`
	Kind      string
	Payload   []byte
	Roots     [][]byte // RootCert(1) to that of the root which certified the key
	Cert      []byte   // KeyCert of the decision epoch
	Signature []byte   // ES256, r‖s, 64 bytes
}

// The kinds.
const (
	kindKeys     = "key backup"
	kindDatabase = "database"
)

func aad(kind string) string { return "countersign " + kind + " v1" }

// Signer is the keyring as far as a signature takes it.
type Signer interface {
	Current(name string, now time.Time) (keyring.Key, error)
	Signer(keyring.Key) keyring.Signer
	Settings() keyring.Settings
}

// sign makes a file with the decision key in use at now.
func sign(ctx context.Context, by Signer, s signed, now time.Time) ([]byte, error) {
	key, err := by.Current(keyring.Decision, now)
	if err != nil {
		return nil, err
	}
	s.Roots, s.Cert = by.Settings().RootCerts, key.Cert
	digest := sha256.Sum256(protocol.SigStructure(aad(s.Kind), s.Payload))
	if s.Signature, err = by.Signer(key).SignDigest(ctx, digest[:]); err != nil {
		return nil, err
	}
	return marshal(s), nil
}

// open reads a file of a kind and verifies it down to the first root that it names
// itself: whose root that is, is for the caller to hold against what he knows.
func open(kind string, file []byte) (signed, error) {
	s, err := parse[signed](file)
	if err != nil {
		return s, err
	}
	if s.Kind != kind {
		return s, fmt.Errorf("a %.40q, want a %q: %w", s.Kind, kind, ErrFile)
	}
	if err := s.verify(); err != nil {
		return s, fmt.Errorf("signature of the %s: %v: %w", kind, err, ErrFile)
	}
	return s, nil
}

func (s signed) verify() error {
	if len(s.Roots) == 0 {
		return fmt.Errorf("no root: %w", ErrFile)
	}
	first, err := protocol.VerifyRootCert(s.Roots[0])
	if err != nil {
		return err
	}
	root, err := protocol.FollowRoots(0, sha256.Sum256(first.Key[:]), s.Roots)
	if err != nil {
		return err
	}
	key, err := protocol.VerifyKeyCert(s.Cert, root.Key)
	if err != nil {
		return err
	}
	digest := sha256.Sum256(protocol.SigStructure(aad(s.Kind), s.Payload))
	if key.Use != protocol.UseDecision || !key.Key.VerifyDigest(digest[:], s.Signature) {
		return fmt.Errorf("not by the decision key: %w", ErrFile)
	}
	return nil
}

// follows tells whether the roots of two files are of one appliance: the one list
// begins with the other.
func (s signed) follows(other signed) bool {
	for i := range min(len(s.Roots), len(other.Roots)) {
		if !bytes.Equal(s.Roots[i], other.Roots[i]) {
			return false
		}
	}
	return true
}

// Backup is a file of keys that was read and verified.
type Backup struct {
	Document
	SHA256 [32]byte // of the file
	signed signed
}

// Write signs a document.
func Write(ctx context.Context, by Signer, d Document, now time.Time) ([]byte, error) {
	file, err := sign(ctx, by, signed{Kind: kindKeys, Payload: marshal(d)}, now)
	if err != nil {
		return nil, fmt.Errorf("signing the backup: %w", err)
	}
	return file, nil
}

// Read reads what [Write] made; errors wrap [ErrFile].
func Read(file []byte) (Backup, error) {
	s, err := open(kindKeys, file)
	if err != nil {
		return Backup{}, err
	}
	d, err := parseDocument(s.Payload)
	return Backup{Document: d, SHA256: sha256.Sum256(file), signed: s}, err
}

// FirstRoot is the public key of root 1, which every phone and device was born with.
func (b Backup) FirstRoot() (protocol.PublicKey, error) {
	first, err := protocol.VerifyRootCert(b.signed.Roots[0])
	return first.Key, err
}

// Copy is the statement that goes with a copy of the database.
type Copy struct {
	_      struct{} `cbor:",toarray"`
	SHA256 [32]byte // of the file
	Size   uint64   // bytes
	Point  Point
}

// Vouch signs the statement of a copy of the database.
func Vouch(ctx context.Context, by Signer, c Copy, now time.Time) ([]byte, error) {
	file, err := sign(ctx, by, signed{Kind: kindDatabase, Payload: marshal(c)}, now)
	if err != nil {
		return nil, fmt.Errorf("signing the copy of the database: %w", err)
	}
	return file, nil
}

// Vouched reads what [Vouch] made, by the appliance of this backup; errors wrap
// [ErrFile] or [ErrOther].
func (b Backup) Vouched(file []byte) (Copy, error) {
	s, err := open(kindDatabase, file)
	if err != nil {
		return Copy{}, err
	}
	if !s.follows(b.signed) {
		return Copy{}, fmt.Errorf("the database has other roots than the backup: %w", ErrOther)
	}
	return parse[Copy](s.Payload)
}
