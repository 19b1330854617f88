package attack

import (
	"context"

	"countersign/softhsm-test/harness"
)

// Move is one M3 of a session, and what must come back.
type Move struct {
	What string
	On   *Session
	Sign Sign
	Want Verdict
}

// Play makes moves one after the other, each a case.
func (a *Arena) Play(ctx context.Context, moves ...Move) {
	for _, m := range moves {
		reply := m.On.Try(ctx, m.Sign)
		a.Expect(reply.Named(m.What), m.Want)
	}
}

// Approve runs an honest authorization. A verdict other than want ends the test.
func (a *Arena) Approve(ctx context.Context, s *Session, want Verdict) (m3 []byte, r Reply) {
	m3 = s.M3(ctx, s.Honest())
	r = s.Send(ctx, m3)
	if r.Verdict != want {
		harness.Fail("honest countersignature of %s: %s; wanted %s", s.Phone.Name, r.Verdict, want)
		return nil, r
	}
	return m3, r
}

// Waiting is a first approval at level 4 that waits for an approver.
type Waiting struct {
	*Session
	M3    []byte
	Reply Reply
}

// Wait runs the first approval of a door at level 4.
func (a *Arena) Wait(ctx context.Context, p *Phone) Waiting {
	return a.WaitFor(ctx, a.AskFor(p, Door, 4))
}

// WaitFor runs any first approval at level 4.
func (a *Arena) WaitFor(ctx context.Context, ask Ask) (w Waiting) {
	w.Session = ask.Must(ctx)
	w.M3, w.Reply = a.Approve(ctx, w.Session, Pending)
	return w
}

// workers is how many calls are under way at once.
const workers = 8

// Each runs f for 0 to n-1, some at a time.
func Each(n int, f func(i int)) {
	harness.Each(n, workers, f)
}

// Storm sends one M3 n times at once.
func (s *Session) Storm(ctx context.Context, m3 []byte, n int) []Reply {
	replies := make([]Reply, n)
	harness.Each(n, n, func(i int) { replies[i] = s.Send(ctx, m3) })
	return replies
}
