// Package trust implements the certificates of roots, of the appliance's keys and
// of clients, and the trust state that clients and devices keep (PROTOCOL.md §2.2).
package trust

import (
	"bytes"
	"cmp"
	"maps"
	"slices"

	"countersign/protocol"
)

// Key is a verified key certificate with the bytes it came in.
type Key struct {
	KeyCert
	Raw []byte
}

// State is the pinned root of a client or device, the hash of the next root, and the keys certified
// by the root (PROTOCOL.md §2.2). It is a value: methods that change it return a new State. The
// epoch of a use decreases only in [State.At].
type State struct {
	Root         protocol.PublicKey
	RootNumber   uint64
	NextRootHash [32]byte
	Keys         map[Use]Key // the adopted epoch of each use
	Earlier      []Key       // adopted earlier and not revoked: decisions may still be signed by these
	Later        []Key       // verified and not adopted; Adopt adopts them while they are valid

	// What the appliance has shown this client, see Show.
	ShownTime   uint64         // the newest time by its clock, in Unix seconds; 0: none
	ShownEpochs map[Use]uint64 // the highest epoch that it has used

	EarlierRoots []EarlierRoot // for receipts only, the oldest first
}

// Key returns the adopted key of a use.
func (t State) Key(use Use) (key Key, ok bool) {
	key, ok = t.Keys[use]
	return key, ok
}

// KeyCerts returns the certificates of one use as received, the adopted one first. receipt.Check
// uses them.
func (t State) KeyCerts(use Use) [][]byte {
	var raw [][]byte
	if k, ok := t.Keys[use]; ok {
		raw = append(raw, k.Raw)
	}
	for _, k := range t.Earlier {
		if k.Use == use {
			raw = append(raw, k.Raw)
		}
	}
	return raw
}

// KeyAt returns the adopted or earlier key of a use with this epoch modulo 64, the six low bits of
// se.
func (t State) KeyAt(use Use, epoch uint8) (key Key, ok bool) {
	if k, ok := t.Keys[use]; ok && k.Epoch%64 == uint64(epoch) {
		return k, true
	}
	for _, k := range t.Earlier {
		if k.Use == use && k.Epoch%64 == uint64(epoch) {
			return k, true
		}
	}
	return Key{}, false
}

// Time returns the time, in Unix seconds, by which devices, and clients that enrol, judge dates (PROTOCOL.md §4): the
// clock, or the newest not-before of an adopted epoch if that is later. An enrolled client uses [State.At].
func (t State) Time(clock uint64) uint64 {
	for _, k := range t.Keys {
		clock = max(clock, k.NotBefore)
	}
	return clock
}

// Update applies an MU, PROTOCOL.md §2.2 and §3. It ignores unacceptable certificates; only a
// malformed MU is an error (CodeFormat). If its RootCerts lead to a new root, only KeyCerts of the
// last root count, and without a kem key among them the state stays as it is. now is in Unix
// seconds, see [State.Time].
func (t State) Update(mu []byte, now uint64) (State, error) {
	update, err := ParseKeyUpdate(mu)
	if err != nil {
		return t, err
	}
	next, givenUp, rest := t.advance(update.Certs)
	changed := next.RootNumber != t.RootNumber
	for _, b := range rest {
		if k, err := VerifyKeyCert(b, next.Root); err == nil {
			next, _ = next.adopt(Key{k, bytes.Clone(b)}, now)
		}
	}
	if !changed {
		return next, nil
	}
	kem, ok := next.Keys[UseKEM]
	if !ok {
		return t, nil
	}
	old := t.replaced()
	if givenUp {
		old.GivenUp = kem.NotBefore
	}
	next.ShownTime, next.EarlierRoots = t.ShownTime, append(slices.Clone(t.EarlierRoots), old)
	return next, nil
}

// advance follows the leading root certificates and returns the others. givenUp means that the root of t is given up as
// compromised.
func (t State) advance(certs [][]byte) (next State, givenUp bool, rest [][]byte) {
	next = t
	for i, b := range certs {
		r, err := VerifyRootCert(b)
		switch {
		case isFormat(err):
			return next, givenUp, certs[i:]
		case err == nil && r.follows(next.RootNumber, next.NextRootHash):
			givenUp = givenUp || r.Number == t.RootNumber+1 && r.Reason != ReasonRoutine
			next = State{Root: r.Key, RootNumber: r.Number, NextRootHash: r.NextHash}
		}
	}
	return next, givenUp, nil
}

func isFormat(err error) bool {
	code, _ := protocol.CodeOf(err)
	return code == protocol.CodeFormat
}

// adopt makes a verified key the current one of its use, if it is acceptable.
func (t State) adopt(k Key, now uint64) (State, bool) {
	var stored *uint64
	old, held := t.Keys[k.Use]
	if held {
		stored = &old.Epoch
	}
	if k.AcceptableAt(now, stored) != nil {
		return t, false
	}
	t.Keys = maps.Clone(t.Keys)
	if t.Keys == nil {
		t.Keys = map[Use]Key{}
	}
	t.Keys[k.Use] = k
	t.Earlier = slices.DeleteFunc(slices.Clone(t.Earlier), func(e Key) bool {
		return e.Use == k.Use && ruledOut(e.Epoch, k.MinEpoch)
	})
	if held && !ruledOut(old.Epoch, k.MinEpoch) {
		t.Earlier = append(t.Earlier, old)
	}
	if others := len(t.Earlier) - maxEarlier; others > 0 {
		t.Earlier = t.Earlier[others:]
	}
	return t, true
}

// maxEarlier bounds the number of earlier epochs, of all uses together. A period of 30 days needs only a few.
const maxEarlier = 64

func ruledOut(epoch uint64, minimum *uint64) bool { return minimum != nil && epoch < *minimum }

// Adopt adopts the later epochs whose time has come (a day before their not-before). Devices run it before they use a
// key, and clients run [State.At]. It keeps an epoch that is over by this clock, which may be wrong. now is in Unix
// seconds.
func (t State) Adopt(now uint64) State {
	later := t.Later
	t.Later = nil
	for _, k := range later {
		if t.has(k) {
			continue
		}
		var adopted bool
		if t, adopted = t.adopt(k, now); !adopted {
			t.Later = append(t.Later, k)
		}
	}
	return t
}

// has reports whether this epoch was adopted.
func (t State) has(k Key) bool {
	same := func(e Key) bool { return e.Use == k.Use && e.Epoch == k.Epoch }
	held, ok := t.Keys[k.Use]
	return ok && same(held) || slices.ContainsFunc(t.Earlier, same)
}

// WithKeyCerts returns the state with the certificates of an enrolment. Later epochs wait for
// [State.Adopt]. It ignores certificates of another root.
func (t State) WithKeyCerts(certs [][]byte, now uint64) State {
	t.Later = slices.Clone(t.Later)
	for _, b := range certs {
		known := slices.ContainsFunc(t.Later, func(k Key) bool { return bytes.Equal(k.Raw, b) })
		if k, err := VerifyKeyCert(b, t.Root); err == nil && !known {
			t.Later = append(t.Later, Key{k, bytes.Clone(b)})
		}
	}
	slices.SortStableFunc(t.Later, byEpoch)
	return t.Adopt(now)
}

func byEpoch(a, b Key) int { return cmp.Compare(a.Epoch, b.Epoch) }
