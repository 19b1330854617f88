// Package change defines change requests: the canonical document that administrators countersign,
// its hash, and their signatures. CHANGE.md specifies every byte, testdata has a vector. The
// package keeps no state and reads no clock.
//
// A document that parses marshals to the same bytes; a document that is not canonical does not
// parse. A reader computes the hash of the document that it shows, and need not trust the sender.
package change

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/fxamacker/cbor/v2"

	"countersign/policy"
	"countersign/protocol"
)

// Version is the version of the document, key 1.
const Version = 1

// Bounds of a request's life, and of its document in bytes.
const (
	DefaultLife = 24 * time.Hour
	MaxLife     = 7 * 24 * time.Hour
	MaxDocument = 96 << 10
)

// Errors of documents and signatures.
var (
	// ErrDocument: the bytes are not a canonical change request.
	ErrDocument = errors.New("not a change request")
	// ErrSignature: the bytes are not a signature, or not a signature of this hash by this key.
	ErrSignature = errors.New("signature does not verify")
)

// Hash is SHA-256 of the document, 32 bytes.
type Hash [sha256.Size]byte

func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// ID returns the prefix of the hash by which administrators name a request.
func (h Hash) ID() ID { return ID(h[:8]) }

// ID names a request: the first 8 bytes of its hash.
type ID [8]byte

func (id ID) String() string { return hex.EncodeToString(id[:]) }

// ParseID reads the 16 hexadecimal digits that String writes, or the 64 of a hash.
func ParseID(s string) (id ID, err error) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(ID{}) && len(b) != len(Hash{}) {
		return id, fmt.Errorf("change id %q: want 16 hexadecimal digits", s)
	}
	return ID(b[:len(id)]), nil
}

// Parameters are the parameters of a kind of change by name: text, unsigned integers below 2⁶³,
// booleans, byte strings and lists of text.
type Parameters map[string]any

// Request is a parsed document.
type Request struct {
	Version    uint64      `cbor:"1,keyasint"`
	Kind       policy.Kind `cbor:"2,keyasint"`
	Parameters Parameters  `cbor:"3,keyasint"`
	Domain     string      `cbor:"4,keyasint"` // SPIFFE trust domain of the appliance
	By         string      `cbor:"5,keyasint"` // who asks: "local"
	Created    uint64      `cbor:"6,keyasint"` // seconds since 1970, UTC
	Expires    uint64      `cbor:"7,keyasint"` // as Created; the request is closed from then on
	Nonce      [16]byte    `cbor:"8,keyasint"` // random
	Base       [32]byte    `cbor:"9,keyasint"` // hash of the state that the change was asked for in
}

var (
	encMode = must(cbor.CoreDetEncOptions().EncMode())
	decMode = must(cbor.DecOptions{
		DupMapKey: cbor.DupMapKeyEnforcedAPF, IndefLength: cbor.IndefLengthForbidden, TagsMd: cbor.TagsForbidden,
		MaxNestedLevels: 4, ExtraReturnErrors: cbor.ExtraDecErrorUnknownField,
	}.DecMode())
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// Marshal returns the document. Parse of the result fails if the caller gave parameters of
// another type.
func (r Request) Marshal() []byte { return must(encMode.Marshal(r)) }

// Parse reads a document; errors wrap [ErrDocument].
func Parse(document []byte) (r Request, err error) {
	if len(document) > MaxDocument {
		return r, fmt.Errorf("%w: %d bytes, at most %d are allowed", ErrDocument, len(document), MaxDocument)
	}
	if err := decMode.Unmarshal(document, &r); err != nil {
		return Request{}, fmt.Errorf("%w: %v", ErrDocument, err)
	}
	if err := r.check(); err != nil {
		return Request{}, fmt.Errorf("%w: %v", ErrDocument, err)
	}
	if !bytes.Equal(r.Marshal(), document) {
		return Request{}, fmt.Errorf("%w: it is not in canonical form", ErrDocument)
	}
	return r, nil
}

// HashOf returns the hash of a document.
func HashOf(document []byte) Hash { return sha256.Sum256(document) }

func (r Request) check() error {
	if r.Version != Version {
		return fmt.Errorf("version %d, want %d", r.Version, Version)
	}
	if _, err := policy.ParseKind(r.Kind.String()); err != nil {
		return err
	}
	if r.Parameters == nil || r.Domain == "" || r.By == "" {
		return errors.New("a member is missing")
	}
	if life := r.Expires - r.Created; r.Expires <= r.Created || life > uint64(MaxLife/time.Second) {
		return fmt.Errorf("expires %d: want up to %v after created %d", r.Expires, MaxLife, r.Created)
	}
	return r.Parameters.check()
}

func (p Parameters) check() error {
	for name, value := range p {
		switch v := value.(type) {
		case string, uint64, bool, []byte:
		case []any:
			for _, one := range v {
				if _, ok := one.(string); !ok {
					return fmt.Errorf("parameter %q: a list of something else than text", name)
				}
			}
		default:
			return fmt.Errorf("parameter %q: a value of another type", name)
		}
	}
	return nil
}

// Text returns a text parameter, "" if there is none.
func (p Parameters) Text(name string) string {
	s, _ := p[name].(string)
	return s
}

// Number returns an unsigned integer parameter, 0 if there is none.
func (p Parameters) Number(name string) uint64 {
	n, _ := p[name].(uint64)
	return n
}

// Truth returns a boolean parameter, false if there is none.
func (p Parameters) Truth(name string) bool {
	b, _ := p[name].(bool)
	return b
}

// RulesOut reports whether a step of a key ends the acceptance of other versions, or makes one that will.
func (p Parameters) RulesOut() bool { return p.Truth("compromised") || p.Truth("rules_out") }

// Bytes returns a byte string parameter, nil if there is none.
func (p Parameters) Bytes(name string) []byte {
	b, _ := p[name].([]byte)
	return b
}

// Texts returns a parameter that is a list of text, nil if there is none.
func (p Parameters) Texts(name string) (all []string) {
	list, _ := p[name].([]any)
	for _, one := range list {
		s, _ := one.(string)
		all = append(all, s)
	}
	return all
}

// SignerID names an administrator's key: the first 8 bytes of SHA-256 of its 33-byte
// compressed point (SEC 1 §2.3.3).
type SignerID [8]byte

func (id SignerID) String() string { return hex.EncodeToString(id[:]) }

// SignerOf returns the id of a key.
func SignerOf(key protocol.PublicKey) SignerID {
	sum := sha256.Sum256(key[:])
	return SignerID(sum[:8])
}

// Draft is a change to ask for. The service makes a Request of it.
type Draft struct {
	Kind       policy.Kind
	Parameters Parameters
	Life       time.Duration // for countersigning; 0: [DefaultLife]
}
