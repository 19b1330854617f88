package keyring

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"countersign/appliance/store"
)

// Sentinels of the steps of a key's life.
var (
	// ErrKeyName: there is no key of that name or version.
	ErrKeyName = errors.New("no such key")
	// ErrStep: the key is not where this step begins; the message says where it is.
	ErrStep = errors.New("not possible now")
	// ErrRootAway: the step takes a signature of the root, which is not on the token.
	ErrRootAway = errors.New("the root key is not on the token")
	// ErrEarly: what was made with the key may still be under way.
	ErrEarly = errors.New("too early")
)

// Verb names a step of a key's life, as the administrator's commands do.
type Verb string

// The verbs.
const (
	Create   Verb = "create"   // the first version of a key that has none
	Rotate   Verb = "rotate"   // makes, or certifies, the next version; it waits
	Activate Verb = "activate" // puts a version into use, at once; an earlier one too
	Retire   Verb = "retire"   // nothing under the version is accepted any more
	Suspend  Verb = "suspend"  // not used until it is resumed
	Resume   Verb = "resume"   // used again
	Destroy  Verb = "destroy"  // the key leaves the token; nothing brings it back
)

// Step is one verb for one key.
type Step struct {
	Verb        Verb
	Name        string
	Version     uint64 // 0: the one that waits, or, to retire, the oldest that is still accepted
	Early       bool   // retire before the overlap is over
	Compromised bool   // retire for good; rotate: the next version rules out all earlier ones
}

// ParseRef reads NAME or NAME@VERSION: an error wrapping [ErrKeyName] for another
// name than those of PROTOCOL.md §2.1. version is 0 where there is none.
func ParseRef(s string) (name string, version uint64, err error) {
	name, number, versioned := strings.Cut(s, "@")
	if !slices.Contains(names, name) {
		return "", 0, fmt.Errorf("key %q: %w: want one of %s", name, ErrKeyName, strings.Join(names, ", "))
	}
	if versioned {
		version, err = strconv.ParseUint(number, 10, 32)
		if err != nil || version == 0 || strconv.FormatUint(version, 10) != number {
			return "", 0, fmt.Errorf("key %q: %w: want NAME@VERSION", s, ErrKeyName)
		}
	}
	return name, version, nil
}

// Plan is what a step comes to: the rows as they will be. The id, public key and
// certificate of what is yet to be made are missing.
type Plan struct {
	Step
	Edits []Edit
	Roots [][]byte // RootCerts from then on; nil: as they are
	hash  [32]byte // next root hash, with Roots
	now   time.Time
}

// Edit is one row of a plan.
type Edit struct {
	store.Key
	IsNew     bool // the version is not in the registry yet
	Kept      bool // nothing changes: the step was taken before
	generated bool // its key is to be made
	certified bool // its certificate is to be signed
	rulesOut  bool // … and to rule out every earlier epoch
}

// Plan says what a step comes to at now, and does nothing. Errors wrap [ErrKeyName],
// [ErrStep], [ErrRootAway] or [ErrEarly].
func (r *Keyring) Plan(s Step, now time.Time) (Plan, error) {
	p := planner{ring: r.live.Load(), Plan: Plan{Step: s, now: now.UTC().Truncate(time.Microsecond)}}
	if !slices.Contains(names, s.Name) {
		return p.Plan, fmt.Errorf("key %q: %w", s.Name, ErrKeyName)
	}
	do := map[Verb]func() error{
		Create: p.create, Rotate: p.rotate, Activate: p.activate, Retire: p.retire,
		Suspend: p.suspend, Resume: p.resume, Destroy: p.destroy,
	}[s.Verb]
	if do == nil {
		return p.Plan, fmt.Errorf("verb %q: %w", s.Verb, ErrStep)
	}
	if err := do(); err != nil {
		return p.Plan, err
	}
	return p.Plan, nil
}

// planner makes one plan.
type planner struct {
	*ring
	Plan
}

// edit puts a changed row into the plan.
func (p *planner) edit(row store.Key) *Edit {
	row.Revision++
	p.Edits = append(p.Edits, Edit{Key: row})
	return &p.Edits[len(p.Edits)-1]
}

// keep shows a row to which the step has nothing to add.
func (p *planner) keep(k Key) error {
	p.Edits = append(p.Edits, Edit{Key: k.Key, Kept: true})
	return nil
}

// make puts a new version into the plan.
func (p *planner) make(name string) *Edit {
	version := uint64(1)
	if all := p.keys[name]; len(all) > 0 {
		version = all[len(all)-1].Version + 1
	}
	for _, e := range p.Edits {
		if e.Name == name && e.Version >= version {
			version = e.Version + 1
		}
	}
	row := store.Key{Name: name, Version: version, CreatedAt: p.now, Revision: 1, Origin: store.Generated}
	p.Edits = append(p.Edits, Edit{Key: row, IsNew: true, generated: true})
	return &p.Edits[len(p.Edits)-1]
}

func certifiedNamed(name string) (certified, bool) {
	i := slices.IndexFunc(certifiedKeys, func(k certified) bool { return k.name == name })
	if i < 0 {
		return certified{}, false
	}
	return certifiedKeys[i], true
}

func (p *planner) create() error {
	if len(p.keys[p.Name]) > 0 {
		return fmt.Errorf("key %s is there already: %w", p.Name, ErrStep)
	}
	p.make(p.Name).ActivatedAt = p.now
	return nil
}

// rotate makes the next version, or certifies one that a ceremony made for later, so
// that it can be activated. One that waits already is not made twice. Where none is in
// use, all of them over or given up, it is the way back.
func (p *planner) rotate() error {
	if p.Name == Root {
		return p.rotateRoot()
	}
	in, err := p.current(p.Name, p.now)
	if err != nil && len(p.keys[p.Name]) == 0 {
		return err
	}
	k, isCertified := certifiedNamed(p.Name)
	if p.Compromised && (!isCertified || p.Name == CA) {
		return fmt.Errorf("no certificate can rule out a version of %s: rotate it, activate it, and retire the old one as compromised: %w", p.Name, ErrStep)
	}
	// One that rules out those before it is not certified anew without that.
	if k, ok := p.waiting(p.Name); ok && (k.RulesOut || !p.Compromised) {
		return p.keep(k)
	}
	if !isCertified {
		p.make(p.Name)
		return nil
	}
	if err := p.noRootWaits(); err != nil {
		return err
	}
	return p.certifyNext(k, in)
}

// certifyNext takes the prepared epoch that follows on the one in use, or makes one. Its
// KeyCert is good from now on. Not activated, it comes into use by itself when that in
// use ends: an appliance that nobody looks after goes on. Where none is in use, and in is
// zero, it waits to be activated. While the root is there, the
// epochs after it are dated anew, and there are as many as after a ceremony.
func (p *planner) certifyNext(k certified, in Key) error {
	prepared, ok := p.next(in)
	if !p.root().OnToken {
		if ok {
			return fmt.Errorf("%s is certified from %s on, and before that: %w", prepared.label(), prepared.NotBefore.Format(time.RFC3339), ErrRootAway)
		}
		return fmt.Errorf("certifying another epoch of %s: %w", p.Name, ErrRootAway)
	}
	var e *Edit
	if ok {
		e = p.edit(prepared.Key)
	} else {
		e = p.make(p.Name)
	}
	p.certify(e, k)
	if e.ActivatedAt = in.NotAfter.Add(-k.linger); !e.ActivatedAt.After(p.now) {
		e.ActivatedAt = time.Time{}
	}
	p.prepare(k, e.Key)
	return nil
}

// prepare dates the epochs after first, one period each, and makes those that are
// missing. They come into use by themselves.
func (p *planner) prepare(k certified, first store.Key) {
	var later []Key
	for _, other := range p.keys[k.name] {
		if other.Version > first.Version && other.held() && !other.begun(p.now) && other.Root == first.Root {
			later = append(later, other)
		}
	}
	begin := first.NotBefore
	for i := range max(epochsAhead-1, len(later)) {
		var e *Edit
		if i < len(later) {
			e = p.edit(later[i].Key)
		} else {
			e = p.make(k.name)
		}
		begin = begin.Add(k.period)
		e.certified, e.Root = true, first.Root
		e.NotBefore, e.NotAfter, e.ActivatedAt = begin, begin.Add(k.period+k.linger), begin
	}
}

// certify has a row certified by the current root from now on.
func (p *planner) certify(e *Edit, k certified) {
	e.certified, e.rulesOut, e.Root = true, p.Compromised, p.rootNumber()
	e.NotBefore = p.now.Truncate(time.Second).Add(-startEarly)
	e.NotAfter = e.NotBefore.Add(startEarly + k.period + k.linger)
}

// next is the first version after in that never was in use and that the current root
// certified, whether it could be used now or later.
func (p *planner) next(in Key) (Key, bool) {
	for _, k := range p.keys[p.Name] {
		if k.Version > in.Version && k.held() && !k.begun(p.now) && k.Root == p.rootNumber() {
			return k, true
		}
	}
	return Key{}, false
}

// waiting is the version that could be activated now and never was in use.
func (p *planner) waiting(name string) (Key, bool) {
	for _, k := range p.keys[name] {
		if k.held() && !k.begun(p.now) && k.dated(p.now) && (k.Cert == nil || k.Root == p.rootNumber()) && name != Root {
			return k, true
		}
	}
	return Key{}, false
}

// activate puts a version into use: the one that waits, or a named one, an earlier one
// too, so that a rotation can be taken back until the key is destroyed.
func (p *planner) activate() error {
	if p.Name == Root {
		return p.activateRoot()
	}
	if err := p.noRootWaits(); err != nil {
		return err
	}
	k, err := p.meant(p.waiting)
	if err != nil {
		return err
	}
	state := p.state(k, p.now)
	switch {
	case state == Active:
		return p.keep(k)
	case state != PreActivation && state != Deactivated:
		return fmt.Errorf("%s is %s: %w", k.label(), state, ErrStep)
	case !k.OnToken:
		return fmt.Errorf("%s is not on the token: %w", k.label(), ErrStep)
	case !k.dated(p.now):
		return fmt.Errorf("%s is certified from %s to %s: %w", k.label(), k.NotBefore.Format(time.RFC3339), k.NotAfter.Format(time.RFC3339), ErrStep)
	case k.Cert != nil && k.Root != p.rootNumber():
		return fmt.Errorf("%s was certified by root %d, which was replaced: %w", k.label(), k.Root, ErrStep)
	}
	e := p.edit(k.Key)
	e.ActivatedAt, e.RetiredAt = p.now, time.Time{}
	if k.RulesOut {
		p.ruleOut(k)
	}
	return nil
}

// ruleOut ends every version before k: whoever has its KeyCert takes nothing by them.
func (p *planner) ruleOut(k Key) {
	for _, old := range p.keys[k.Name] {
		if old.Version < k.Version && old.CompromisedAt.IsZero() && old.DestroyedAt.IsZero() {
			e := p.edit(old.Key)
			e.CompromisedAt = p.now
			if e.RetiredAt.IsZero() {
				e.RetiredAt = p.now
			}
		}
	}
}

// meant is the version that a step names, or else the one that find finds.
func (p *planner) meant(find func(name string) (Key, bool)) (Key, error) {
	if p.Version == 0 {
		k, ok := find(p.Name)
		if !ok {
			return k, fmt.Errorf("no version of %s to %s: name one, NAME@VERSION: %w", p.Name, p.Verb, ErrStep)
		}
		return k, nil
	}
	k, ok := p.find(p.Name, p.Version)
	if !ok {
		return k, fmt.Errorf("key %s: %w", Label(p.Name, p.Version), ErrKeyName)
	}
	return k, nil
}

// named is the version that a step has to name.
func (p *planner) named() (Key, error) {
	return p.meant(func(string) (Key, bool) { return Key{}, false })
}

// retire ends the overlap of a version that is not in use any more.
func (p *planner) retire() error {
	if p.Name == Root {
		return p.retireRoot()
	}
	k, err := p.meant(p.superseded)
	if err != nil {
		return err
	}
	if !k.RetiredAt.IsZero() && (!p.Compromised || !k.CompromisedAt.IsZero()) {
		return p.keep(k)
	}
	if err := p.notOfWaitingRoot(k); err != nil {
		return err
	}
	if err := p.replaced(k); err != nil {
		return err
	}
	e := p.edit(k.Key)
	if e.RetiredAt.IsZero() {
		e.RetiredAt = p.now
	}
	if p.Compromised {
		e.CompromisedAt = p.now
	}
	return nil
}

// superseded is the oldest version that was in use and is still accepted.
func (p *planner) superseded(name string) (Key, bool) {
	for _, k := range p.keys[name] {
		if k.begun(p.now) && p.accepted(k, p.now) && p.state(k, p.now) != Active {
			return k, true
		}
	}
	return Key{}, false
}

// replaced tells whether a version can go: another is in use, and what was made with
// it had its time.
func (p *planner) replaced(k Key) error {
	in, err := p.current(k.Name, p.now)
	switch {
	case !k.DestroyedAt.IsZero():
		return fmt.Errorf("%s is destroyed: %w", k.label(), ErrStep)
	case err != nil:
		return err
	case in.Version == k.Version:
		return fmt.Errorf("%s is in use: %w", k.label(), ErrStep)
	}
	if end := p.overlapEnd(k, in); !p.Early && !p.Compromised && k.begun(p.now) && p.now.Before(end) {
		return fmt.Errorf("what was made with %s is accepted until %s: %w", k.label(), end.Format(time.RFC3339), ErrEarly)
	}
	return nil
}

// overlaps are how long a version is accepted after another has come into use, as
// far as that is not in its certificate's dates.
var overlaps = map[string]time.Duration{
	KEM: kemGrace, Decision: 30 * day, CA: 90 * day, ClientCA: clientCertLife, Enrol: 30 * day,
	MAC: day, // the handles under way, PROTOCOL.md §3.2; records are made anew
}

// OverlapEnd is when a version that is no longer in use may be retired; zero for one
// that is in use, or never was.
func (r *Keyring) OverlapEnd(k Key, now time.Time) time.Time {
	v := r.live.Load()
	in, err := v.current(k.Name, now)
	if err != nil || k.Version == in.Version || !k.begun(now) || !v.accepted(k, now) {
		return time.Time{}
	}
	return v.overlapEnd(k, in)
}

func (v *ring) overlapEnd(k, in Key) time.Time {
	end := in.ActivatedAt.Add(overlaps[k.Name])
	if k.Name != KEM && !k.NotAfter.IsZero() && k.NotAfter.Before(end) {
		end = k.NotAfter
	}
	return end
}

func (p *planner) suspend() error {
	k, err := p.named()
	if err != nil {
		return err
	}
	if !k.SuspendedAt.IsZero() {
		return p.keep(k)
	}
	if err := p.notOfWaitingRoot(k); err != nil {
		return err
	}
	if err := p.notAlone(k); err != nil {
		return err
	}
	p.edit(k.Key).SuspendedAt = p.now
	return nil
}

// notAlone tells whether another version could take over from k.
func (p *planner) notAlone(k Key) error {
	if k.Name == Root || !k.held() {
		return fmt.Errorf("%s is %s: %w", k.label(), p.state(k, p.now), ErrStep)
	}
	others := &ring{settings: p.settings, keys: map[string][]Key{
		k.Name: slices.DeleteFunc(slices.Clone(p.keys[k.Name]), func(o Key) bool { return o.Version == k.Version }),
	}}
	if _, err := others.current(k.Name, p.now); err != nil {
		return fmt.Errorf("%s is the only version that can be used: %w", k.label(), ErrStep)
	}
	return nil
}

func (p *planner) resume() error {
	k, err := p.named()
	if err != nil {
		return err
	}
	if k.SuspendedAt.IsZero() {
		return p.keep(k)
	}
	if k.Name != Root && !k.OnToken && k.DestroyedAt.IsZero() {
		return fmt.Errorf("%s is not on the token: %w", k.label(), ErrStep)
	}
	p.edit(k.Key).SuspendedAt = time.Time{}
	return nil
}

// destroy is for what nothing is accepted under any more.
func (p *planner) destroy() error {
	k, err := p.named()
	if err != nil {
		return err
	}
	if !k.DestroyedAt.IsZero() {
		return p.keep(k)
	}
	if k.RetiredAt.IsZero() {
		return fmt.Errorf("%s is %s: retire it first: %w", k.label(), p.state(k, p.now), ErrStep)
	}
	for _, other := range p.all() {
		if other.ID == k.ID && other.Version != k.Version && other.held() {
			return fmt.Errorf("%s has the same key pair: %w", other.label(), ErrStep)
		}
	}
	p.edit(k.Key).DestroyedAt = p.now
	return nil
}
