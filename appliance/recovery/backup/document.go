// Package backup is what brings a lost appliance back: the document that holds all of
// its keys, each sealed for the backup key, with the trust they stand for; the signed
// statement that goes with a copy of the database; and the way of both onto a fresh
// token. The shares of the backup key itself are package custody's.
package backup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/fxamacker/cbor/v2"

	"countersign/appliance/keyring"
	"countersign/appliance/store"
)

// Sentinels.
var (
	// ErrFile: not a file of this kind, or one that was changed.
	ErrFile = errors.New("not what an appliance signed")
	// ErrOther: two files, or a file and what it is held against, are not of one
	// appliance, or not of one history.
	ErrOther = errors.New("of another appliance or another history")
	// ErrRuledOut: the decision key that signed does not count any more.
	ErrRuledOut = errors.New("signed by a key that does not count any more")
)

const documentVersion = 1

// Point is a moment of the store: that of its newest audit record.
type Point struct {
	_        struct{} `cbor:",toarray"`
	Sequence uint64   // 0: there is none
	At       int64    // Unix microseconds
	Leaf     [32]byte // SHA-256(salt ‖ record)
}

// PointOf puts a point of a store into words.
func PointOf(p store.Point) Point { return Point{Sequence: p.Sequence, At: micros(p.At), Leaf: p.Leaf} }

// Time of the point, in UTC.
func (p Point) Time() time.Time { return stamp(p.At) }

// Document is everything but the database and the secret of the backup key, in the
// deterministic encoding of RFC 8949 §4.2.1.
type Document struct {
	Version  uint64            `cbor:"1,keyasint"`
	At       int64             `cbor:"2,keyasint"` // when it was made, Unix microseconds
	Point    Point             `cbor:"3,keyasint"` // of the store at that time
	Settings map[string][]byte `cbor:"4,keyasint"` // keyring.Settings
	Policy   policyRow         `cbor:"5,keyasint"`
	Rows     []keyRow          `cbor:"6,keyasint"`
}

type policyRow struct {
	_         struct{} `cbor:",toarray"`
	Version   uint64
	Document  []byte
	Activated int64 // Unix microseconds; here and below 0 is none
}

type keyRow struct {
	Name        string   `cbor:"1,keyasint"`
	Version     uint64   `cbor:"2,keyasint"`
	ID          [20]byte `cbor:"3,keyasint"`
	Public      []byte   `cbor:"4,keyasint,omitempty"`
	NotBefore   int64    `cbor:"5,keyasint,omitempty"`
	NotAfter    int64    `cbor:"6,keyasint,omitempty"`
	Cert        []byte   `cbor:"7,keyasint,omitempty"`
	Created     int64    `cbor:"8,keyasint,omitempty"`
	Root        uint64   `cbor:"9,keyasint,omitempty"`
	Origin      string   `cbor:"10,keyasint,omitempty"`
	Tokens      []string `cbor:"11,keyasint,omitempty"`
	Revision    uint64   `cbor:"12,keyasint"`
	Activated   int64    `cbor:"13,keyasint,omitempty"`
	Retired     int64    `cbor:"14,keyasint,omitempty"`
	Suspended   int64    `cbor:"15,keyasint,omitempty"`
	Compromised int64    `cbor:"16,keyasint,omitempty"`
	Destroyed   int64    `cbor:"17,keyasint,omitempty"`
	Sealed      []byte   `cbor:"18,keyasint,omitempty"`
	SealedFor   []byte   `cbor:"19,keyasint,omitempty"`
}

func micros(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMicro()
}

func stamp(us int64) time.Time {
	if us == 0 {
		return time.Time{}
	}
	return time.UnixMicro(us).UTC()
}

func rowOf(k store.Key) keyRow {
	return keyRow{
		Name: k.Name, Version: k.Version, ID: k.ID, Public: k.Public, NotBefore: micros(k.NotBefore), NotAfter: micros(k.NotAfter),
		Cert: k.Cert, Created: micros(k.CreatedAt), Root: k.Root, Origin: string(k.Origin), Tokens: k.Tokens, Revision: k.Revision,
		Activated: micros(k.ActivatedAt), Retired: micros(k.RetiredAt), Suspended: micros(k.SuspendedAt),
		Compromised: micros(k.CompromisedAt), Destroyed: micros(k.DestroyedAt), Sealed: k.Sealed, SealedFor: k.SealedFor,
	}
}

func (r keyRow) key() store.Key {
	return store.Key{
		Name: r.Name, Version: r.Version, ID: r.ID, Public: r.Public, NotBefore: stamp(r.NotBefore), NotAfter: stamp(r.NotAfter),
		Cert: r.Cert, CreatedAt: stamp(r.Created), Root: r.Root, Origin: store.Origin(r.Origin), Tokens: r.Tokens, Revision: r.Revision,
		ActivatedAt: stamp(r.Activated), RetiredAt: stamp(r.Retired), SuspendedAt: stamp(r.Suspended),
		CompromisedAt: stamp(r.Compromised), DestroyedAt: stamp(r.Destroyed), Sealed: r.Sealed, SealedFor: r.SealedFor,
	}
}

// State is what a store knows of its keys.
type State struct {
	Keys     []store.Key
	Settings keyring.Settings
	Policy   store.Policy
}

// Source is the part of a store that a state is read from.
type Source interface {
	ListKeys(ctx context.Context) ([]store.Key, error)
	Settings(ctx context.Context) (map[string][]byte, error)
	ActivePolicy(ctx context.Context) (store.Policy, error)
}

// StateOf reads the state of a store that holds one.
func StateOf(ctx context.Context, from Source) (s State, err error) {
	var c store.Claims
	if c.Keys, err = from.ListKeys(ctx); err != nil {
		return s, err
	}
	if c.Settings, err = from.Settings(ctx); err != nil {
		return s, err
	}
	if c.Policy, err = from.ActivePolicy(ctx); err != nil {
		return s, err
	}
	return Claimed(c)
}

// Claimed is the state that a store claims before it is unsealed.
func Claimed(c store.Claims) (s State, err error) {
	s.Keys, s.Policy = c.Keys, c.Policy
	if s.Settings, err = keyring.ParseSettings(c.Settings); err == nil && s.Policy.Version == 0 {
		err = fmt.Errorf("the active policy: %w", store.ErrNotFound)
	}
	return s, err
}

// NewDocument puts the state of a store at a point into a document.
func NewDocument(s State, point Point, now time.Time) Document {
	d := Document{
		Version: documentVersion, At: micros(now), Point: point, Settings: s.Settings.Values(),
		Policy: policyRow{Version: s.Policy.Version, Document: s.Policy.Document, Activated: micros(s.Policy.ActivatedAt)},
	}
	for _, k := range s.Keys {
		d.Rows = append(d.Rows, rowOf(k))
	}
	return d
}

// Time at which the document was made, in UTC.
func (d Document) Time() time.Time { return stamp(d.At) }

// state that the document has; errors wrap [ErrFile].
func (d Document) state() (s State, err error) {
	if s.Settings, err = keyring.ParseSettings(d.Settings); err != nil {
		return s, fmt.Errorf("trust settings: %v: %w", err, ErrFile)
	}
	s.Policy = store.Policy{Version: d.Policy.Version, Document: d.Policy.Document, ActivatedAt: stamp(d.Policy.Activated)}
	for _, r := range d.Rows {
		s.Keys = append(s.Keys, r.key())
	}
	return s, nil
}

var (
	encMode = must(cbor.CoreDetEncOptions().EncMode())
	decMode = must(cbor.DecOptions{
		DupMapKey: cbor.DupMapKeyEnforcedAPF, IndefLength: cbor.IndefLengthForbidden, TagsMd: cbor.TagsForbidden,
		MaxNestedLevels: 5, ExtraReturnErrors: cbor.ExtraDecErrorUnknownField,
	}.DecMode())
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func marshal(v any) []byte { return must(encMode.Marshal(v)) }

// parse reads what marshal writes, byte for byte; errors wrap [ErrFile].
func parse[T any](b []byte) (v T, err error) {
	if err := decMode.Unmarshal(b, &v); err != nil {
		return v, fmt.Errorf("%v: %w", err, ErrFile)
	}
	if !bytes.Equal(marshal(v), b) {
		return v, fmt.Errorf("not in canonical form: %w", ErrFile)
	}
	return v, nil
}

// parseDocument reads a document of this version.
func parseDocument(b []byte) (Document, error) {
	d, err := parse[Document](b)
	if err == nil && d.Version != documentVersion {
		err = fmt.Errorf("version %d, want %d: %w", d.Version, documentVersion, ErrFile)
	}
	known := func(r keyRow) bool { return keyring.UsageOf(r.Name) != 0 && r.Version != 0 && r.Revision != 0 }
	if err == nil && slices.ContainsFunc(d.Rows, func(r keyRow) bool { return !known(r) }) {
		err = fmt.Errorf("a row of a key that is none: %w", ErrFile)
	}
	return d, err
}
