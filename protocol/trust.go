package protocol

import (
	"bytes"
	"cmp"
	"maps"
	"slices"
)

// TrustedKey is a verified key certificate with the bytes it came in.
type TrustedKey struct {
	KeyCert
	Raw []byte
}

// Trust is what a client or a device pins and stores: one root, the hash of the
// next, and the keys certified by it, PROTOCOL.md §2.2. It is a value: every
// method that changes something returns a new one. A use goes from epoch to epoch
// upwards and never back.
type Trust struct {
	Root         PublicKey
	RootNumber   uint64
	NextRootHash [32]byte
	Keys         map[Use]TrustedKey // the adopted epoch of each use
	Earlier      []TrustedKey       // adopted before it and not ruled out; decisions may still be signed by these
	Later        []TrustedKey       // from enrolment, verified, for Adopt once their time has come
}

// Key gives the adopted key of a use.
func (t Trust) Key(use Use) (key TrustedKey, ok bool) {
	key, ok = t.Keys[use]
	return key, ok
}

// KeyCerts lists the certificates of one use as received, the adopted one first:
// what [DecisionCheck] takes.
func (t Trust) KeyCerts(use Use) [][]byte {
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

// KeyAt finds the adopted or earlier key of a use with this epoch mod 64, the
// six low bits of se.
func (t Trust) KeyAt(use Use, epoch uint8) (key TrustedKey, ok bool) {
	if k, ok := t.Keys[use]; ok && k.Epoch%64 == uint64(epoch) {
		return k, true
	}
	for _, k := range t.Earlier {
		if k.Use == use && k.Epoch%64 == uint64(epoch) {
			return k, true
		}
	}
	return TrustedKey{}, false
}

// Time is the time by which C judges dates, PROTOCOL.md §4: its own clock, but
// not before the newest not-before that the root has signed. Unix seconds.
func (t Trust) Time(clock uint64) uint64 {
	for _, k := range t.Keys {
		clock = max(clock, k.NotBefore)
	}
	return clock
}

// Update applies an MU, PROTOCOL.md §2.2 and §3. What is not acceptable is left
// out; only a malformed MU is an error (CodeFormat). If its RootCerts lead to a new
// root, only KeyCerts of the last root count, and without a kem key among them nothing
// changes at all. now is Unix seconds, see [Trust.Time].
func (t Trust) Update(mu []byte, now uint64) (Trust, error) {
	update, err := ParseKeyUpdate(mu)
	if err != nil {
		return t, err
	}
	next, rest := t.advance(update.Certs)
	changed := next.RootNumber != t.RootNumber
	for _, b := range rest {
		if k, err := VerifyKeyCert(b, next.Root); err == nil {
			next, _ = next.adopt(TrustedKey{k, bytes.Clone(b)}, now)
		}
	}
	if _, ok := next.Keys[UseKEM]; changed && !ok {
		return t, nil
	}
	return next, nil
}

// advance follows the root certificates at the beginning and gives the others.
func (t Trust) advance(certs [][]byte) (next Trust, rest [][]byte) {
	for i, b := range certs {
		r, err := VerifyRootCert(b)
		switch {
		case isFormat(err):
			return t, certs[i:]
		case err == nil && r.follows(t.RootNumber, t.NextRootHash):
			t = Trust{Root: r.Key, RootNumber: r.Number, NextRootHash: r.NextHash}
		}
	}
	return t, nil
}

func isFormat(err error) bool {
	code, _ := CodeOf(err)
	return code == CodeFormat
}

// adopt makes a verified key the one of its use, if it is acceptable.
func (t Trust) adopt(k TrustedKey, now uint64) (Trust, bool) {
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
		t.Keys = map[Use]TrustedKey{}
	}
	t.Keys[k.Use] = k
	if held {
		t.Earlier = append(slices.Clone(t.Earlier), old)
	}
	t.Earlier = slices.DeleteFunc(slices.Clone(t.Earlier), func(e TrustedKey) bool {
		return e.Use == k.Use && (ruledOut(e.Epoch, k.MinEpoch) || !e.TakesM2At(now))
	})
	return t, true
}

func ruledOut(epoch uint64, minimum *uint64) bool { return minimum != nil && epoch < *minimum }

// Adopt takes over the keys of later epochs whose time has come (a day before
// their not-before). Call it before a key is used. now is Unix seconds.
func (t Trust) Adopt(now uint64) Trust {
	var later []TrustedKey
	for _, k := range t.Later {
		if k.begins() > now {
			later = append(later, k)
			continue
		}
		t, _ = t.adopt(k, now)
	}
	t.Later = later
	return t
}

// withKeyCerts adds the certificates of an enrolment, those of later epochs
// for [Trust.Adopt]. Those of another root are left out.
func (t Trust) withKeyCerts(certs [][]byte, now uint64) Trust {
	t.Later = slices.Clone(t.Later)
	for _, b := range certs {
		known := slices.ContainsFunc(t.Later, func(k TrustedKey) bool { return bytes.Equal(k.Raw, b) })
		if k, err := VerifyKeyCert(b, t.Root); err == nil && !known {
			t.Later = append(t.Later, TrustedKey{k, bytes.Clone(b)})
		}
	}
	slices.SortStableFunc(t.Later, func(a, b TrustedKey) int { return cmp.Compare(a.Epoch, b.Epoch) })
	return t.Adopt(now)
}
