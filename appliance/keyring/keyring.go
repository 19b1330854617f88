// Package keyring is the appliance's keys by name and date: which key of the
// registry is used now, for what, and how the token is asked to use it. Private
// keys stay on the token; a signature is verified here before anybody gets it.
package keyring

import (
	"context"
	"crypto/ecdh"
	"crypto/hmac"
	"crypto/hpke"
	"errors"
	"fmt"
	"time"

	"countersign/appliance/store"
	"countersign/hsm"
	"countersign/protocol"
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

// kemGrace is how long a kem epoch is accepted after its end, PROTOCOL.md §2.1.
const kemGrace = 30 * 24 * time.Hour

// ErrNoKey: no key of that name is valid at this time.
var ErrNoKey = errors.New("no valid key")

// Keyring is safe for concurrent use; it does not change once loaded.
type Keyring struct {
	token    hsm.Token
	keys     map[string][]Key // ascending versions
	settings Settings
}

// Key is one key version that the token has.
type Key struct {
	store.Key
	Point protocol.PublicKey // of a key pair, else zero
}

func (k Key) label() string { return Label(k.Name, k.Version) }

// Label is the CKA_LABEL of a key version: name@version.
func Label(name string, version uint64) string { return fmt.Sprintf("%s@%d", name, version) }

// valid tells whether now lies in the key's dates; a key without dates is
// always valid.
func (k Key) valid(now time.Time) bool {
	return (k.NotBefore.IsZero() || !now.Before(k.NotBefore)) && (k.NotAfter.IsZero() || !now.After(k.NotAfter))
}

// State in the words of SP 800-57 part 1 §7.
func (k Key) State(now time.Time) string {
	switch {
	case !k.NotBefore.IsZero() && now.Before(k.NotBefore):
		return "pre-activation"
	case !k.NotAfter.IsZero() && now.After(k.NotAfter):
		return "deactivated"
	default:
		return "active"
	}
}

// Load reads the registry and finds each of its keys on the token. A key that is
// in the registry and not on the token is an outage, never a reason to make one:
// the error wraps [hsm.ErrUnavailable].
func Load(ctx context.Context, token hsm.Token, registry store.Keys) (*Keyring, error) {
	rows, err := registry.ListKeys(ctx)
	if err != nil {
		return nil, fmt.Errorf("reading the key registry: %w", err)
	}
	values, err := registry.Settings(ctx)
	if err != nil {
		return nil, fmt.Errorf("reading the trust settings: %w", err)
	}
	settings, err := parseSettings(values)
	if err != nil {
		return nil, err
	}
	present, err := token.Keys(ctx)
	if err != nil {
		return nil, fmt.Errorf("listing the token's keys: %w", err)
	}
	ring := &Keyring{token: token, keys: map[string][]Key{}, settings: settings}
	return ring, ring.match(rows, present)
}

// match joins the registry's rows with what the token has.
func (r *Keyring) match(rows []store.Key, present []hsm.Key) error {
	byID := make(map[hsm.KeyID]hsm.Key, len(present))
	for _, k := range present {
		byID[k.ID] = k
	}
	for _, row := range rows {
		key := Key{Key: row}
		found, ok := byID[row.ID]
		if !ok && row.Name == Root {
			key.Point = protocol.PublicKey(row.Public) // its token may lie in a safe
			r.keys[row.Name] = append(r.keys[row.Name], key)
			continue
		}
		if !ok {
			return fmt.Errorf("key %s (id %x) is in the registry but not on the token: %w", key.label(), row.ID, hsm.ErrUnavailable)
		}
		if err := key.comparePublic(found); err != nil {
			return err
		}
		r.keys[row.Name] = append(r.keys[row.Name], key)
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
	k.Point = found
	return nil
}

// Current is the newest version of a key that is valid at now.
func (r *Keyring) Current(name string, now time.Time) (Key, error) {
	versions := r.keys[name]
	for i := len(versions) - 1; i >= 0; i-- {
		if versions[i].valid(now) {
			return versions[i], nil
		}
	}
	return Key{}, fmt.Errorf("key %q at %s: %w", name, now.UTC().Format(time.RFC3339), ErrNoKey)
}

// Keys lists every key version, by name and version.
func (r *Keyring) Keys() []Key {
	var all []Key
	for _, name := range []string{Root, KEM, Decision, CA, ClientCA, Enrol, Wrap, MAC} {
		all = append(all, r.keys[name]...)
	}
	return all
}

// Recipient is the HPKE private key of the kem epoch that is e modulo 64; its one
// ECDH runs on the token, within ctx. ok is false when that epoch is not held.
func (r *Keyring) Recipient(ctx context.Context, e uint8, now time.Time) (key hpke.PrivateKey, ok bool, err error) {
	versions := r.keys[KEM]
	for i := len(versions) - 1; i >= 0; i-- {
		k := versions[i]
		if uint8(k.Version%64) != e || now.After(k.NotAfter.Add(kemGrace)) {
			continue
		}
		public, err := k.Point.ECDH()
		if err != nil {
			return nil, false, err
		}
		key, err := hpke.NewDHKEMPrivateKey(&exchanger{ctx: ctx, token: r.token, id: k.ID, public: public})
		return key, true, err
	}
	return nil, false, nil
}

// exchanger runs a key agreement on the token. It is made for one request, whose
// context it carries because ecdh.KeyExchanger has no place for one.
type exchanger struct {
	ctx    context.Context
	token  hsm.Token
	id     hsm.KeyID
	public *ecdh.PublicKey
}

func (e *exchanger) PublicKey() *ecdh.PublicKey { return e.public }
func (e *exchanger) Curve() ecdh.Curve          { return ecdh.P256() }

func (e *exchanger) ECDH(peer *ecdh.PublicKey) ([]byte, error) {
	return e.token.Derive(e.ctx, e.id, peer)
}

// MAC is HMAC-SHA-256 under the mac key over an input that begins with one of
// its domain strings (protocol's RecordInput, PairwiseInput, HandleKeyInput). What
// comes out is stored or kept, and nothing here can verify it, so the token is
// asked until two answers agree: see [agreed].
func (r *Keyring) MAC(ctx context.Context, input []byte) ([]byte, error) {
	key, err := r.Current(MAC, time.Time{})
	if err != nil {
		return nil, err
	}
	mac, err := agreed(func() ([]byte, error) { return r.token.MAC(ctx, key.ID, input) })
	if err != nil {
		return nil, fmt.Errorf("MAC by %s: %w", key.label(), err)
	}
	return mac, nil
}

// agreed is the first answer that came twice, of three at most, those before
// included: a token that errs once costs one call more, and one that errs always
// is [hsm.ErrGarbled].
func agreed(ask func() ([]byte, error), before ...[]byte) ([]byte, error) {
	for len(before) < 3 {
		answer, err := ask()
		if err != nil {
			return nil, err
		}
		for _, b := range before {
			if hmac.Equal(answer, b) {
				return answer, nil
			}
		}
		before = append(before, answer)
	}
	return nil, fmt.Errorf("three answers to one question: %w", hsm.ErrGarbled)
}
