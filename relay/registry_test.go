package relay

import (
	"encoding/binary"
	"errors"
	"testing"
	"time"

	"countersign/protocol"
)

// TestBoundedChallenges: of too many challenges the relay forgets the oldest that was answered, and turns a
// phone away while all are under way. A challenge that has expired takes no place.
func TestBoundedChallenges(t *testing.T) {
	g := &registry{}
	now := time.Now()
	take := func(n int) (*challenge, bool, error) {
		return g.challengeLocked(&exchange{frame: binary.BigEndian.AppendUint32(nil, uint32(n))})
	}
	answer := func(c *challenge, expires time.Time) { c.expires = expires; close(c.ready) }
	all := make([]*challenge, maxChallenges)
	for n := range all {
		c, isNew, err := take(n)
		if err != nil || !isNew {
			t.Fatalf("challenge %d: new: %t, %v", n, isNew, err)
		}
		all[n] = c
	}
	if _, _, err := take(maxChallenges); !errors.Is(err, protocol.CodeLinkBusy) {
		t.Errorf("one more than may be under way: %v", err)
	}
	if c, isNew, err := take(5); err != nil || isNew || c != all[5] {
		t.Errorf("the same M1 again: new: %t, %v", isNew, err)
	}
	answer(all[7], now.Add(time.Hour))
	answer(all[3], now.Add(time.Hour))
	if _, isNew, err := take(maxChallenges); err != nil || !isNew || len(g.challenges) != maxChallenges {
		t.Errorf("%d challenges, new: %t, %v", len(g.challenges), isNew, err)
	}
	if c, isNew, err := take(7); err != nil || isNew || c != all[7] {
		t.Errorf("a later answer was forgotten: %v", err)
	}
	answer(all[9], now.Add(-time.Second))
	if c, isNew, err := take(3); err != nil || !isNew || c == all[3] {
		t.Errorf("the oldest answer was kept, or the expired one takes a place: new: %t, %v", isNew, err)
	}
	if c, isNew, err := take(7); err != nil || isNew || c != all[7] {
		t.Errorf("forgotten in place of the expired one: %v", err)
	}
}
