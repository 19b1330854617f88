package arena

import (
	"context"
	"fmt"

	"golang.org/x/sync/errgroup"
)

// Move is one M3 of a session, and what must come back.
type Move struct {
	What string
	On   *Session
	Sign Sign
	Want Verdict
}

// Play makes moves one after the other, each a case.
func (a *Arena) Play(ctx context.Context, moves ...Move) error {
	for _, m := range moves {
		reply, err := m.On.Try(ctx, m.Sign)
		if err != nil {
			return fmt.Errorf("%s: %w", m.What, err)
		}
		a.Expect(reply.Named(m.What), m.Want)
	}
	return nil
}

// Approve runs an honest authorization to its end, which must be what is wanted.
func (a *Arena) Approve(ctx context.Context, s *Session, want Verdict) (m3 []byte, r Reply, err error) {
	if m3, err = s.M3(ctx, s.Honest()); err != nil {
		return nil, r, err
	}
	if r, err = s.Send(ctx, m3); err == nil && r.Verdict != want {
		err = fmt.Errorf("honest countersignature of %s: %s; wanted %s", s.Phone.Name, r.Verdict, want)
	}
	return m3, r, err
}

// Waiting is a first approval at level 4 that waits for an approver.
type Waiting struct {
	*Session
	M3    []byte
	Reply Reply
}

// Wait runs the first approval of a door at level 4.
func (a *Arena) Wait(ctx context.Context, p *Phone) (Waiting, error) {
	return a.WaitFor(ctx, a.AskFor(p, Door, 4))
}

// WaitFor runs whatever first approval at level 4.
func (a *Arena) WaitFor(ctx context.Context, ask Ask) (w Waiting, err error) {
	if w.Session, err = ask.Must(ctx); err != nil {
		return w, err
	}
	w.M3, w.Reply, err = a.Approve(ctx, w.Session, Pending)
	return w, err
}

// workers is how many calls are under way at once.
const workers = 8

// Each runs f for 0 to n-1, some at a time.
func Each(n int, f func(i int) error) error {
	var group errgroup.Group
	group.SetLimit(workers)
	for i := range n {
		group.Go(func() error { return f(i) })
	}
	return group.Wait()
}

// Storm sends one M3 so many times at once.
func (s *Session) Storm(ctx context.Context, m3 []byte, n int) ([]Reply, error) {
	replies := make([]Reply, n)
	var group errgroup.Group
	for i := range replies {
		group.Go(func() (err error) {
			replies[i], err = s.Send(ctx, m3)
			return err
		})
	}
	return replies, group.Wait()
}
