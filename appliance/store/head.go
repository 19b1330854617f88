package store

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"github.com/fxamacker/cbor/v2"

	"countersign/appliance/store/audit"
)

// Head is the one record on which hangs what a seal alone cannot show: that nothing is
// missing, and that nothing is an old version of itself. Its revision rises with every
// change of it and never goes back; the host remembers it outside of the store.
type Head struct {
	_          struct{} `cbor:",toarray"`
	Revision   uint64
	MAC        uint64            // version of mac that new seals are of
	Policy     uint64            // version of the active policy
	PolicyHash [sha256.Size]byte // of its document
	Digests    [hangingKinds][sha256.Size]byte
}

// Hanging is a kind of records of which the head holds a digest.
type Hanging uint8

// The kinds. Of change requests those hang that are open or taken, of invitations the
// set of those that are open, see [OpenSet].
const (
	HangingKeys Hanging = iota
	HangingSettings
	HangingPolicies
	HangingAdmins
	HangingChanges
	HangingInvitations
	hangingKinds
)

var hangingNames = [hangingKinds]string{"keys", "settings", "policies", "administrators", "open change requests", "open invitations"}

func (h Hanging) String() string { return hangingNames[h] }

// hangingOf returns the kind of a record that hangs on the head, or that did: a change
// request that has ended is ok, and hangs no more.
func hangingOf(r Sealed) (kind Hanging, ok bool) {
	switch r.(type) {
	case Key:
		return HangingKeys, true
	case Setting:
		return HangingSettings, true
	case Policy:
		return HangingPolicies, true
	case Admin:
		return HangingAdmins, true
	case Change:
		return HangingChanges, true
	case OpenSet:
		return HangingInvitations, true
	}
	return 0, false
}

// AllHanging lists the kinds.
func AllHanging() (all []Hanging) {
	for h := range hangingKinds {
		all = append(all, h)
	}
	return all
}

// Activate makes a policy the active one.
func (h *Head) Activate(p Policy) { h.Policy, h.PolicyHash = p.Version, sha256.Sum256(p.Document) }

// Marshal returns the head as drivers store it: a det-CBOR array.
func (h Head) Marshal() []byte { return audit.Encode(h) }

// ParseHead reads what Marshal writes.
func ParseHead(b []byte) (h Head, err error) {
	if err := cbor.Unmarshal(b, &h); err != nil || !bytes.Equal(h.Marshal(), b) {
		return h, fmt.Errorf("the head cannot be read: %w", ErrForged)
	}
	return h, nil
}

func (h Head) sealed() sealed {
	return sealed{table: "head", key: []byte("head"), fields: struct {
		Body []byte `cbor:"1,keyasint"`
	}{h.Marshal()}}
}

// OpenSet is the set of the invitations that are open, by their numbers, which rise and
// are never used again: a bitmap that begins at the lowest number. An invitation that is
// not in it was used or has expired, whatever its row says.
type OpenSet struct {
	_    struct{} `cbor:",toarray"`
	Next uint64   // number of the next invitation, from 1
	Base uint64   // number of the first bit, a multiple of 8
	Bits []byte
}

// Has reports whether an invitation is open.
func (o OpenSet) Has(number uint64) bool {
	i := number/8 - o.Base/8
	return number >= o.Base && i < uint64(len(o.Bits)) && o.Bits[i]&(1<<(number%8)) != 0
}

// Numbers lists the invitations that are open.
func (o OpenSet) Numbers() (all []uint64) {
	for number := o.Base; number < o.Base+8*uint64(len(o.Bits)); number++ {
		if o.Has(number) {
			all = append(all, number)
		}
	}
	return all
}

// Open returns the set with one invitation more, and its number.
func (o OpenSet) Open() (OpenSet, uint64) {
	number := max(o.Next, 1)
	if len(o.Bits) == 0 {
		o.Base = number / 8 * 8
	}
	bits := make([]byte, max(uint64(len(o.Bits)), number/8-o.Base/8+1))
	copy(bits, o.Bits)
	bits[number/8-o.Base/8] |= 1 << (number % 8)
	o.Bits, o.Next = bits, number+1
	return o, number
}

// Far returns an empty set that begins at a number which was never used, whatever was
// invited since the copy was made that a store is restored from: a random one.
func (o OpenSet) Far() OpenSet {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails, crypto/rand
	return OpenSet{Next: max(o.Next, 1) + binary.BigEndian.Uint64(b[:])>>24}
}

// Close returns the set without some invitations.
func (o OpenSet) Close(numbers ...uint64) OpenSet {
	o.Bits = bytes.Clone(o.Bits)
	for _, number := range numbers {
		if o.Has(number) {
			o.Bits[number/8-o.Base/8] &^= 1 << (number % 8)
		}
	}
	for len(o.Bits) > 0 && o.Bits[0] == 0 {
		o.Bits, o.Base = o.Bits[1:], o.Base+8
	}
	return o
}

// Marshal returns the set as drivers store it: a det-CBOR array.
func (o OpenSet) Marshal() []byte { return audit.Encode(o) }

// ParseOpenSet reads what Marshal writes.
func ParseOpenSet(b []byte) (o OpenSet, err error) {
	if err := cbor.Unmarshal(b, &o); err != nil || o.Base%8 != 0 || !bytes.Equal(o.Marshal(), b) {
		return o, fmt.Errorf("the set of open invitations cannot be read: %w", ErrForged)
	}
	return o, nil
}

func (o OpenSet) sealed() sealed {
	return sealed{table: "head", key: []byte("invitations"), fields: struct {
		Body []byte `cbor:"1,keyasint"`
	}{o.Marshal()}}
}

// Anchor remembers outside of the store how far it has come, so that an older one is
// refused. Both figures never go back.
type Anchor interface {
	// Floor returns the newest mark that the host has seen; zero if it has seen none.
	Floor() Mark
	// Advance makes a mark durable.
	Advance(Mark) error
}

// Mark is what a host remembers of the newest head.
type Mark struct {
	Revision uint64
	MAC      uint64   // version of mac in force
	Head     [32]byte // SHA-256 of the head of this revision; zeros: not known
}

// MarkOf returns the mark of a head.
func MarkOf(h Head) Mark {
	return Mark{Revision: h.Revision, MAC: h.MAC, Head: sha256.Sum256(h.Marshal())}
}

// allows reports whether a head is no older than the mark, and none of another branch: of
// one revision there is one head.
func (m Mark) allows(h Head) bool {
	return h.Revision > m.Revision ||
		h.Revision == m.Revision && (m.Head == [32]byte{} || m.Head == sha256.Sum256(h.Marshal()))
}
