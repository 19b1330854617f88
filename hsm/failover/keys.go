package failover

import (
	"context"
	"crypto/ecdh"
	"errors"
	"fmt"
	"slices"

	"countersign/hsm"
)

// transportLabel is the label of the key for which copies to a member are sealed. It is
// made with the first copy.
const transportLabel = "transport@1"

// Keys implements [hsm.Token]: the keys of all members that can be reached, each once. It
// returns [hsm.ErrUnavailable] if none can be reached.
func (s *Set) Keys(ctx context.Context) (keys []hsm.Key, err error) {
	seen, reached := map[hsm.KeyID]bool{}, false
	var failed []error
	for _, m := range s.order() {
		some, err := ask(ctx, s, m, true, func(ctx context.Context, t hsm.Token) ([]hsm.Key, error) { return t.Keys(ctx) })
		if err != nil {
			failed = append(failed, fmt.Errorf("token %s: %w", m.Name, err))
			continue
		}
		reached = true
		for _, k := range some {
			if !seen[k.ID] && k.Label != transportLabel {
				seen[k.ID] = true
				keys = append(keys, k)
			}
		}
	}
	if !reached {
		return nil, gravest(failed)
	}
	return keys, nil
}

// Foreign implements [hsm.Token]: the keys of all members that are not drained. A member that cannot
// be reached is an error.
func (s *Set) Foreign(ctx context.Context) (all []hsm.Key, err error) {
	for _, m := range s.members {
		if m.drained.Load() {
			continue
		}
		some, err := m.Token.Foreign(ctx)
		if err != nil {
			return nil, fmt.Errorf("token %s: %w", m.Name, err)
		}
		all = append(all, some...)
	}
	return all, nil
}

// Know implements [hsm.Token], on every member.
func (s *Set) Know(ctx context.Context, publics [][]byte) error {
	var failed []error
	for _, m := range s.members {
		failed = append(failed, m.Token.Know(ctx, publics))
	}
	return errors.Join(failed...)
}

// Objects implements [hsm.Token]: the objects of all members that are not drained, with
// the name of the member if there are several. A member that cannot be reached is an
// error, because its objects would go unchecked.
func (s *Set) Objects(ctx context.Context) (all []hsm.Object, err error) {
	for _, m := range s.members {
		if m.drained.Load() {
			continue
		}
		some, err := m.Objects(ctx)
		if err != nil {
			return nil, fmt.Errorf("token %s: %w", m.Name, err)
		}
		for _, o := range withoutTransport(some) {
			if len(s.members) > 1 {
				o.Token = m.Name
			}
			all = append(all, o)
		}
	}
	return all, nil
}

// withoutTransport removes a member's own transport key from its list: a key that was made
// there, was never extractable, and only derives.
func withoutTransport(objects []hsm.Object) []hsm.Object {
	const closed = hsm.AttrPrivate | hsm.AttrSensitive | hsm.AttrLocal | hsm.AttrAlwaysSensitive | hsm.AttrNeverExtractable
	i := slices.IndexFunc(objects, func(o hsm.Object) bool {
		return o.Label == transportLabel && o.True&^hsm.AttrRestricted == closed|hsm.AttrDerive
	})
	if i < 0 {
		return objects
	}
	return slices.Delete(objects, i, i+1)
}

// Generate implements [hsm.Token]. The key is on every member, or on none. If one cannot
// be reached or is drained it returns [hsm.ErrUnavailable].
func (s *Set) Generate(ctx context.Context, spec hsm.KeySpec) (hsm.Key, error) {
	s.making.Lock()
	defer s.making.Unlock()
	first, others, err := s.all(ctx)
	if err != nil {
		return hsm.Key{}, fmt.Errorf("generating key %q: %w", spec.Label, err)
	}
	asked := len(spec.Recipients)
	for _, m := range others {
		recipient, err := m.recipient(ctx)
		if err != nil {
			return hsm.Key{}, fmt.Errorf("generating key %q: token %s: %w", spec.Label, m.Name, err)
		}
		spec.Recipients = append(spec.Recipients[:len(spec.Recipients):len(spec.Recipients)], recipient)
	}
	k, err := first.Generate(ctx, spec)
	if err != nil {
		return k, err
	}
	for i, m := range others {
		copied := hsm.Restore{
			Spec: hsm.KeySpec{Label: spec.Label, Usage: spec.Usage}, Sealed: k.Sealed[asked+i],
			With: m.transport.ID, Public: k.Public, ID: k.ID,
		}
		if _, err := m.Restore(ctx, copied); err != nil {
			s.undo(ctx, k, s.members[:i+1])
			return hsm.Key{}, fmt.Errorf("copying key %q to token %s: %w", spec.Label, m.Name, err)
		}
	}
	if err := s.proveCopies(ctx, k); err != nil {
		s.undo(ctx, k, s.members)
		return hsm.Key{}, err
	}
	k.Copied = len(spec.Recipients) > 0
	if k.Sealed = k.Sealed[:asked:asked]; asked == 0 {
		k.Sealed = nil
	}
	return k, nil
}

// all returns every member, the one that makes keys first.
func (s *Set) all(ctx context.Context) (first *member, others []*member, err error) {
	for _, m := range s.members {
		if m.drained.Load() || !m.Ready() {
			return nil, nil, fmt.Errorf("token %s is away, and a new key must be on every token: %w", m.Name, hsm.ErrUnavailable)
		}
		if _, err := s.admit(ctx, m, true); err != nil {
			return nil, nil, fmt.Errorf("token %s, and a new key must be on every token: %w", m.Name, err)
		}
	}
	return s.members[0], s.members[1:], nil
}

// undo removes a key from the members that got it, because the next did not.
func (s *Set) undo(ctx context.Context, k hsm.Key, got []*member) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*s.timeout)
	defer cancel()
	for _, m := range got {
		if err := m.Destroy(ctx, k.ID); err != nil && !errors.Is(err, hsm.ErrKey) {
			s.log.Error("a key that could not be copied stays behind", "token", m.Name, "key", k.Label, "error", err)
		}
	}
}

// recipient returns the member's transport key. It makes one if there is none.
func (m *member) recipient(ctx context.Context) (*ecdh.PublicKey, error) {
	if m.transport.Public == nil {
		keys, err := m.Keys(ctx)
		if err != nil {
			return nil, err
		}
		for _, k := range keys {
			if k.Label == transportLabel && k.Usage == hsm.DeriveP256 {
				m.transport = k
			}
		}
	}
	if m.transport.Public == nil {
		var err error
		if m.transport, err = m.Token.Generate(ctx, hsm.KeySpec{Label: transportLabel, Usage: hsm.DeriveP256}); err != nil {
			return nil, err
		}
	}
	return m.transport.ECDH()
}

// Restore implements [hsm.Token], on every member.
func (s *Set) Restore(ctx context.Context, r hsm.Restore) (hsm.Key, error) {
	return s.everywhere(ctx, func(m *member) (hsm.Key, error) { return m.Token.Restore(ctx, r) })
}

// Adopt implements [hsm.Token], on every member.
func (s *Set) Adopt(ctx context.Context, spec hsm.KeySpec, private *ecdh.PrivateKey) (hsm.Key, error) {
	return s.everywhere(ctx, func(m *member) (hsm.Key, error) { return m.Token.Adopt(ctx, spec, private) })
}

// everywhere makes a key on all members, or on none.
func (s *Set) everywhere(ctx context.Context, do func(*member) (hsm.Key, error)) (k hsm.Key, err error) {
	s.making.Lock()
	defer s.making.Unlock()
	first, others, err := s.all(ctx)
	if err != nil {
		return k, err
	}
	if k, err = do(first); err != nil {
		return k, fmt.Errorf("token %s: %w", first.Name, err)
	}
	for i, m := range others {
		if _, err := do(m); err != nil {
			s.undo(ctx, k, s.members[:i+1])
			return hsm.Key{}, fmt.Errorf("token %s: %w", m.Name, err)
		}
	}
	if err := s.proveCopies(ctx, k); err != nil {
		s.undo(ctx, k, s.members)
		return hsm.Key{}, err
	}
	return k, nil
}

// Destroy implements [hsm.Token] on every member, at least one of which must have the key.
// If one cannot be reached it returns an error, and the key stays there.
func (s *Set) Destroy(ctx context.Context, key hsm.KeyID) error {
	s.making.Lock()
	defer s.making.Unlock()
	had := false
	var missing error
	for _, m := range s.members {
		switch err := m.Token.Destroy(ctx, key); {
		case err == nil:
			had = true
		case errors.Is(err, hsm.ErrKey):
			missing = err
		default:
			return fmt.Errorf("token %s: %w", m.Name, err)
		}
	}
	if !had {
		return missing
	}
	s.samples.remove(key)
	return nil
}

// StoreCertificate implements [hsm.Token], on every member.
func (s *Set) StoreCertificate(ctx context.Context, c hsm.Certificate) error {
	for _, m := range s.members {
		if err := m.Token.StoreCertificate(ctx, c); err != nil {
			return fmt.Errorf("token %s: %w", m.Name, err)
		}
	}
	return nil
}
