// Package keyring is the appliance's keys by name and date: which key of the
// registry is used now, for what, and how the token is asked to use it. Private
// keys stay on the token.
package keyring

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"sync/atomic"

	"countersign/appliance/anchor"
	"countersign/appliance/store"
	"countersign/hsm"
	"countersign/protocol"
	"countersign/protocol/derive"
)

// Names of the keys, PROTOCOL.md §2.1.
const (
	Root     = "root"
	KEM      = "kem"
	Decision = "decision"
	CA       = "ca"
	ClientCA = "client-ca"
	Enrol    = "enrol"
	Wrap     = "wrap"
	MAC      = "mac"
)

// Audit signs the checkpoints of the audit log. A ceremony does not make it; see
// [Create].
const Audit = "audit"

// Needed are the keys without which there is no appliance.
var Needed = []string{KEM, Decision, CA, ClientCA, Enrol, Wrap, MAC}

// names are all of them, in the order of lists.
var names = []string{Root, KEM, Decision, CA, ClientCA, Enrol, Wrap, MAC, Audit}

// ErrNoKey: no key of that name is valid at this time.
var ErrNoKey = errors.New("no valid key")

// Keyring is safe for concurrent use. What it knows of the registry is one value
// that Reload replaces as a whole: whoever works with a [Key] goes on with it.
type Keyring struct {
	token hsm.Token
	pins  Pins
	live  atomic.Pointer[ring]
	seals atomic.Pointer[store.Seals] // nil: none follow
	// changed has a value when the ring was replaced, see Changed.
	changed chan struct{}
}

// ring is the registry at one moment. It does not change.
type ring struct {
	keys     map[string][]Key // ascending versions
	settings Settings
}

// Key is one key version of the registry.
type Key struct {
	store.Key
	Point   protocol.PublicKey // of a key pair, else zero
	OnToken bool               // false only of roots, whose token may lie in a safe, of what is destroyed, and of what is gone and not held
	// RulesOut: its KeyCert rules out every earlier epoch (field 6), since those
	// were compromised.
	RulesOut bool
}

func (k Key) label() string { return Label(k.Name, k.Version) }

// Label is the CKA_LABEL of a key version: name@version.
func Label(name string, version uint64) string { return fmt.Sprintf("%s@%d", name, version) }

// Load reads the registry, verifies all of it under the pins (see [Verify]) and finds each
// of its keys on the token. A key that is in use, accepted or waits and is not on the token
// is an outage, never a reason to make one: the error wraps [hsm.ErrUnavailable]. One that
// was retired or suspended is missed by [Keyring.Attest].
func Load(ctx context.Context, token hsm.Token, registry store.Keys, pins Pins) (*Keyring, error) {
	if pins.Anchor == nil {
		pins.Anchor = anchor.InMemory(anchor.Anchor{}) // from now on the chain gets no shorter
	}
	r := &Keyring{token: token, pins: pins, changed: make(chan struct{}, 1)}
	first, err := r.read(ctx, registry)
	r.live.Store(first)
	return r, err
}

// Reload reads and verifies the registry again and takes over what it says, as a whole or,
// on an error of Load, not at all. The anchor has moved before a new root is used.
func (r *Keyring) Reload(ctx context.Context, registry store.Keys) error {
	next, err := r.read(ctx, registry)
	if err != nil || reflect.DeepEqual(next, r.live.Load()) {
		return err
	}
	if err := r.follow(ctx, next); err != nil {
		return err
	}
	r.live.Store(next)
	select {
	case r.changed <- struct{}{}:
	default: // a change before this one waits to be seen, and this one with it
	}
	return nil
}

// Changed has a value when the ring was replaced since it was last received from.
// It is for one receiver.
func (r *Keyring) Changed() <-chan struct{} { return r.changed }

func (r *Keyring) read(ctx context.Context, registry store.Keys) (*ring, error) {
	keys, settings, err := r.pins.read(ctx, registry)
	if err != nil {
		return nil, err
	}
	if settings.HandleEpoch == (derive.HandleEpoch{}) {
		return nil, fmt.Errorf("no handle epoch: %w", ErrOldStore)
	}
	present, err := r.token.Keys(ctx)
	if err != nil {
		return nil, fmt.Errorf("listing the token's keys: %w", err)
	}
	next := &ring{keys: map[string][]Key{}, settings: settings}
	return next, next.match(keys, present)
}

// match joins the registry's keys with what the token has. Each key is asked for by
// its CKA_ID, and there must be one object of it.
func (v *ring) match(keys []Key, present []hsm.Key) error {
	byID := make(map[hsm.KeyID][]hsm.Key, len(present))
	for _, k := range present {
		byID[k.ID] = append(byID[k.ID], k)
	}
	for _, key := range keys {
		if err := key.find(byID[key.ID]); err != nil {
			return err
		}
		v.keys[key.Name] = append(v.keys[key.Name], key)
	}
	return nil
}

// pointOf is the public half of a pair on P-256, compressed.
func pointOf(k hsm.Key) (protocol.PublicKey, error) {
	public, err := k.ECDH()
	if err != nil {
		return protocol.PublicKey{}, err
	}
	return protocol.CompressPoint(public.Bytes())
}

// find compares a row with the objects of its CKA_ID.
func (k *Key) find(found []hsm.Key) error {
	switch {
	case !k.DestroyedAt.IsZero():
		k.OnToken = len(found) > 0 // an interruption left it there, see Erase
		return nil
	case len(found) == 0 && k.Name == Root:
		return nil // its token may lie in a safe, and the chain vouches for its row
	case len(found) == 0 && !k.held():
		return nil // nothing is made or taken by it, see Attest
	case len(found) == 0:
		return fmt.Errorf("key %s (id %x) is in the registry but not on the token: %w", k.label(), k.ID, hsm.ErrUnavailable)
	case len(found) > 1:
		return fmt.Errorf("key %s: %d objects of id %x are on the token, want one: %w", k.label(), len(found), k.ID, hsm.ErrUnavailable)
	case found[0].Usage != usages[k.Name]:
		return fmt.Errorf("key %s on the token is for %s, want %s: %w", k.label(), found[0].Usage, usages[k.Name], hsm.ErrUnavailable)
	}
	k.OnToken = true
	return k.comparePublic(found[0])
}

func (k *Key) comparePublic(onToken hsm.Key) error {
	if k.Public == nil {
		return nil
	}
	found, err := pointOf(onToken)
	if err != nil {
		return fmt.Errorf("public key of %s on the token: %w", k.label(), err)
	}
	if string(found[:]) != string(k.Public) {
		return fmt.Errorf("key %s on the token is %s, the registry has %x: %w", k.label(), found, k.Public, hsm.ErrUnavailable)
	}
	return nil
}

// Keys lists every key version, by name and version.
func (r *Keyring) Keys() []Key { return r.live.Load().all() }

func (v *ring) all() []Key {
	var all []Key
	for _, name := range names {
		all = append(all, v.keys[name]...)
	}
	return all
}

// Settings are the trust settings in force.
func (r *Keyring) Settings() Settings { return r.live.Load().settings }

// Domain is the SPIFFE trust domain.
func (r *Keyring) Domain() string { return r.live.Load().settings.Domain }
