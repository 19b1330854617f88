// Package backup seals, restores and verifies copies of the appliance's keys. A backup is
// a signed document with all keys, each sealed for the backup key, and the trust settings
// and policy. A copy of the database has a signed statement. Package custody splits the
// backup key into shares.
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

var (
	// ErrFile means that a file is of another kind, or was changed.
	ErrFile = errors.New("not what an appliance signed")
	// ErrOther means that two files, or a file and a pinned root, belong to different
	// appliances or histories.
	ErrOther = errors.New("of another appliance or another history")
	// ErrRuledOut means that the decision key that signed was ruled out or compromised.
	ErrRuledOut = errors.New("signed by a key that no longer counts")
)

const documentVersion = 1

// Point is a moment of the store: its newest audit record.
type Point struct {
	_        struct{} `cbor:",toarray"`
	Sequence uint64   // 0: no record
	At       int64    // Unix microseconds
	Leaf     [32]byte // SHA-256(salt ‖ record)
}

// PointOf converts a point of a store.
func PointOf(p store.Point) Point { return Point{Sequence: p.Sequence, At: micros(p.At), Leaf: p.Leaf} }

// Time returns the time of the point in UTC.
func (p Point) Time() time.Time { return stamp(p.At) }

// Document holds everything except the database and the private backup key, in the
// deterministic encoding of RFC 8949 §4.2.1.
type Document struct {
	Version  uint64            `cbor:"1,keyasint"`
	At       int64             `cbor:"2,keyasint"` // creation time, Unix microseconds
	Point    Point             `cbor:"3,keyasint"` // of the store at that time
	Settings map[string][]byte `cbor:"4,keyasint"` // keyring.Settings
	Policy   policyRow         `cbor:"5,keyasint"`
	Rows     []keyRow          `cbor:"6,keyasint"`
}

type policyRow struct {
	_         struct{} `cbor:",toarray"`
	Version   uint64
	Document  []byte
	Activated int64 // Unix microseconds; 0: never, here and below
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

// State holds the keys, trust settings and policy of a store.
type State struct {
	Keys     []store.Key
	Settings keyring.Settings
	Policy   store.Policy
}

// Source is the part of a store that [StateOf] reads.
type Source interface {
	ListKeys(ctx context.Context) ([]store.Key, error)
	Settings(ctx context.Context) (map[string][]byte, error)
	ActivePolicy(ctx context.Context) (store.Policy, error)
}

// StateOf reads the state of a store.
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

// Claimed returns the state that a store claims before it is unsealed.
func Claimed(c store.Claims) (s State, err error) {
	s.Keys, s.Policy = c.Keys, c.Policy
	if s.Settings, err = keyring.ParseSettings(c.Settings); err == nil && s.Policy.Version == 0 {
		err = fmt.Errorf("the active policy: %w", store.ErrNotFound)
	}
	return s, err
}

// NewDocument returns the document of a store's state at a point.
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

// Time returns the creation time in UTC.
func (d Document) Time() time.Time { return stamp(d.At) }

// state decodes the state. Errors wrap [ErrFile].
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

// parse decodes canonical CBOR. Errors wrap [ErrFile].
func parse[T any](b []byte) (v T, err error) {
	if err := decMode.Unmarshal(b, &v); err != nil {
		return v, fmt.Errorf("%v: %w", err, ErrFile)
	}
	if !bytes.Equal(marshal(v), b) {
		return v, fmt.Errorf("not in canonical form: %w", ErrFile)
	}
	return v, nil
}

// parseDocument decodes a document of this version.
func parseDocument(b []byte) (Document, error) {
	d, err := parse[Document](b)
	if err == nil && d.Version != documentVersion {
		err = fmt.Errorf("version %d, want %d: %w", d.Version, documentVersion, ErrFile)
	}
	known := func(r keyRow) bool { return keyring.UsageOf(r.Name) != 0 && r.Version != 0 && r.Revision != 0 }
	if err == nil && slices.ContainsFunc(d.Rows, func(r keyRow) bool { return !known(r) }) {
		err = fmt.Errorf("a row of an unknown key: %w", ErrFile)
	}
	return d, err
}
