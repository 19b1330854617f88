package keyplan

import (
	"fmt"
	"slices"
	"time"

	"countersign/appliance/keyring"
	"countersign/appliance/store"
)

const day = 24 * time.Hour

// New plans a step at now. Errors wrap [ErrKeyName], [ErrStep], [ErrRootAway] or
// [ErrEarly].
func New(ring *keyring.Ring, s Step, now time.Time) (Plan, error) {
	p := planner{Ring: ring, Plan: Plan{Step: s, now: now.UTC().Truncate(time.Microsecond)}}
	if !slices.Contains(keyring.Names, s.Name) {
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

// planner builds one plan.
type planner struct {
	*keyring.Ring
	Plan
}

// edit adds a changed row to the plan.
func (p *planner) edit(row store.Key) *Edit {
	row.Revision++
	p.Edits = append(p.Edits, Edit{Key: row})
	return &p.Edits[len(p.Edits)-1]
}

// keep adds a row that the step does not change.
func (p *planner) keep(k keyring.Key) error {
	p.Edits = append(p.Edits, Edit{Key: k.Key, Kept: true})
	return nil
}

// make adds the next version of a key to the plan.
func (p *planner) make(name string) *Edit {
	version := uint64(1)
	if all := p.Versions(name); len(all) > 0 {
		version = all[len(all)-1].Version + 1
	}
	for _, e := range p.Edits {
		if e.Name == name && e.Version >= version {
			version = e.Version + 1
		}
	}
	row := store.Key{Name: name, Version: version, CreatedAt: p.now, Revision: 1, Origin: store.Generated}
	p.Edits = append(p.Edits, Edit{Key: row, IsNew: true, Generate: true})
	return &p.Edits[len(p.Edits)-1]
}

func (p *planner) create() error {
	if len(p.Versions(p.Name)) > 0 {
		return fmt.Errorf("key %s exists already: %w", p.Name, ErrStep)
	}
	p.make(p.Name).ActivatedAt = p.now
	return nil
}

// rotate creates the next version, or certifies one that a ceremony prepared, so that it
// can be activated. It does nothing if one waits already. It is also the way back when
// no version is in use because all are over or given up.
func (p *planner) rotate() error {
	if p.Name == keyring.Root {
		return p.rotateRoot()
	}
	in, err := p.Current(p.Name, p.now)
	if err != nil && len(p.Versions(p.Name)) == 0 {
		return err
	}
	k, isCertified := lives[p.Name]
	if p.Compromised && (!isCertified || p.Name == keyring.CA) {
		return fmt.Errorf("no certificate can rule out a version of %s: rotate and activate it, "+
			"then retire the old one as compromised: %w", p.Name, ErrStep)
	}
	// One that rules out those before it is not certified again without that.
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

// certifyNext certifies from now on the prepared epoch that follows the one in use, or a
// new one. If no administrator activates it, it comes into use when the one in use ends,
// so that an unattended appliance keeps working. If none is in use and in is zero, it
// waits to be activated. Because the root is present, the later epochs get new dates,
// and there are as many as after a ceremony.
func (p *planner) certifyNext(l life, in keyring.Key) error {
	prepared, ok := p.next(in)
	if !p.Root().OnToken {
		if ok {
			return fmt.Errorf("%s is certified from %s on, and before that: %w",
				prepared.Label(), prepared.NotBefore.Format(time.RFC3339), ErrRootAway)
		}
		return fmt.Errorf("certifying another epoch of %s: %w", p.Name, ErrRootAway)
	}
	var e *Edit
	if ok {
		e = p.edit(prepared.Key)
	} else {
		e = p.make(p.Name)
	}
	p.certify(e, l)
	if e.ActivatedAt = in.NotAfter.Add(-l.linger); !e.ActivatedAt.After(p.now) {
		e.ActivatedAt = time.Time{}
	}
	p.prepare(l, e.Key)
	return nil
}

// prepare dates the epochs after first, one period each, and adds the missing ones. They
// come into use without a further step.
func (p *planner) prepare(l life, first store.Key) {
	var later []keyring.Key
	for _, k := range p.Versions(first.Name) {
		if k.Version > first.Version && k.Held() && !k.Begun(p.now) && k.Root == first.Root {
			later = append(later, k)
		}
	}
	begin := first.NotBefore
	for i := range max(epochsAhead-1, len(later)) {
		var e *Edit
		if i < len(later) {
			e = p.edit(later[i].Key)
		} else {
			e = p.make(first.Name)
		}
		begin = begin.Add(l.period)
		e.Certify, e.Root = true, first.Root
		e.NotBefore, e.NotAfter, e.ActivatedAt = begin, begin.Add(l.period+l.linger), begin
	}
}

// certify has the current root certify a row from now on.
func (p *planner) certify(e *Edit, l life) {
	e.Certify, e.RulesOut, e.Root = true, p.Compromised, p.RootNumber()
	e.NotBefore = p.now.Truncate(time.Second).Add(-startEarly)
	e.NotAfter = e.NotBefore.Add(startEarly + l.period + l.linger)
}

// next returns the first version after in that never was in use and that the current
// root certified, whether its dates begin now or later.
func (p *planner) next(in keyring.Key) (keyring.Key, bool) {
	for _, k := range p.Versions(p.Name) {
		if k.Version > in.Version && k.Held() && !k.Begun(p.now) && k.Root == p.RootNumber() {
			return k, true
		}
	}
	return keyring.Key{}, false
}

// waiting returns the version that never was in use and could be activated now.
func (p *planner) waiting(name string) (keyring.Key, bool) {
	for _, k := range p.Versions(name) {
		if k.Held() && !k.Begun(p.now) && k.Dated(p.now) && (k.Cert == nil || k.Root == p.RootNumber()) && name != keyring.Root {
			return k, true
		}
	}
	return keyring.Key{}, false
}

// activate puts a version into use: the one that waits, or a named one. A named one may
// be an earlier one, so that a rotation can be taken back until the key is destroyed.
func (p *planner) activate() error {
	if p.Name == keyring.Root {
		return p.activateRoot()
	}
	if err := p.noRootWaits(); err != nil {
		return err
	}
	k, err := p.meant(p.waiting)
	if err != nil {
		return err
	}
	state := p.State(k, p.now)
	switch {
	case state == keyring.Active:
		return p.keep(k)
	case state != keyring.PreActivation && state != keyring.Deactivated:
		return fmt.Errorf("%s is %s: %w", k.Label(), state, ErrStep)
	case !k.OnToken:
		return fmt.Errorf("%s is not on the token: %w", k.Label(), ErrStep)
	case !k.Dated(p.now):
		return fmt.Errorf("%s is certified from %s to %s: %w",
			k.Label(), k.NotBefore.Format(time.RFC3339), k.NotAfter.Format(time.RFC3339), ErrStep)
	case k.Cert != nil && k.Root != p.RootNumber():
		return fmt.Errorf("%s was certified by root %d, which was replaced: %w", k.Label(), k.Root, ErrStep)
	}
	e := p.edit(k.Key)
	e.ActivatedAt, e.RetiredAt = p.now, time.Time{}
	if k.RulesOut {
		p.ruleOut(k)
	}
	return nil
}

// ruleOut ends every version before k. Anyone who has the KeyCert of k rejects everything
// signed by them.
func (p *planner) ruleOut(k keyring.Key) {
	for _, old := range p.Versions(k.Name) {
		if old.Version < k.Version && old.CompromisedAt.IsZero() && old.DestroyedAt.IsZero() {
			e := p.edit(old.Key)
			e.CompromisedAt = p.now
			if e.RetiredAt.IsZero() {
				e.RetiredAt = p.now
			}
		}
	}
}

// meant returns the version that the step names, or else the one that find returns.
func (p *planner) meant(find func(name string) (keyring.Key, bool)) (keyring.Key, error) {
	if p.Version == 0 {
		k, ok := find(p.Name)
		if !ok {
			return k, fmt.Errorf("no version of %s to %s: name one, NAME@VERSION: %w", p.Name, p.Verb, ErrStep)
		}
		return k, nil
	}
	k, ok := p.Find(p.Name, p.Version)
	if !ok {
		return k, fmt.Errorf("key %s: %w", keyring.Label(p.Name, p.Version), ErrKeyName)
	}
	return k, nil
}

// named returns the version that the step names; a step without one is an error.
func (p *planner) named() (keyring.Key, error) {
	return p.meant(func(string) (keyring.Key, bool) { return keyring.Key{}, false })
}

// retire ends the overlap of a version that is no longer in use.
func (p *planner) retire() error {
	if p.Name == keyring.Root {
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

// superseded returns the oldest version that was in use and is still accepted.
func (p *planner) superseded(name string) (keyring.Key, bool) {
	for _, k := range p.Versions(name) {
		if k.Begun(p.now) && k.Accepted(p.now) && p.State(k, p.now) != keyring.Active {
			return k, true
		}
	}
	return keyring.Key{}, false
}

// replaced returns an error unless another version is in use and the overlap of k is
// over.
func (p *planner) replaced(k keyring.Key) error {
	in, err := p.Current(k.Name, p.now)
	switch {
	case !k.DestroyedAt.IsZero():
		return fmt.Errorf("%s is destroyed: %w", k.Label(), ErrStep)
	case err != nil:
		return err
	case in.Version == k.Version:
		return fmt.Errorf("%s is in use: %w", k.Label(), ErrStep)
	}
	if end := overlapEnd(k, in); !p.Early && !p.Compromised && k.Begun(p.now) && p.now.Before(end) {
		return fmt.Errorf("what was made with %s is accepted until %s, and --early does not wait for that: %w", k.Label(), end.Format(time.RFC3339), ErrEarly)
	}
	return nil
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

// notAlone returns an error if k is the only usable version.
func (p *planner) notAlone(k keyring.Key) error {
	if k.Name == keyring.Root || !k.Held() {
		return fmt.Errorf("%s is %s: %w", k.Label(), p.State(k, p.now), ErrStep)
	}
	k.SuspendedAt = p.now
	if _, err := p.With(p.Ring.Settings, k).Current(k.Name, p.now); err != nil {
		return fmt.Errorf("%s is the only version that can be used: %w", k.Label(), ErrStep)
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
	if k.Name != keyring.Root && !k.OnToken && k.DestroyedAt.IsZero() {
		return fmt.Errorf("%s is not on the token: %w", k.Label(), ErrStep)
	}
	p.edit(k.Key).SuspendedAt = time.Time{}
	return nil
}

// destroy gives up a retired version.
func (p *planner) destroy() error {
	k, err := p.named()
	if err != nil {
		return err
	}
	if !k.DestroyedAt.IsZero() {
		return p.keep(k)
	}
	if k.RetiredAt.IsZero() {
		return fmt.Errorf("%s is %s: retire it first: %w", k.Label(), p.State(k, p.now), ErrStep)
	}
	for _, other := range p.Keys() {
		if other.ID == k.ID && other.Version != k.Version && other.Held() {
			return fmt.Errorf("%s has the same key pair: %w", other.Label(), ErrStep)
		}
	}
	p.edit(k.Key).DestroyedAt = p.now
	return nil
}

// life is the length of one epoch of a certified key (SP 800-57 part 1 §5.3.6:
// originator usage periods).
type life struct {
	period time.Duration
	linger time.Duration // how long the certificate outlives the period
}

// The kem certificate ends with its epoch, so that phones move to the next. The others
// linger, so that what they signed last still verifies.
var lives = map[string]life{
	keyring.KEM:      {90 * day, 0},
	keyring.Decision: {365 * day, 30 * day},
	keyring.CA:       {365 * day, 90 * day},
	keyring.Enrol:    {365 * day, 30 * day},
	keyring.ClientCA: {365 * day, keyring.ClientCertLife},
}

// certified lists the keys with KeyCerts in the order in which they are generated.
var certified = []string{keyring.KEM, keyring.Decision, keyring.CA, keyring.Enrol, keyring.ClientCA}

// epochsAhead is how many epochs a ceremony certifies, so that the root token can lie
// in a safe for that time.
const epochsAhead = 4

// startEarly is how long before a step an epoch begins, for phones and devices whose
// clocks are slow.
const startEarly = day

// overlaps are how long a version is accepted after another has come into use, within
// the dates of its certificate.
var overlaps = map[string]time.Duration{
	keyring.KEM: 30 * day, keyring.Decision: 30 * day, keyring.CA: 90 * day, keyring.ClientCA: keyring.ClientCertLife,
	keyring.Enrol: 30 * day,
	keyring.MAC:   day, // handles in flight, PROTOCOL.md §3.2; records are sealed again
}

func overlapEnd(k, in keyring.Key) time.Time {
	end := in.ActivatedAt.Add(overlaps[k.Name])
	if k.Name != keyring.KEM && !k.NotAfter.IsZero() && k.NotAfter.Before(end) {
		end = k.NotAfter
	}
	return end
}

// Ceremony plans all keys of a new appliance at now: two roots, since phones pin the
// hash of the second before it has signed anything (pre-rotation, PROTOCOL.md §2.2), the
// epochs that the first root certifies, wrap and mac.
func Ceremony(now time.Time) Plan {
	p := planner{Ring: &keyring.Ring{}, Plan: Plan{now: now.UTC().Truncate(time.Second)}}
	root := p.make(keyring.Root)
	root.ActivatedAt, root.Certify = p.now, true
	p.make(keyring.Root)
	for _, name := range certified {
		l := lives[name]
		first := p.make(name)
		first.Certify, first.Root = true, 1
		first.NotBefore = p.now.Add(-startEarly)
		first.NotAfter, first.ActivatedAt = first.NotBefore.Add(l.period+l.linger), first.NotBefore
		p.prepare(l, first.Key)
	}
	for _, name := range []string{keyring.Wrap, keyring.MAC} {
		p.make(name).ActivatedAt = p.now
	}
	return p.Plan
}
