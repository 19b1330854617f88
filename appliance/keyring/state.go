package keyring

import (
	"fmt"
	"time"

	"countersign/protocol"
)

// State is where a key version stands in its life, in the words of SP 800-57 part 1
// §7. It is derived from the dates of its row and from which version is in use.
type State string

// The states.
const (
	PreActivation State = "pre-activation" // made, and not in use yet
	Active        State = "active"         // the one that signs, wraps, is encrypted to
	Deactivated   State = "deactivated"    // verifies only, or not even that: see Accepted
	Suspended     State = "suspended"
	Compromised   State = "compromised"
	Destroyed     State = "destroyed"
)

// kemGrace is how long a kem epoch is accepted after its end, PROTOCOL.md §2.1.
const kemGrace = 30 * day

// State of a key version at now.
func (r *Keyring) State(k Key, now time.Time) State { return r.live.Load().state(k, now) }

func (v *ring) state(k Key, now time.Time) State {
	switch {
	case !k.DestroyedAt.IsZero():
		return Destroyed
	case !k.CompromisedAt.IsZero():
		return Compromised
	case !k.SuspendedAt.IsZero():
		return Suspended
	case !k.RetiredAt.IsZero():
		return Deactivated
	case !k.begun(now):
		return PreActivation
	}
	if in, err := v.current(k.Name, now); err == nil && in.Version == k.Version {
		return Active
	}
	return Deactivated
}

// begun tells whether the version has come into use by now.
func (k Key) begun(now time.Time) bool { return !k.ActivatedAt.IsZero() && !now.Before(k.ActivatedAt) }

// held tells that nothing but its dates stands against the key.
func (k Key) held() bool {
	return k.RetiredAt.IsZero() && k.SuspendedAt.IsZero() && k.CompromisedAt.IsZero() && k.DestroyedAt.IsZero()
}

// dated tells whether now lies in the key's dates; a key without dates is always in
// them.
func (k Key) dated(now time.Time) bool {
	return (k.NotBefore.IsZero() || !now.Before(k.NotBefore)) && (k.NotAfter.IsZero() || !now.After(k.NotAfter))
}

// Accepted tells whether what was made with or for this version is still taken at
// now: from the moment at which it may be known outside until it is retired or over.
func (r *Keyring) Accepted(k Key, now time.Time) bool { return r.live.Load().accepted(k, now) }

func (v *ring) accepted(k Key, now time.Time) bool {
	end := k.NotAfter
	if k.Name == KEM {
		end = end.Add(kemGrace)
	}
	return k.held() && (k.NotAfter.IsZero() || !now.After(end))
}

// acceptedOf are the versions of a key that are accepted at now, the one in use
// first, then the newer ones first.
func (v *ring) acceptedOf(name string, now time.Time) []Key {
	in, err := v.current(name, now)
	var out []Key
	if err == nil {
		out = append(out, in)
	}
	versions := v.keys[name]
	for i := len(versions) - 1; i >= 0; i-- {
		if k := versions[i]; v.accepted(k, now) && (err != nil || k.Version != in.Version) {
			out = append(out, k)
		}
	}
	return out
}

// Current is the version of a key that is in use at now: the one that was activated
// last. An error wraps [ErrNoKey].
func (r *Keyring) Current(name string, now time.Time) (Key, error) {
	return r.live.Load().current(name, now)
}

func (v *ring) current(name string, now time.Time) (newest Key, err error) {
	for _, k := range v.keys[name] {
		usable := k.held() && k.begun(now) && k.dated(now) && (k.Cert == nil || name == Root || k.Root == v.rootNumber())
		if usable && (newest.Version == 0 || !k.ActivatedAt.Before(newest.ActivatedAt)) {
			newest = k
		}
	}
	if newest.Version == 0 {
		return newest, fmt.Errorf("key %q at %s: %w", name, now.UTC().Format(time.RFC3339), ErrNoKey)
	}
	return newest, nil
}

// rootNumber is that of the current root.
func (v *ring) rootNumber() uint64 { return uint64(len(v.settings.RootCerts)) }

// root is the current root key.
func (v *ring) root() Key {
	k, _ := v.find(Root, v.rootNumber())
	return k
}

func (v *ring) find(name string, version uint64) (Key, bool) {
	for _, k := range v.keys[name] {
		if k.Version == version {
			return k, true
		}
	}
	return Key{}, false
}

// Root is the current root key.
func (r *Keyring) Root() protocol.PublicKey { return r.live.Load().root().Point }
