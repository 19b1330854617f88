package authorize_test

import (
	"testing"
	"time"

	"countersign/appliance/appliancetest"
	"countersign/appliance/authorize"
	"countersign/internal/clock"
	"countersign/protocol"
)

// TestClockSetBackWithin: a challenge whose time is over stays over when the clock is set back, also
// over a restart of the daemon. After another start of the host only its clock counts.
func TestClockSetBackWithin(t *testing.T) {
	b := appliancetest.New(t)
	bob := b.EnrolPhone("bob")
	b.Clock.Advance(time.Minute) // setting it back a second leaves the keys valid
	host := clock.Boot{ID: [4]byte{1}, At: time.Hour}
	restart := func() {
		b.Restart()
		authorize.SetBoot(b.Authorize, func() clock.Boot { return host })
	}
	restart()
	for name, c := range map[string]struct {
		clock, passes time.Duration // since the challenge
		boot          byte
		restarts      bool
		want          protocol.Code
	}{
		"in time":                        {clock: 10 * time.Second, passes: 10 * time.Second},
		"late":                           {clock: time.Hour, passes: time.Hour, want: protocol.CodeExpired},
		"late, clock set back":           {clock: 10 * time.Second, passes: time.Hour, want: protocol.CodeExpired},
		"late, set back, daemon's start": {clock: 10 * time.Second, passes: time.Hour, restarts: true, want: protocol.CodeExpired},
		"clock set forward":              {clock: time.Hour, passes: 10 * time.Second, want: protocol.CodeExpired},
		"clock set back before apply":    {clock: -time.Second, passes: time.Second, want: protocol.CodeExpired},
		"another start of the host":      {clock: 10 * time.Second, passes: -50 * time.Minute, boot: 2},
	} {
		t.Run(name, func(t *testing.T) {
			before := host
			defer func() { host = before }()
			s := bob.Challenge(door, nil)
			m3 := s.M3(protocol.Approve)
			b.Clock.Advance(c.clock)
			defer b.Clock.Advance(-c.clock)
			host.At += c.passes
			host.ID[0] += c.boot
			if c.restarts {
				restart()
			}
			want := protocol.ResultApproved
			if c.want != 0 {
				want = protocol.ResultDenied
			}
			expect(t, s.Must(m3), want, c.want)
		})
	}
}
