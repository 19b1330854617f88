package client

import (
	"errors"
	"testing"
	"time"

	"countersign/protocol"
	"countersign/protocol/trust"
	"countersign/softhsm-test/clienttest"
)

const day = 24 * time.Hour

// ahead sets a client's clock.
func ahead(c *Client, by time.Duration) { c.now = func() time.Time { return time.Now().Add(by) } }

// TestClockAheadOnce refuses with a reason while the clock is wrong. The client is well when the clock is right again.
func TestClockAheadOnce(t *testing.T) {
	for name, tc := range map[string]struct {
		use         trust.Use
		from, lasts time.Duration
		ahead       time.Duration
	}{
		"a decision key of next year":  {trust.UseDecision, 365 * day, 365 * day, 400 * day},
		"a kem key of next year":       {trust.UseKEM, 365 * day, 90 * day, 400 * day},
		"all keys over":                {trust.UseCA, 365 * day, day, 400 * day},
		"a kem key of the next months": {trust.UseKEM, 10 * day, 90 * day, 40 * day},
	} {
		t.Run(name, func(t *testing.T) {
			a := clienttest.New(t)
			a.Prepare(tc.use, 2, time.Now().Add(tc.from), tc.lasts)
			c, dir := enrolledClient(t, a)
			address := a.Listen("tcp")
			ahead(c, tc.ahead)
			_, err := c.Authorize(t.Context(), clienttest.Dial(t, address), door(), nobody(t))
			var dated *trust.DateError
			if !errors.Is(err, protocol.CodeStaleKey) || !errors.As(err, &dated) {
				t.Fatalf("with a wrong clock: %v, want a stale key and the dates", err)
			}
			if off := time.Until(time.Unix(int64(dated.Now), 0)) - tc.ahead; off.Abs() > day {
				t.Errorf("the error says that the clock shows %d, which is off by %v", dated.Now, off)
			}
			c = reopen(t, c, dir)
			if r, err := c.Authorize(t.Context(), clienttest.Dial(t, address), door(), says(protocol.Approve)); err != nil || !r.Approved() {
				t.Errorf("with the right clock again: %+v, %v", r, err)
			}
		})
	}
}

// TestClockOfTheAppliance: the refusal of an M2 names both clocks.
func TestClockOfTheAppliance(t *testing.T) {
	a := clienttest.New(t)
	c, _ := enrolledClient(t, a)
	ahead(c, 400*day)
	_, err := c.Authorize(t.Context(), clienttest.Dial(t, a.Listen("tcp")), door(), nobody(t))
	var dated *trust.DateError
	if !errors.As(err, &dated) || time.Since(time.Unix(int64(dated.Peer), 0)).Abs() > time.Minute {
		t.Errorf("%v: %+v, want the appliance's time", err, dated)
	}
}

// TestShownStays: a clock that falls back takes nothing away that the appliance has used.
func TestShownStays(t *testing.T) {
	a := clienttest.New(t)
	c, dir := enrolledClient(t, a)
	address := a.Listen("tcp")
	a.RotateKEM()
	for _, by := range []time.Duration{0, -400 * day} {
		ahead(c, by)
		if r, err := c.Authorize(t.Context(), clienttest.Dial(t, address), door(), says(protocol.Approve)); err != nil || !r.Approved() {
			t.Fatalf("clock off by %v: %+v, %v", by, r, err)
		}
		if s, err := c.Status(); err != nil || s.KEMEpoch != 2 {
			t.Errorf("clock off by %v: status %+v, %v", by, s, err)
		}
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	c = openClient(t, Config{Dir: dir, Now: func() time.Time { return time.Now().Add(-400 * day) }})
	if s, err := c.Status(); err != nil || s.KEMEpoch != 2 {
		t.Errorf("after a restart: status %+v, %v", s, err)
	}
}

// TestClockBehind: a client whose clock fell back before the appliance has shown anything still authorizes. It cannot
// follow to a key that begins in its future, and says why, under a new root too.
func TestClockBehind(t *testing.T) {
	for name, rotate := range map[string]func(*clienttest.Appliance){
		"": func(*clienttest.Appliance) {}, "kem": (*clienttest.Appliance).RotateKEM, "root": replace,
	} {
		t.Run(name, func(t *testing.T) {
			a := clienttest.New(t)
			c, _ := enrolledClient(t, a)
			ahead(c, -365*day)
			link := clienttest.Dial(t, a.Listen("tcp"))
			rotate(a)
			if name != "" {
				namesClock(t, c, link)
				c.now = time.Now
			}
			if r, err := c.Authorize(t.Context(), link, door(), says(protocol.Approve)); err != nil || !r.Approved() {
				t.Errorf("%+v, %v", r, err)
			}
		})
	}
}

// namesClock expects an authorization to fail because of the clock.
func namesClock(t *testing.T, c *Client, link Link) {
	t.Helper()
	_, err := c.Authorize(t.Context(), link, door(), nobody(t))
	var dated *trust.DateError
	if !errors.Is(err, protocol.CodeStaleKey) || !errors.As(err, &dated) {
		t.Errorf("%v, want a stale key and the dates", err)
	}
}

// TestNewRootAndClockAhead: a new root whose kem key is over by the clock is refused by name of the clock.
func TestNewRootAndClockAhead(t *testing.T) {
	a := clienttest.New(t)
	c, _ := enrolledClient(t, a)
	link := clienttest.Dial(t, a.Listen("tcp"))
	a.RotateRoot(trust.ReasonRoutine)
	ahead(c, 400*day)
	namesClock(t, c, link)
	c.now = time.Now
	if r, err := c.Authorize(t.Context(), link, door(), says(protocol.Approve)); err != nil || !r.Approved() {
		t.Errorf("with the right clock: %+v, %v", r, err)
	}
}

// TestOlderStateAndClockBehind: the state of an earlier release does not say what the appliance has shown. A clock that is
// behind every epoch of it does not take the client back to keys that are long over.
func TestOlderStateAndClockBehind(t *testing.T) {
	a := clienttest.New(t)
	c, dir := enrolledClient(t, a)
	address := a.Listen("tcp")
	for range 2 {
		a.RotateKEM()
		if _, err := c.Authorize(t.Context(), clienttest.Dial(t, address), door(), says(protocol.Approve)); err != nil {
			t.Fatal(err)
		}
	}
	c.state.Trust.ShownTime, c.state.Trust.ShownEpochs = 0, nil
	if err := c.save(func(*state) {}); err != nil {
		t.Fatal(err)
	}
	c = reopen(t, c, dir)
	ahead(c, -400*day)
	if s, err := c.Status(); err != nil || s.KEMEpoch != 3 {
		t.Errorf("status %+v, %v, want kem epoch 3", s, err)
	}
	if r, err := c.Authorize(t.Context(), clienttest.Dial(t, address), door(), says(protocol.Approve)); err != nil || !r.Approved() {
		t.Errorf("%+v, %v", r, err)
	}
}

// TestEnrolByAWrongClock names the clock.
func TestEnrolByAWrongClock(t *testing.T) {
	for _, by := range []time.Duration{-400 * day, 400 * day} {
		a := clienttest.New(t)
		a.Prepare(trust.UseCA, 2, time.Now().Add(30*day), 30*day)
		nearest := map[bool]string{true: "ca epoch 1", false: "ca epoch 2"}[by < 0]
		c := openClient(t, Config{Dir: t.TempDir(), Now: func() time.Time { return time.Now().Add(by) }})
		_, err := c.Enrol(t.Context(), EnrolConfig{URL: a.Serve(), Code: a.Invite()})
		var dated *trust.DateError
		if !errors.As(err, &dated) || !errors.Is(err, protocol.CodeCertificate) || dated.What != nearest {
			t.Errorf("clock off by %v: %v, want the dates of %s", by, err, nearest)
		}
	}
}
