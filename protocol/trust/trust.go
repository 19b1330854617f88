// Package trust implements the certificates of roots, of the appliance's keys and
// of clients, and the trust state that clients and devices keep (PROTOCOL.md §2.2).
package trust

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"countersign/protocol"
	"countersign/protocol/internal/strict"
)

// Key is a verified key certificate with the bytes it came in.
type Key struct {
	KeyCert
	Raw []byte
}

// State is the pinned root of a client or device, the hash of the next root, and the keys certified
// by the root (PROTOCOL.md §2.2). It is a value: methods that change it return a new State. The
// epoch of a use never decreases.
type State struct {
	Root         protocol.PublicKey
	RootNumber   uint64
	NextRootHash [32]byte
	Keys         map[Use]Key // the adopted epoch of each use
	Earlier      []Key       // adopted earlier and not revoked: decisions may still be signed by these
	Later        []Key       // verified at enrolment; Adopt adopts them when they become valid
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

// Time returns the time, in Unix seconds, by which clients judge dates (PROTOCOL.md §4): the clock,
// or the newest not-before that the root has signed if that is later.
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
	next, rest := t.advance(update.Certs)
	changed := next.RootNumber != t.RootNumber
	for _, b := range rest {
		if k, err := VerifyKeyCert(b, next.Root); err == nil {
			next, _ = next.adopt(Key{k, bytes.Clone(b)}, now)
		}
	}
	if _, ok := next.Keys[UseKEM]; changed && !ok {
		return t, nil
	}
	return next, nil
}

// advance follows the leading root certificates and returns the others.
func (t State) advance(certs [][]byte) (next State, rest [][]byte) {
	for i, b := range certs {
		r, err := VerifyRootCert(b)
		switch {
		case isFormat(err):
			return t, certs[i:]
		case err == nil && r.follows(t.RootNumber, t.NextRootHash):
			t = State{Root: r.Key, RootNumber: r.Number, NextRootHash: r.NextHash}
		}
	}
	return t, nil
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
	if held {
		t.Earlier = append(slices.Clone(t.Earlier), old)
	}
	t.Earlier = slices.DeleteFunc(slices.Clone(t.Earlier), func(e Key) bool {
		return e.Use == k.Use && (ruledOut(e.Epoch, k.MinEpoch) || !e.TakesM2At(now))
	})
	return t, true
}

func ruledOut(epoch uint64, minimum *uint64) bool { return minimum != nil && epoch < *minimum }

// Adopt adopts the later epochs whose time has come (a day before their not-before). Callers run it
// before they use a key. now is in Unix seconds.
func (t State) Adopt(now uint64) State {
	var later []Key
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
	slices.SortStableFunc(t.Later, func(a, b Key) int { return cmp.Compare(a.Epoch, b.Epoch) })
	return t.Adopt(now)
}

// Document is the answer to GET /v1/trust, PROTOCOL.md §5. As JSON its members are base64url without
// padding:
//
//	{"root_key", "next_root_hash", "root_certs": [RootCert(1…current)], "key_certs": []}
//
// It is untrusted until [Document.Resolve].
type Document struct {
	RootKey      protocol.PublicKey
	NextRootHash [32]byte
	RootCerts    [][]byte
	KeyCerts     [][]byte
}

// Resolve finds the root with the hash of an activation code and follows the chain to the current
// root. It returns CodeCertificate if the chain does not lead there. It ignores unacceptable
// KeyCerts and keeps later epochs for [State.Adopt]. now is in Unix seconds.
func (d Document) Resolve(hash protocol.RootHash, now uint64) (State, error) {
	for i, b := range d.RootCerts {
		first, err := VerifyRootCert(b)
		if err != nil {
			return State{}, err
		}
		if first.Key.RootHash() == hash {
			return d.resolveFrom(first, d.RootCerts[i+1:], now)
		}
	}
	return State{}, protocol.CodeCertificate.Errorf("no root certificate has the hash of the activation code")
}

func (d Document) resolveFrom(last RootCert, later [][]byte, now uint64) (State, error) {
	if len(later) != 0 {
		var err error
		if last, err = FollowRoots(last.Number, last.NextHash, later); err != nil {
			return State{}, err
		}
	}
	if last.Key != d.RootKey || last.NextHash != d.NextRootHash {
		return State{}, protocol.CodeCertificate.Errorf("root certificates lead to root %d, which is not the document's root_key", last.Number)
	}
	t := State{Root: last.Key, RootNumber: last.Number, NextRootHash: last.NextHash}
	return t.WithKeyCerts(d.KeyCerts, now), nil
}

type trustDocumentJSON struct {
	RootKey      protocol.Base64   `json:"root_key"`
	NextRootHash protocol.Base64   `json:"next_root_hash"`
	RootCerts    []protocol.Base64 `json:"root_certs"`
	KeyCerts     []protocol.Base64 `json:"key_certs"`
}

// MarshalJSON returns the wire form.
func (d Document) MarshalJSON() ([]byte, error) {
	return json.Marshal(trustDocumentJSON{d.RootKey[:], d.NextRootHash[:], strict.ToBase64(d.RootCerts), strict.ToBase64(d.KeyCerts)})
}

// UnmarshalJSON decodes the document as [ParseDocument] does.
func (d *Document) UnmarshalJSON(b []byte) (err error) {
	*d, err = ParseDocument(b)
	return err
}

// ParseDocument decodes the JSON of GET /v1/trust. It returns CodeFormat for unknown, duplicate or
// missing members and for padding.
func ParseDocument(b []byte) (d Document, err error) {
	var w trustDocumentJSON
	if err := strict.JSON(b, &w); err != nil {
		return d, err
	}
	if d.RootKey, err = protocol.ParsePublicKey(w.RootKey); err != nil {
		return d, fmt.Errorf("root_key: %w", err)
	}
	if err := strict.Fixed(d.NextRootHash[:], "next_root_hash", w.NextRootHash); err != nil {
		return d, err
	}
	d.RootCerts, d.KeyCerts = strict.FromBase64(w.RootCerts), strict.FromBase64(w.KeyCerts)
	return d, nil
}

type trustJSON struct {
	RootKey      protocol.Base64   `json:"root_key"`
	RootNumber   uint64            `json:"root_number"`
	NextRootHash protocol.Base64   `json:"next_root_hash"`
	Adopted      []protocol.Base64 `json:"adopted"`
	Earlier      []protocol.Base64 `json:"earlier"`
	Later        []protocol.Base64 `json:"later"`
}

// MarshalJSON returns the stored form: the pinned root and the certificates as received.
func (t State) MarshalJSON() ([]byte, error) {
	w := trustJSON{RootKey: t.Root[:], RootNumber: t.RootNumber, NextRootHash: t.NextRootHash[:], Adopted: []protocol.Base64{}}
	for use := UseKEM; use <= UseClientCA; use++ {
		if k, ok := t.Keys[use]; ok {
			w.Adopted = append(w.Adopted, k.Raw)
		}
	}
	w.Earlier, w.Later = rawOf(t.Earlier), rawOf(t.Later)
	return json.Marshal(w)
}

func rawOf(keys []Key) []protocol.Base64 {
	raw := []protocol.Base64{}
	for _, k := range keys {
		raw = append(raw, k.Raw)
	}
	return raw
}

// UnmarshalJSON decodes the stored form and verifies every certificate again under the pinned root.
// Errors are CodeFormat or CodeCertificate.
func (t *State) UnmarshalJSON(b []byte) (err error) {
	var w trustJSON
	if err := strict.JSON(b, &w); err != nil {
		return err
	}
	u := State{RootNumber: w.RootNumber}
	if u.Root, err = protocol.ParsePublicKey(w.RootKey); err != nil {
		return err
	}
	if err := strict.Fixed(u.NextRootHash[:], "next_root_hash", w.NextRootHash); err != nil {
		return err
	}
	if err := u.load(w); err != nil {
		return err
	}
	*t = u
	return nil
}

func (t *State) load(w trustJSON) error {
	adopted, err := t.verified(w.Adopted)
	if err != nil {
		return err
	}
	for _, k := range adopted {
		if _, ok := t.Keys[k.Use]; ok {
			return protocol.CodeFormat.Errorf("two adopted keys of use %v", k.Use)
		}
		if t.Keys == nil {
			t.Keys = map[Use]Key{}
		}
		t.Keys[k.Use] = k
	}
	if t.Earlier, err = t.verified(w.Earlier); err != nil {
		return err
	}
	t.Later, err = t.verified(w.Later)
	return err
}

func (t *State) verified(certs []protocol.Base64) (keys []Key, err error) {
	for _, b := range certs {
		k, err := VerifyKeyCert(b, t.Root)
		if err != nil {
			return nil, err
		}
		keys = append(keys, Key{k, b})
	}
	return keys, nil
}
