package head

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"fmt"

	"github.com/fxamacker/cbor/v2"

	"countersign/appliance/store"
	"countersign/appliance/store/audit"
)

// OpenSet is the set of open invitations, by their numbers, as a bitmap from the lowest number on.
// Numbers rise and are never used again. An invitation outside the set was used or has expired,
// even if its row says otherwise.
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

// Numbers lists the open invitations.
func (o OpenSet) Numbers() (all []uint64) {
	for number := o.Base; number < o.Base+8*uint64(len(o.Bits)); number++ {
		if o.Has(number) {
			all = append(all, number)
		}
	}
	return all
}

// Open returns the set with one more invitation, and its number.
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

// Far returns an empty set that begins at a random number, above all numbers that were used after
// the copy was made from which a store is restored.
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
		return o, fmt.Errorf("the set of open invitations cannot be read: %w", store.ErrForged)
	}
	return o, nil
}

// Record returns the set as the store seals it.
func (o OpenSet) Record() store.HeadRecord {
	return store.HeadRecord{Name: invitations, Body: o.Marshal()}
}
