package store

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"sync"
	"sync/atomic"

	"github.com/fxamacker/cbor/v2"
)

// ErrForged means that a record does not fit its seal or does not hang on the head: this appliance
// did not write it, wrote it elsewhere, or has replaced it since.
var ErrForged = errors.New("the record was changed outside of the appliance and is not trusted")

// ErrSealed means that the store is not unsealed yet. It wraps [ErrUnavailable].
var ErrSealed = fmt.Errorf("%w: its records cannot be verified before it is unsealed", ErrUnavailable)

// Sizes of a seal, bytes.
const (
	sealKeySize = 32
	sealSize    = 8 + sha256.Size
)

// Seal vouches for one record: HMAC-SHA-256, under the seal key of a version of mac,
// over the deterministic CBOR (RFC 8949 §4.2.1) of
//
//	[table tstr, key bstr, version of mac uint, {field number: value}]
//
// with every field that is not zero (PROTOCOL.md §2.1). The counter of what restricts a
// client is always there, for 0 is a counter. A record that is copied under another key,
// or into another table, does not fit its seal.
type Seal struct {
	Version uint64 // of mac
	MAC     [sha256.Size]byte
}

// Bytes returns the seal as drivers store it: version, 8 bytes big-endian, and MAC.
func (s Seal) Bytes() []byte {
	return append(binary.BigEndian.AppendUint64(make([]byte, 0, sealSize), s.Version), s.MAC[:]...)
}

// ParseSeal parses the result of Bytes. Any other input becomes a seal that fits no record.
func ParseSeal(b []byte) (s Seal) {
	if len(b) == sealSize {
		s.Version = binary.BigEndian.Uint64(b)
		copy(s.MAC[:], b[8:])
	}
	return s
}

// Sealed is a record that grants authority. Only types of this package implement it, so a driver
// can seal nothing else.
type Sealed interface {
	sealed() sealed
}

// sealed is the content of a record that its seal covers.
type sealed struct {
	table  string
	key    []byte
	fields any // struct with cbor tags: numbers as keys, omitempty
}

type sealInput struct {
	_      struct{} `cbor:",toarray"`
	Table  string
	Key    []byte
	MAC    uint64
	Fields any
}

// Seals makes and verifies seals. It keeps the seal key of each version of mac in memory. It is
// safe for concurrent use.
type Seals struct {
	forged atomic.Uint64

	mu      sync.RWMutex
	alarm   func(error)         // guarded by mu; nil: none
	keys    map[uint64]*sealKey // guarded by mu
	inForce uint64              // guarded by mu
}

type sealKey struct {
	past      bool // it covers only records that are over
	destroyed bool
	pool      sync.Pool
}

// NewSeals returns seals without keys. It calls alarm, unless that is nil, with an error that wraps
// [ErrForged] for each record that does not fit.
func NewSeals(alarm func(error)) *Seals {
	return &Seals{alarm: alarm, keys: map[uint64]*sealKey{}}
}

// Alarm replaces the function that is called for each record that does not fit.
func (s *Seals) Alarm(alarm func(error)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.alarm = alarm
}

// Add adds the key of a version of mac, 32 bytes. past says that the version was retired, suspended
// or compromised: its seals then cover only finished decisions, which grant nothing any more.
func (s *Seals) Add(version uint64, key []byte, past bool) {
	key = bytes.Clone(key)
	k := &sealKey{past: past}
	k.pool.New = func() any { return hmac.New(sha256.New, key) }
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keys[version] = k
}

// Remove drops the key of a version that was destroyed.
func (s *Seals) Remove(version uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keys[version] = &sealKey{destroyed: true}
}

// Place returns the table and key of a record, as its seal covers them. It is unique in a store.
func Place(r Sealed) string {
	s := r.sealed()
	return s.table + "\x00" + string(s.key)
}

// Forgotten reports whether a record grants nothing any more and the key of its seal was destroyed.
// Drivers treat such a record as if it were not there.
func (s *Seals) Forgotten(r Sealed, seal Seal) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	key := s.keys[seal.Version]
	return key != nil && key.destroyed && isOver(r)
}

// isOver reports whether a record grants nothing any more.
func isOver(r Sealed) bool {
	one, ok := r.(interface{ over() bool })
	return ok && one.over()
}

// GiveUp sets whether a version is past, see Add.
func (s *Seals) GiveUp(version uint64, past bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if k := s.keys[version]; k != nil && !k.destroyed && k.past != past {
		next := &sealKey{past: past}
		next.pool.New = k.pool.New
		s.keys[version] = next
	}
}

// Holds reports whether the key of a version is known, and whether it is past.
func (s *Seals) Holds(version uint64) (held, past bool) {
	k := s.key(version)
	return k != nil, k != nil && k.past
}

// Use sets the version of new seals. It never goes back.
func (s *Seals) Use(version uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.inForce = max(s.inForce, version)
}

// InForce returns the version of mac of new seals.
func (s *Seals) InForce() uint64 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.inForce
}

// Forged returns the number of records that did not fit so far.
func (s *Seals) Forged() uint64 { return s.forged.Load() }

func (s *Seals) key(version uint64) *sealKey {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if key := s.keys[version]; key != nil && !key.destroyed {
		return key
	}
	return nil
}

// Make returns the seal of a record under the version in force.
func (s *Seals) Make(r Sealed) (Seal, error) { return s.MakeUnder(r, s.InForce()) }

// MakeUnder returns the seal of a record under a version of mac.
func (s *Seals) MakeUnder(r Sealed, version uint64) (Seal, error) {
	key := s.key(version)
	if key == nil {
		return Seal{}, fmt.Errorf("the seal key of mac@%d is not known: %w", version, ErrUnavailable)
	}
	return Seal{Version: version, MAC: key.mac(r.sealed(), version)}, nil
}

// Check verifies that a record fits its seal. If it does not, Check raises the alarm and returns an
// error that wraps [ErrForged].
func (s *Seals) Check(r Sealed, seal Seal) error {
	record := r.sealed()
	key := s.key(seal.Version)
	switch {
	case key == nil:
		return s.report(fmt.Errorf("%s: its seal is under mac@%d, which is not there: %w", record, seal.Version, ErrForged))
	case key.past && !isOver(r):
		return s.report(fmt.Errorf("%s: its seal is under mac@%d, which was given up: %w", record, seal.Version, ErrForged))
	}
	if mac := key.mac(record, seal.Version); !hmac.Equal(mac[:], seal.MAC[:]) {
		return s.report(fmt.Errorf("%s: %w", record, ErrForged))
	}
	return nil
}

// Report raises the alarm for a finding of a driver that no seal shows, for example a missing row.
func (s *Seals) Report(what string) error { return s.report(fmt.Errorf("%s: %w", what, ErrForged)) }

func (s *Seals) report(err error) error {
	s.forged.Add(1)
	s.mu.RLock()
	alarm := s.alarm
	s.mu.RUnlock()
	if alarm != nil {
		alarm(err)
	}
	return err
}

var sealBuffers = sync.Pool{New: func() any { return new(bytes.Buffer) }}

func (k *sealKey) mac(r sealed, version uint64) (sum [sha256.Size]byte) {
	b := sealBuffers.Get().(*bytes.Buffer)
	defer sealBuffers.Put(b)
	b.Reset()
	if err := sealMode.MarshalToBuffer(sealInput{Table: r.table, Key: r.key, MAC: version, Fields: r.fields}, b); err != nil {
		panic(err) // a type that cannot be encoded: a defect, not input
	}
	h := k.pool.Get().(hash.Hash)
	defer k.pool.Put(h)
	h.Reset()
	h.Write(b.Bytes())
	h.Sum(sum[:0])
	return sum
}

var sealMode = func() cbor.UserBufferEncMode {
	mode, err := cbor.CoreDetEncOptions().UserBufferEncMode()
	if err != nil {
		panic(err)
	}
	return mode
}()

// String names the record in errors.
func (r sealed) String() string {
	for _, c := range r.key {
		if c < ' ' || c > '~' {
			return fmt.Sprintf("%s %x", r.table, r.key)
		}
	}
	return fmt.Sprintf("%s %q", r.table, r.key)
}
