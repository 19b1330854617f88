// Package keyuse holds the keys of the appliance while it serves: it loads the registry
// under its pins, signs, agrees on secrets, computes MACs, imports and checks password
// verifiers, and issues certificates. Private keys stay on the token.
package keyuse

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"reflect"
	"slices"
	"sync/atomic"
	"time"

	"countersign/appliance/anchor"
	"countersign/appliance/keyring"
	"countersign/appliance/keyring/chain"
	"countersign/appliance/store"
	"countersign/hsm"
	"countersign/protocol"
	"countersign/protocol/derive"
)

// ErrOldStore means that the store is from an earlier release and lacks what this one
// needs.
var ErrOldStore = errors.New("the store is of an earlier release")

// Pins are the roots that the registry must have: see [chain.Pins].
type Pins struct {
	// Anchor has the newest root that ever was in force. A verified registry with a newer
	// one moves it forward before that root is used. nil: no anchor is kept.
	Anchor *anchor.File
	Root   protocol.PublicKey // any root of the chain; zero: none
}

// Verify verifies the claims of a store, without a token, and moves the anchor. Errors
// come from [chain.Verify] and the anchor.
func (p Pins) Verify(c store.Claims) error {
	_, _, err := p.verified(c.Keys, c.Settings)
	return err
}

func (p Pins) verified(rows []store.Key, values map[string][]byte) ([]keyring.Key, keyring.Settings, error) {
	pins := chain.Pins{Root: p.Root}
	if p.Anchor != nil {
		pins.Anchor = p.Anchor.Current()
	}
	keys, settings, err := chain.Verify(rows, values, pins)
	if err != nil || p.Anchor == nil {
		return keys, settings, err
	}
	newest, err := chain.Anchor(settings)
	if err == nil {
		err = p.Anchor.Root(newest.Root, newest.Key, newest.CertHash)
	}
	return keys, settings, err
}

// Keys is the live registry with its token. It is safe for concurrent use. Reload
// replaces the ring as a whole; an operation finishes with the key that it began with.
type Keys struct {
	token   hsm.Token
	pins    Pins
	ring    atomic.Pointer[keyring.Ring]
	seals   atomic.Pointer[store.Seals] // nil: none follow
	changed chan struct{}               // has a value when the ring was replaced, see Changed
}

// Load reads the registry, verifies it under the pins and finds its keys on the token.
// Errors come from [Pins.Verify], [keyring.New], the store and the token.
func Load(ctx context.Context, token hsm.Token, registry store.Keys, pins Pins) (*Keys, error) {
	if pins.Anchor == nil {
		pins.Anchor = anchor.InMemory(anchor.Anchor{}) // from now on the chain gets no shorter
	}
	k := &Keys{token: token, pins: pins, changed: make(chan struct{}, 1)}
	first, err := k.read(ctx, registry)
	k.ring.Store(first)
	return k, err
}

// Unverified returns keys of a registry that no store holds yet.
func Unverified(token hsm.Token, ring *keyring.Ring) *Keys {
	k := &Keys{token: token, changed: make(chan struct{}, 1)}
	k.ring.Store(ring)
	return k
}

// Reload reads and verifies the registry again and replaces the ring, or keeps the old
// one on an error. The anchor moves before a new root is used.
func (k *Keys) Reload(ctx context.Context, registry store.Keys) error {
	next, err := k.read(ctx, registry)
	if err != nil || reflect.DeepEqual(next, k.Ring()) {
		return err
	}
	if err := k.follow(ctx, next); err != nil {
		return err
	}
	k.ring.Store(next)
	select {
	case k.changed <- struct{}{}:
	default: // the receiver has not seen the change before this one, and will see both
	}
	return nil
}

func (k *Keys) read(ctx context.Context, registry store.Keys) (*keyring.Ring, error) {
	rows, err := registry.ListKeys(ctx)
	if err != nil {
		return nil, fmt.Errorf("reading the key registry: %w", err)
	}
	values, err := registry.Settings(ctx)
	if err != nil {
		return nil, fmt.Errorf("reading the trust settings: %w", err)
	}
	keys, settings, err := k.pins.verified(rows, values)
	if err != nil {
		return nil, err
	}
	if settings.HandleEpoch == (derive.HandleEpoch{}) {
		return nil, fmt.Errorf("no handle epoch: %w", ErrOldStore)
	}
	present, err := k.present(ctx, keys)
	if err != nil {
		return nil, fmt.Errorf("listing the token's keys: %w", err)
	}
	ring, err := keyring.New(keys, settings, present)
	if err != nil {
		return ring, err
	}
	return ring, checkSuites(ring, k.token.KEMs())
}

// checkSuites returns an error if the token cannot do the suite of a kem key that is not retired. offered
// is empty if no KEM of the token is known.
func checkSuites(ring *keyring.Ring, offered []hsm.KEM) error {
	for _, key := range ring.Versions(keyring.KEM) {
		if key.Held() && len(offered) > 0 && !slices.Contains(offered, key.KEM()) {
			return fmt.Errorf("key %s is for %s, and the token offers %v: use a token and module that can do %s: %w",
				key.Label(), key.KEM(), offered, key.KEM(), hsm.ErrUnavailable)
		}
	}
	return nil
}

// present lists the token's keys. It gives the token the public keys of the registry, so that it
// finds the private keys of a token that lost the public ones.
func (k *Keys) present(ctx context.Context, keys []keyring.Key) ([]hsm.Key, error) {
	var publics [][]byte
	for _, key := range keys {
		if key.Public == nil || !key.DestroyedAt.IsZero() {
			continue
		}
		spki, err := key.SPKI()
		if err != nil {
			return nil, fmt.Errorf("public key of %s: %w", key.Label(), err)
		}
		publics = append(publics, spki)
	}
	if err := k.token.Know(ctx, publics); err != nil {
		return nil, err
	}
	return k.token.Keys(ctx)
}

// Changed has a value when the ring was replaced since the last receive. It is for one
// receiver.
func (k *Keys) Changed() <-chan struct{} { return k.changed }

// Ring returns the registry as it is now.
func (k *Keys) Ring() *keyring.Ring { return k.ring.Load() }

// Token returns the token that holds the keys.
func (k *Keys) Token() hsm.Token { return k.token }

// Current returns the version of a key in use at now: see [keyring.Ring.Current].
func (k *Keys) Current(name string, now time.Time) (keyring.Key, error) {
	return k.Ring().Current(name, now)
}

// Settings returns the trust settings in force.
func (k *Keys) Settings() keyring.Settings { return k.Ring().Settings }

// Domain returns the SPIFFE trust domain.
func (k *Keys) Domain() string { return k.Ring().Settings.Domain }

// Root returns the current root key.
func (k *Keys) Root() protocol.PublicKey { return k.Ring().Root().Point }

// SPIFFEID returns spiffe://<trust domain>/<kind>/<name>.
func (k *Keys) SPIFFEID(kind, name string) *url.URL {
	return &url.URL{Scheme: "spiffe", Host: k.Domain(), Path: "/" + kind + "/" + name}
}
