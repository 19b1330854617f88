package keyplan

import (
	"crypto/sha256"
	"fmt"
	"slices"

	"countersign/appliance/keyring"
)

// rotateRoot readies the next root, PROTOCOL.md §2.2: its RootCert, which names the root
// after it, and a new epoch of every certified key, which it certifies. Those epochs have
// the key pairs in use: only the root is replaced, and everything signed with them, such
// as certificates of devices, stays valid. Later epochs are prepared as in a ceremony.
// None of it is published before the root is activated, because a device that follows to
// a new root forgets what the old one certified.
func (p *planner) rotateRoot() error {
	next, ok := p.Find(keyring.Root, p.RootNumber()+1)
	switch {
	case !ok:
		return fmt.Errorf("no root %d was prepared: %w", p.RootNumber()+1, ErrStep)
	case next.Cert != nil && p.Compromised && !p.waitingRulesOut(next.Version):
		return fmt.Errorf("%s waits and does not give up the root before it: retire it, then rotate again: %w", next.Label(), ErrStep)
	case next.Cert != nil:
		return p.keep(next)
	case !next.OnToken:
		return fmt.Errorf("%s: %w", next.Label(), ErrRootAway)
	}
	// If a rotation was taken back, the root after it exists. Nothing in the registry
	// vouches for it, so it must be on the token.
	switch after, made := p.Find(keyring.Root, next.Version+1); {
	case !made:
		p.make(keyring.Root)
	case !after.OnToken:
		return fmt.Errorf("%s: %w", after.Label(), ErrRootAway)
	}
	root := p.edit(next.Key)
	root.Certify, root.RulesOut = true, p.Compromised
	for _, name := range certified {
		in, err := p.Current(name, p.now)
		if err != nil {
			return err
		}
		e := p.make(name)
		e.ID, e.Public, e.Origin, e.Tokens, e.Generate = in.ID, in.Public, in.Origin, in.Tokens, false
		p.certify(e, lives[name])
		e.Root = next.Version
		p.prepare(lives[name], e.Key)
	}
	return nil
}

// waitingRulesOut reports whether a root that waits was rotated to because the one before it was compromised.
func (p *planner) waitingRulesOut(version uint64) bool {
	return slices.ContainsFunc(p.Keys(), func(k keyring.Key) bool { return k.Root == version && k.RulesOut })
}

// rootWaits returns the root that was rotated to and not activated.
func (p *planner) rootWaits() (keyring.Key, bool) {
	next, ok := p.Find(keyring.Root, p.RootNumber()+1)
	return next, ok && next.Cert != nil
}

// noRootWaits returns an error for a certified key while a root waits: the root will be
// activated with the keys that were in use when it was readied.
func (p *planner) noRootWaits() error {
	if next, ok := p.rootWaits(); ok && keyring.IsCertified(p.Name) {
		return fmt.Errorf("%s waits: activate or retire it first: %w", next.Label(), ErrStep)
	}
	return nil
}

// activateRoot makes the waiting root the current one, with everything that it
// certified. Epochs that the old root certified for later are retired.
func (p *planner) activateRoot() error {
	next, ok := p.rootWaits()
	if p.Version == p.RootNumber() {
		return p.keep(p.Root())
	}
	if !ok || p.Version != 0 && p.Version != next.Version {
		return fmt.Errorf("no root waits, and none comes back: %w", ErrStep)
	}
	after, ok := p.Find(keyring.Root, next.Version+1)
	if !ok {
		return fmt.Errorf("root %d was not made: %w", next.Version+1, ErrStep)
	}
	p.edit(next.Key).ActivatedAt = p.now
	for _, k := range p.Keys() {
		switch {
		case k.Name == keyring.Root || k.Cert == nil || !k.Held():
		case k.Root == next.Version:
			if k.ActivatedAt.IsZero() { // else it comes into use at its date
				p.edit(k.Key).ActivatedAt = p.now
			}
		case !k.Begun(p.now):
			p.edit(k.Key).RetiredAt = p.now
		}
	}
	p.Roots = append(slices.Clone(p.Ring.Settings.RootCerts), next.Cert)
	p.NextRootHash = sha256.Sum256(after.Public)
	return p.allInUse()
}

// allInUse returns an error unless each certified key has a version in use once the root
// is activated: no other root could certify one.
func (p *planner) allInUse() error {
	then := p.after(p.Ring)
	for _, name := range certified {
		if _, err := then.Current(name, p.now); err != nil {
			return fmt.Errorf("no version of %s would be in use: retire the waiting root and rotate to it again: %w", name, ErrStep)
		}
	}
	return nil
}

// notOfWaitingRoot returns an error for a key that a waiting root has certified: it is
// given up together with that root.
func (p *planner) notOfWaitingRoot(k keyring.Key) error {
	if next, ok := p.rootWaits(); ok && k.Name != keyring.Root && k.Root == next.Version && k.Cert != nil {
		return fmt.Errorf("%s is certified by %s, which waits: activate or retire that first: %w",
			k.Label(), next.Label(), ErrStep)
	}
	return nil
}

// retireRoot takes back a rotation of the root that was not activated. Its epochs are not
// used again. The root itself stays the next one, because phones pinned its hash.
func (p *planner) retireRoot() error {
	next, ok := p.rootWaits()
	if !ok || p.Version != 0 && p.Version != next.Version {
		return fmt.Errorf("only a root that waits can be retired: %w", ErrStep)
	}
	p.edit(next.Key).Cert = nil
	for _, k := range p.Keys() {
		if k.Name != keyring.Root && k.Root == next.Version && k.Held() {
			p.edit(k.Key).RetiredAt = p.now
		}
	}
	return nil
}
