package backup

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"time"

	"countersign/appliance/keyring"
	"countersign/protocol"
	"countersign/protocol/trust"
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

// Known is what an administrator knows of the appliance, whatever the files say.
type Known struct {
	Root     protocol.PublicKey // one of its roots
	MinEpoch uint64             // of the decision key: what an earlier one signed is refused
}

// Signature is a signature that was verified.
type Signature struct {
	By    trust.KeyCert // of the decision key
	roots [][]byte      // RootCerts from root 1 to the one that certified it
	known Known         // by which it was verified
}

// open reads a file of a kind and verifies it. The chain of roots that it brings is good
// for nothing unless the known root is in it: from there on each root names the next.
// The roots before it are vouched for by the payload, which has to list the same.
func (known Known) open(kind string, file []byte) (s signed, by Signature, err error) {
	if s, err = parse[signed](file); err != nil {
		return s, by, err
	}
	if s.Kind != kind {
		return s, by, fmt.Errorf("a %.40q, want a %q: %w", s.Kind, kind, ErrFile)
	}
	roots, err := keyring.Follow(s.Roots)
	if err == nil {
		by, err = s.verify(roots[len(roots)-1])
	}
	if err != nil {
		return s, by, fmt.Errorf("signature of the %s: %v: %w", kind, err, ErrFile)
	}
	if !slices.ContainsFunc(roots, func(r trust.RootCert) bool { return r.Key == known.Root }) {
		return s, by, fmt.Errorf("no root that vouches for the %s is %s: %w", kind, known.Root, ErrOther)
	}
	if by.By.Epoch < known.MinEpoch {
		return s, by, fmt.Errorf("the %s is by decision epoch %d, below %d: %w", kind, by.By.Epoch, known.MinEpoch, ErrRuledOut)
	}
	by.known = known
	return s, by, nil
}

// verify verifies the signature under the newest root of a chain that was followed.
func (s signed) verify(root trust.RootCert) (Signature, error) {
	key, err := trust.VerifyKeyCert(s.Cert, root.Key)
	if err != nil {
		return Signature{}, err
	}
	digest := sha256.Sum256(protocol.SigStructure(aad(s.Kind), s.Payload))
	if key.Use != trust.UseDecision || !key.Key.VerifyDigest(digest[:], s.Signature) {
		return Signature{}, errors.New("not by the decision key")
	}
	return Signature{By: key, roots: s.Roots}, nil
}

// vouchesFor returns an error unless the state's roots are the chain that signed it.
func (by Signature) vouchesFor(s State) error {
	if !slices.EqualFunc(by.roots, s.Settings.RootCerts, bytes.Equal) {
		return fmt.Errorf("its root_certs are not the chain that signed: %w", ErrFile)
	}
	return nil
}

// follows reports whether two chains are of one appliance: the one begins with the other.
func (by Signature) follows(other Signature) bool {
	n := min(len(by.roots), len(other.roots))
	return slices.EqualFunc(by.roots[:n], other.roots[:n], bytes.Equal)
}

// Backup is a file of keys that was read and verified.
type Backup struct {
	Document
	Signature
	State  State    // of the document
	SHA256 [32]byte // of the file
}

// Write signs a document.
func Write(ctx context.Context, by Signer, d Document, now time.Time) ([]byte, error) {
	file, err := sign(ctx, by, signed{Kind: kindKeys, Payload: marshal(d)}, now)
	if err != nil {
		return nil, fmt.Errorf("signing the backup: %w", err)
	}
	return file, nil
}

// Read reads what [Write] made by the appliance that is known; errors wrap [ErrFile],
// [ErrOther] or [ErrRuledOut].
func Read(file []byte, known Known) (b Backup, err error) {
	s, by, err := known.open(kindKeys, file)
	if err != nil {
		return b, err
	}
	b = Backup{Signature: by, SHA256: sha256.Sum256(file)}
	if b.Document, err = parseDocument(s.Payload); err != nil {
		return b, err
	}
	if b.State, err = b.Document.state(); err != nil {
		return b, err
	}
	if err := by.vouchesFor(b.State); err != nil {
		return b, fmt.Errorf("the backup: %w", err)
	}
	if err := b.State.counts(by.By, b.Time()); err != nil {
		return b, fmt.Errorf("the backup: %w", err)
	}
	return b, nil
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

// Statement is a statement that was read and verified.
type Statement struct {
	Copy
	Signature
}

// Vouched reads what [Vouch] made by the appliance of this backup; errors wrap
// [ErrFile], [ErrOther] or [ErrRuledOut].
func (b Backup) Vouched(file []byte) (v Statement, err error) {
	s, by, err := b.known.open(kindDatabase, file)
	if err != nil {
		return v, err
	}
	if !by.follows(b.Signature) {
		return v, fmt.Errorf("the database has other roots than the backup: %w", ErrOther)
	}
	v.Signature = by
	v.Copy, err = parse[Copy](s.Payload)
	return v, err
}

// Join checks a database that its statement vouches for, holds it and the backup against
// what signed either, and merges them. Errors wrap [ErrFile], [ErrOther] or
// [ErrRuledOut].
func (b Backup) Join(v Statement, database State) (m Merged, err error) {
	if err := v.vouchesFor(database); err != nil {
		return m, fmt.Errorf("the database: %w", err)
	}
	for _, check := range []error{
		database.counts(v.By, v.Point.Time()), database.counts(b.By, v.Point.Time()), b.State.counts(v.By, b.Time()),
	} {
		if check != nil {
			return m, check
		}
	}
	return Merge(database, b.State)
}

// Alone is what a backup brings back beside a database that nothing vouches for: see
// overrule. Errors wrap [ErrOther], [ErrFile] or [ErrRuledOut].
func (b Backup) Alone(database State, now time.Time) (Merged, error) {
	m, err := overrule(database, b.State, now)
	if err != nil {
		return m, err
	}
	return m, m.counts(b.By, b.Time())
}
