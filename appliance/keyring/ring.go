package keyring

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"countersign/hsm"
	"countersign/protocol"
)

// Ring is the registry at one moment. It does not change.
type Ring struct {
	Settings Settings
	keys     map[string][]Key // ascending versions
}

// New joins verified keys of the registry with the keys that are present on the token.
// Each key is looked up by its CKA_ID, of which there must be one object. An error
// wraps [hsm.ErrUnavailable]: a key in use, accepted or prepared that is missing is an
// outage, never a reason to create another.
func New(keys []Key, settings Settings, present []hsm.Key) (*Ring, error) {
	byID := make(map[hsm.KeyID][]hsm.Key, len(present))
	for _, k := range present {
		byID[k.ID] = append(byID[k.ID], k)
	}
	r := &Ring{keys: map[string][]Key{}, Settings: settings}
	for _, key := range keys {
		if err := key.find(byID[key.ID]); err != nil {
			return r, err
		}
		r.keys[key.Name] = append(r.keys[key.Name], key)
	}
	return r, nil
}

// find compares a row with the objects that have its CKA_ID.
func (k *Key) find(found []hsm.Key) error {
	switch {
	case !k.DestroyedAt.IsZero():
		k.OnToken = len(found) > 0 // left by an interruption; the step removes it when repeated
		return nil
	case len(found) == 0 && k.Name == Root:
		return nil // its token may lie in a safe, and the chain vouches for its row
	case len(found) == 0 && !k.Held():
		return nil // nothing is made or accepted with it; an attestation reports it
	case len(found) == 0:
		return fmt.Errorf("key %s (id %x) is in the registry but not on the token: %w", k.Label(), k.ID, hsm.ErrUnavailable)
	case len(found) > 1:
		return fmt.Errorf("key %s: the token has %d objects with id %x, want one: %w",
			k.Label(), len(found), k.ID, hsm.ErrUnavailable)
	case found[0].Usage != usages[k.Name]:
		return fmt.Errorf("key %s on the token is for %s, want %s: %w", k.Label(), found[0].Usage, usages[k.Name], hsm.ErrUnavailable)
	}
	k.OnToken = true
	if k.Public == nil {
		return nil
	}
	point, err := PointOf(found[0])
	if err != nil {
		return fmt.Errorf("public key of %s on the token: %w", k.Label(), err)
	}
	if string(point[:]) != string(k.Public) {
		return fmt.Errorf("key %s on the token is %s, the registry has %x: %w", k.Label(), point, k.Public, hsm.ErrUnavailable)
	}
	return nil
}

// PointOf returns the compressed public half of a P-256 key pair on the token.
func PointOf(k hsm.Key) (protocol.PublicKey, error) {
	public, err := k.ECDH()
	if err != nil {
		return protocol.PublicKey{}, err
	}
	return protocol.CompressPoint(public.Bytes())
}

// With returns a copy of r with other settings, in which these keys replace or extend
// the keys of r.
func (r *Ring) With(settings Settings, keys ...Key) *Ring {
	next := &Ring{keys: maps.Clone(r.keys), Settings: settings}
	if next.keys == nil {
		next.keys = map[string][]Key{}
	}
	for _, key := range keys {
		others := slices.DeleteFunc(slices.Clone(next.keys[key.Name]), func(k Key) bool { return k.Version == key.Version })
		next.keys[key.Name] = append(others, key)
		slices.SortFunc(next.keys[key.Name], func(a, b Key) int { return int(a.Version) - int(b.Version) })
	}
	return next
}

// Keys returns every key version, by name and version.
func (r *Ring) Keys() []Key {
	var all []Key
	for _, name := range Names {
		all = append(all, r.keys[name]...)
	}
	return all
}

// Versions returns the versions of a key, the oldest first.
func (r *Ring) Versions(name string) []Key { return r.keys[name] }

// Find returns one version of a key.
func (r *Ring) Find(name string, version uint64) (Key, bool) {
	for _, k := range r.keys[name] {
		if k.Version == version {
			return k, true
		}
	}
	return Key{}, false
}

// Current returns the version in use at now: the last one activated. An error wraps
// [ErrNoKey].
func (r *Ring) Current(name string, now time.Time) (newest Key, err error) {
	for _, k := range r.keys[name] {
		usable := k.Held() && k.Begun(now) && k.Dated(now) && (k.Cert == nil || name == Root || k.Root == r.RootNumber())
		if usable && (newest.Version == 0 || !k.ActivatedAt.Before(newest.ActivatedAt)) {
			newest = k
		}
	}
	if newest.Version == 0 {
		return newest, fmt.Errorf("key %q at %s: %w", name, now.UTC().Format(time.RFC3339), ErrNoKey)
	}
	return newest, nil
}

// Accepted returns the versions of a key that are accepted at now: the one in use
// first, then the others, the newest first.
func (r *Ring) Accepted(name string, now time.Time) []Key {
	in, err := r.Current(name, now)
	var out []Key
	if err == nil {
		out = append(out, in)
	}
	for _, k := range slices.Backward(r.keys[name]) {
		if k.Accepted(now) && (err != nil || k.Version != in.Version) {
			out = append(out, k)
		}
	}
	return out
}

// OneOf reports whether at most one version of a key is not destroyed, so that nothing
// can be under another.
func (r *Ring) OneOf(name string) bool {
	n := 0
	for _, k := range r.keys[name] {
		if k.DestroyedAt.IsZero() {
			n++
		}
	}
	return n <= 1
}

// RootNumber returns the number of the current root.
func (r *Ring) RootNumber() uint64 { return uint64(len(r.Settings.RootCerts)) }

// Root returns the current root key.
func (r *Ring) Root() Key {
	k, _ := r.Find(Root, r.RootNumber())
	return k
}

// State is the state of a key version, in the words of SP 800-57 part 1 §7. It follows
// from the dates of the row and from the version in use.
type State string

// The states.
const (
	PreActivation State = "pre-activation" // created, not in use yet
	Active        State = "active"         // the one that signs, wraps, is encrypted to
	Deactivated   State = "deactivated"    // verifies at most: see [Key.Accepted]
	Suspended     State = "suspended"
	Compromised   State = "compromised"
	Destroyed     State = "destroyed"
)

// State returns the state of a key version at now.
func (r *Ring) State(k Key, now time.Time) State {
	switch {
	case !k.DestroyedAt.IsZero():
		return Destroyed
	case !k.CompromisedAt.IsZero():
		return Compromised
	case !k.SuspendedAt.IsZero():
		return Suspended
	case !k.RetiredAt.IsZero():
		return Deactivated
	case !k.Begun(now):
		return PreActivation
	}
	if in, err := r.Current(k.Name, now); err == nil && in.Version == k.Version {
		return Active
	}
	return Deactivated
}
