package requests

import (
	"context"
	"fmt"
	"reflect"
	"time"

	"countersign/appliance/change"
	"countersign/appliance/store"
)

// grantPeriod is how long a granted request can be used.
const grantPeriod = time.Hour

// Use makes a change whose effect only grants (see [Effect]). It calls use with the id of a granted
// request for this draft, and then spends the request, durably. If use returns an error, the request
// can be used again. If no request is granted, Use makes one; if that waits for administrators, the
// error is a [*Waiting]. If the policy requires no vote, Use calls use with a zero id.
func (s *Service) Use(ctx context.Context, d change.Draft, use func(context.Context, change.ID) error) error {
	if s.rules.Active().Unattended(d.Kind) {
		return use(ctx, change.ID{})
	}
	c, err := s.reserve(ctx, d)
	if err != nil {
		return err
	}
	id := c.Hash.ID()
	defer func() {
		s.changing.Lock()
		defer s.changing.Unlock()
		delete(s.using, id)
	}()
	if err := use(ctx, id); err != nil {
		return err
	}
	// The change was made: its end is stored even if the caller has disconnected.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), executeTimeout)
	defer cancel()
	s.changing.Lock()
	defer s.changing.Unlock()
	if err := s.endTakenLocked(ctx, c, store.ChangeExecuted); err != nil {
		return fmt.Errorf("change %s was made, but its end was not stored: %w", id, err)
	}
	return nil
}

// reserve finds a granted request for a draft, or makes one. No other caller gets the request meanwhile.
func (s *Service) reserve(ctx context.Context, d change.Draft) (Change, error) {
	s.changing.Lock()
	defer s.changing.Unlock()
	c, found, err := s.grantedLocked(ctx, d)
	if err == nil && !found {
		c, err = s.askLocked(ctx, d)
	}
	switch {
	case err != nil:
		return c, err
	case !c.Granted:
		return c, &Waiting{c}
	}
	s.using[c.Hash.ID()] = true
	return c, nil
}

// grantedLocked returns a granted request for exactly this draft that no caller uses. It judges the
// signatures again, and ends requests that no longer hold.
func (s *Service) grantedLocked(ctx context.Context, d change.Draft) (Change, bool, error) {
	asked, err := s.request(ctx, d)
	if err != nil {
		return Change{}, false, err
	}
	all, err := s.store.ChangesInForce(ctx)
	if err != nil {
		return Change{}, false, err
	}
	for _, row := range all {
		c, err := s.view(ctx, row)
		if err != nil || !c.Granted || s.using[row.ID] ||
			c.Kind != asked.Kind || !reflect.DeepEqual(c.Parameters, asked.Parameters) {
			continue
		}
		to := store.ChangeFailed
		switch {
		case s.grantOver(c):
			to = store.ChangeExpired
		case c.Base != asked.Base:
			c.Reason = "stale: the state that it is based on has changed"
		case !c.Ruling.Approved():
			c.Reason = "the quorum no longer holds"
		default:
			return c, true, nil
		}
		if err := s.endTakenLocked(ctx, c, to); err != nil {
			return c, false, err
		}
	}
	return Change{}, false, nil
}

// grantOver reports whether the time to use a granted request is over. It begins with the last
// signature.
func (s *Service) grantOver(c Change) bool { return !s.now().Before(c.lastSigned.Add(grantPeriod)) }
