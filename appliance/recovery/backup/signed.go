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
	"countersign/appliance/keyring/chain"
	"countersign/appliance/keyuse"
	"countersign/protocol"
	"countersign/protocol/trust"
)

// signed is the format of both files in deterministic CBOR: the payload, and the
// certificates from the first root to the decision key that signed. The signature is over
// COSE's Sig_structure (RFC 9052 §4.4) with the external_aad "countersign KIND v1".
type signed struct {
	_         struct{} `cbor:",toarray"`
	Kind      string
	Payload   []byte
	Roots     [][]byte // RootCert(1) to the one of the root that certified the key
	Cert      []byte   // KeyCert of the decision epoch
	Signature []byte   // ES256, r‖s, 64 bytes
}

// Kinds of signed files.
const (
	kindKeys     = "key backup"
	kindDatabase = "database"
)

func aad(kind string) string { return "countersign " + kind + " v1" }

// Signer is the part of [keyuse.Keys] that signs.
type Signer interface {
	Current(name string, now time.Time) (keyring.Key, error)
	Signer(keyring.Key) keyuse.Signer
	Settings() keyring.Settings
}

// sign returns a file signed with the decision key in use at now.
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

// Known is what an administrator knows of the appliance independently of its files.
type Known struct {
	Root     protocol.PublicKey // one of its roots
	MinEpoch uint64             // of the decision key; files signed by an earlier one are refused
}

// Signature is a verified signature.
type Signature struct {
	By    trust.KeyCert // of the decision key
	roots [][]byte      // RootCerts from root 1 to the one that certified it
	known Known
}

// open decodes a file of a kind and verifies it. The file's chain of roots must contain the
// known root: from there on each root names the next. The payload vouches for the roots
// before it and must list the same ones.
func (known Known) open(kind string, file []byte) (s signed, by Signature, err error) {
	if s, err = parse[signed](file); err != nil {
		return s, by, err
	}
	if s.Kind != kind {
		return s, by, fmt.Errorf("a %.40q, want a %q: %w", s.Kind, kind, ErrFile)
	}
	roots, err := chain.Follow(s.Roots)
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

// verify verifies the signature under the newest root of a verified chain.
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

// vouchesFor returns an error unless the state has the roots of the signature.
func (by Signature) vouchesFor(s State) error {
	if !slices.EqualFunc(by.roots, s.Settings.RootCerts, bytes.Equal) {
		return fmt.Errorf("its root_certs are not the chain that signed: %w", ErrFile)
	}
	return nil
}

// follows reports whether one chain of roots is a prefix of the other.
func (by Signature) follows(other Signature) bool {
	n := min(len(by.roots), len(other.roots))
	return slices.EqualFunc(by.roots[:n], other.roots[:n], bytes.Equal)
}

// Backup is a verified file of keys.
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

// Read decodes and verifies a file of [Write]. Errors wrap [ErrFile], [ErrOther] or
// [ErrRuledOut].
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

// Copy is the payload of the statement for a copy of the database.
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

// Statement is a verified statement.
type Statement struct {
	Copy
	Signature
}

// Vouched decodes and verifies a statement of [Vouch] by the appliance of this backup.
// Errors wrap [ErrFile], [ErrOther] or [ErrRuledOut].
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

// Join verifies a database with a statement, checks that database and backup accept the
// keys that signed both files, and merges them. Errors wrap [ErrFile], [ErrOther] or
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

// Alone merges the backup with a database without a statement: see overrule. Errors wrap
// [ErrOther], [ErrFile] or [ErrRuledOut].
func (b Backup) Alone(database State, now time.Time) (Merged, error) {
	m, err := overrule(database, b.State, now)
	if err != nil {
		return m, err
	}
	return m, m.counts(b.By, b.Time())
}

// counts verifies each row of a state under the roots in its settings. It returns an error
// if the state as of a time has a version in use that rules the decision key's epoch out,
// or has marked the key as compromised. Errors wrap [ErrFile] or [ErrRuledOut].
func (s State) counts(by trust.KeyCert, at time.Time) error {
	keys, err := chain.Keys(s.Settings, s.Keys)
	if err != nil {
		return fmt.Errorf("%v: %w", err, ErrFile)
	}
	for _, k := range keys {
		if k.Name != keyring.Decision {
			continue
		}
		label := keyring.Label(k.Name, k.Version)
		if !k.CompromisedAt.IsZero() && k.Point == by.Key {
			return fmt.Errorf("%s is marked compromised: %w", label, ErrRuledOut)
		}
		if k.RulesOut && k.Version > by.Epoch && inUse(k, at) {
			return fmt.Errorf("%s rules out every epoch before it, and %d signed: %w", label, by.Epoch, ErrRuledOut)
		}
	}
	return nil
}

// inUse reports whether a version has come into use by a time. A rotation that was taken
// back does not count.
func inUse(k keyring.Key, at time.Time) bool {
	return !k.ActivatedAt.IsZero() && !k.ActivatedAt.After(at) && (k.RetiredAt.IsZero() || !k.RetiredAt.Before(k.ActivatedAt))
}
