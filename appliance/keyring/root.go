package keyring

import (
	"crypto/sha256"
	"fmt"
	"slices"
)

// rotateRoot readies the next root, PROTOCOL.md §2.2: its RootCert, which names the
// root after it, and a new epoch of every certified key, certified by it. Those epochs
// have the key pairs that are in use: it is the root that is replaced, and whatever
// was signed with them, certificates of devices among it, goes on. More epochs are prepared,
// as a ceremony does. Nothing of it is given to anybody before it is activated, since a device that follows to a new root
// forgets what the old one certified.
func (p *planner) rotateRoot() error {
	next, ok := p.find(Root, p.rootNumber()+1)
	switch {
	case !ok:
		return fmt.Errorf("no root %d was prepared: %w", p.rootNumber()+1, ErrStep)
	case next.Cert != nil:
		return p.keep(next)
	case !next.OnToken:
		return fmt.Errorf("%s: %w", next.label(), ErrRootAway)
	}
	// Where a rotation was taken back the root after it is there. Nothing in the registry
	// vouches for it, so it is taken from the token or not at all.
	switch after, made := p.find(Root, next.Version+1); {
	case !made:
		p.make(Root)
	case !after.OnToken:
		return fmt.Errorf("%s: %w", after.label(), ErrRootAway)
	}
	p.edit(next.Key).certified = true
	for _, k := range certifiedKeys {
		in, err := p.current(k.name, p.now)
		if err != nil {
			return err
		}
		e := p.make(k.name)
		e.ID, e.Public, e.Origin, e.Tokens, e.generated = in.ID, in.Public, in.Origin, in.Tokens, false
		p.certify(e, k)
		e.Root = next.Version
		p.prepare(k, e.Key)
	}
	return nil
}

// rootWaits is the root that was rotated to and not activated.
func (v *ring) rootWaits() (Key, bool) {
	next, ok := v.find(Root, v.rootNumber()+1)
	return next, ok && next.Cert != nil
}

// noRootWaits: a new root is activated with the keys that were in use when it was
// readied, so none of them changes in between.
func (p *planner) noRootWaits() error {
	_, isCertified := certifiedNamed(p.Name)
	if next, ok := p.rootWaits(); ok && isCertified {
		return fmt.Errorf("%s waits: activate or retire it first: %w", next.label(), ErrStep)
	}
	return nil
}

// activateRoot makes the root that waits the current one, with all that it certified.
// What the old root certified for later will not come.
func (p *planner) activateRoot() error {
	next, ok := p.rootWaits()
	if p.Version == p.rootNumber() {
		return p.keep(p.root())
	}
	if !ok || p.Version != 0 && p.Version != next.Version {
		return fmt.Errorf("no root waits, and none comes back: %w", ErrStep)
	}
	after, ok := p.find(Root, next.Version+1)
	if !ok {
		return fmt.Errorf("root %d was not made: %w", next.Version+1, ErrStep)
	}
	p.edit(next.Key).ActivatedAt = p.now
	for _, k := range p.all() {
		switch {
		case k.Name == Root || k.Cert == nil || !k.held():
		case k.Root == next.Version:
			if k.ActivatedAt.IsZero() { // else it has its time
				p.edit(k.Key).ActivatedAt = p.now
			}
		case !k.begun(p.now):
			p.edit(k.Key).RetiredAt = p.now
		}
	}
	p.Roots, p.hash = append(slices.Clone(p.settings.RootCerts), next.Cert), sha256.Sum256(after.Public)
	return p.allInUse()
}

// allInUse tells whether each certified key has a version in use once a root is
// activated: no other root could certify one.
func (p *planner) allInUse() error {
	then := p.ring.after(p.Plan)
	for _, k := range certifiedKeys {
		if _, err := then.current(k.name, p.now); err != nil {
			return fmt.Errorf("no version of %s would be in use: retire the root that waits and rotate to it again: %w", k.name, ErrStep)
		}
	}
	return nil
}

// notOfWaitingRoot: what a root that waits has certified goes with it or not at all.
func (p *planner) notOfWaitingRoot(k Key) error {
	if next, ok := p.rootWaits(); ok && k.Name != Root && k.Root == next.Version && k.Cert != nil {
		return fmt.Errorf("%s is certified by %s, which waits: activate or retire that first: %w", k.label(), next.label(), ErrStep)
	}
	return nil
}

// retireRoot takes a rotation of the root back that was not activated. Its epochs are
// not used again; the root itself stays the next, since phones pinned its hash.
func (p *planner) retireRoot() error {
	next, ok := p.rootWaits()
	if !ok || p.Version != 0 && p.Version != next.Version {
		return fmt.Errorf("only a root that waits can be retired: %w", ErrStep)
	}
	p.edit(next.Key).Cert = nil
	for _, k := range p.all() {
		if k.Name != Root && k.Root == next.Version && k.held() {
			p.edit(k.Key).RetiredAt = p.now
		}
	}
	return nil
}

// trust is what the settings become of a plan, nil where they stay.
func (p Plan) trust(s Settings) map[string][]byte {
	if p.Roots == nil {
		return nil
	}
	s.RootCerts, s.NextRootHash = p.Roots, p.hash
	return s.Values()
}
