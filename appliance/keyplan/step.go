// Package keyplan plans the steps of a key's life: which rows of the registry a step
// changes, which keys and certificates it needs, and when a step is due. It is pure;
// package keylife carries plans out.
package keyplan

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"countersign/appliance/keyring"
	"countersign/appliance/store"
)

var (
	// ErrKeyName means that no key has this name or version.
	ErrKeyName = errors.New("no such key")
	// ErrStep means that the key is not in a state where this step begins; the message
	// names its state.
	ErrStep = errors.New("not possible now")
	// ErrRootAway means that the step needs a signature of the root, which is not on the
	// token.
	ErrRootAway = errors.New("the root key is not on the token")
	// ErrEarly means that records or messages under the key may still be in use.
	ErrEarly = errors.New("too early")
)

// Verb names a step of a key's life, as in the administrator's commands.
type Verb string

// The verbs.
const (
	Create   Verb = "create"   // create the first version of a key that has none
	Rotate   Verb = "rotate"   // create, or certify, the next version; it waits
	Activate Verb = "activate" // put a version into use at once, an earlier one too
	Retire   Verb = "retire"   // accept nothing under the version any more
	Suspend  Verb = "suspend"  // stop using it until it is resumed
	Resume   Verb = "resume"   // use it again
	Destroy  Verb = "destroy"  // remove the key from the token, for good
)

// Step is one verb for one key.
type Step struct {
	Verb        Verb
	Name        string
	Version     uint64 // 0: the one that waits, or, to retire, the oldest that is still accepted
	Early       bool   // retire before the overlap is over
	Compromised bool   // retire permanently; rotate: the next version rules out all earlier ones
}

// ParseRef parses NAME or NAME@VERSION; version is 0 if the reference has none. An error
// wraps [ErrKeyName]. PROTOCOL.md §2.1 lists the names.
func ParseRef(s string) (name string, version uint64, err error) {
	name, number, versioned := strings.Cut(s, "@")
	if !slices.Contains(keyring.Names, name) {
		return "", 0, fmt.Errorf("key %q: %w: want one of %s", name, ErrKeyName, strings.Join(keyring.Names, ", "))
	}
	if versioned {
		version, err = strconv.ParseUint(number, 10, 32)
		if err != nil || version == 0 || strconv.FormatUint(version, 10) != number {
			return "", 0, fmt.Errorf("key %q: %w: want NAME@VERSION", s, ErrKeyName)
		}
	}
	return name, version, nil
}

// Plan is the result of a step: the rows as they will be. The ids, public keys and
// certificates that are still to be made are missing.
type Plan struct {
	Step
	Edits        []Edit
	Roots        [][]byte // the RootCerts from then on; nil: unchanged
	NextRootHash [32]byte // with Roots
	now          time.Time
}

// Edit is one row of a plan.
type Edit struct {
	store.Key
	IsNew    bool // the version is not in the registry yet
	Kept     bool // nothing changes: the step was taken before
	Generate bool // its key must be generated
	Certify  bool // its certificate must be signed
	RulesOut bool // the certificate must rule out every earlier epoch
}

// after returns the ring as it is once the plan is carried out.
func (p Plan) after(ring *keyring.Ring) *keyring.Ring {
	settings := ring.Settings
	if p.Roots != nil {
		settings.RootCerts = p.Roots
	}
	var keys []keyring.Key
	for _, e := range p.Edits {
		key := keyring.Key{Key: e.Key, OnToken: true}
		if old, ok := ring.Find(e.Name, e.Version); ok {
			key.Point, key.OnToken = old.Point, old.OnToken && e.DestroyedAt.IsZero()
		}
		keys = append(keys, key)
	}
	return ring.With(settings, keys...)
}

// Settings returns the trust settings after the plan, or nil if they stay the same.
func (p Plan) Settings(s keyring.Settings) map[string][]byte {
	if p.Roots == nil {
		return nil
	}
	s.RootCerts, s.NextRootHash = p.Roots, p.NextRootHash
	return s.Values()
}

// SealedUnder returns the version of mac that seals new records after the plan.
func (p Plan) SealedUnder(ring *keyring.Ring) uint64 {
	var rows []store.Key
	for _, k := range p.after(ring).Versions(keyring.MAC) {
		rows = append(rows, k.Key)
	}
	return keyring.NewestMAC(rows)
}

// View is a key version as it is at one time.
type View struct {
	keyring.Key
	State      keyring.State
	Accepted   bool      // what it made, or was made for it, is accepted
	OverlapEnd time.Time // when it may be retired; zero while it is in use, or before
}

func view(ring *keyring.Ring, k keyring.Key, now time.Time) View {
	w := View{Key: k, State: ring.State(k, now), Accepted: k.Accepted(now)}
	in, err := ring.Current(k.Name, now)
	if err == nil && k.Version != in.Version && k.Begun(now) && w.Accepted {
		w.OverlapEnd = overlapEnd(k, in)
	}
	return w
}

// Views returns all key versions at now, by name and version.
func Views(ring *keyring.Ring, now time.Time) (views []View) {
	for _, k := range ring.Keys() {
		views = append(views, view(ring, k, now))
	}
	return views
}

// Preview returns the key versions of the plan as they are after it.
func (p Plan) Preview(ring *keyring.Ring) []View { return p.Views(p.after(ring), p.now) }

// Views returns the key versions of the plan as they are in ring at now.
func (p Plan) Views(ring *keyring.Ring, now time.Time) (views []View) {
	for _, e := range p.Edits {
		if k, ok := ring.Find(e.Name, e.Version); ok {
			views = append(views, view(ring, k, now))
		}
	}
	return views
}
