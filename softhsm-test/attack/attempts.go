package main

import (
	"context"
	"sync"

	"countersign/appliance/store"
	"countersign/protocol"
	"countersign/softhsm-test/attack/arena"
)

// attempts plays with the number of the attempt, and with the guard.
func attempts(ctx context.Context, a *arena.Arena) error {
	alice, err := a.Equipped(ctx, "attempt-alice")
	if err != nil {
		return err
	}
	plain, err := a.Plain(ctx, "attempt-plain")
	if err != nil {
		return err
	}
	p := pair{a, alice, plain}
	for _, f := range []func(context.Context) error{
		p.outOfTurn, p.rightTooLate, p.threeWrong, p.twoHandles, p.withoutPassword, p.badSignatures, p.lockOut, p.parallel,
	} {
		if err := f(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (p pair) password(ctx context.Context) (*arena.Session, error) {
	return p.AskFor(p.alice, arena.Door, 2).Must(ctx)
}

// at is a move with another attempt.
func at(attempt uint8, s arena.Sign) arena.Sign {
	s.Attempt = attempt
	return s
}

// outOfTurn: an attempt that no retry asked for is refused, password right or wrong.
func (p pair) outOfTurn(ctx context.Context) error {
	s, err := p.password(ctx)
	if err != nil {
		return err
	}
	serial := arena.Denied(protocol.CodeSerial)
	return p.Leaves(ctx, "attempts out of turn", arena.Refused(6), func() error {
		return p.Play(
			ctx,
			arena.Move{What: "attempt 1 without 0", On: s, Sign: at(1, s.Honest()), Want: serial},
			arena.Move{What: "attempt 2 without 0", On: s, Sign: at(2, s.Honest()), Want: serial},
			arena.Move{What: "attempt 3", On: s, Sign: at(3, s.Honest()), Want: serial},
			arena.Move{What: "attempt 255", On: s, Sign: at(255, s.Honest()), Want: serial},
			arena.Move{What: "a guess at attempt 1 without 0", On: s, Sign: s.Guess(1), Want: serial},
			arena.Move{What: "a guess at attempt 255", On: s, Sign: s.Guess(255), Want: serial},
		)
	})
}

// rightTooLate: after a retry only the next attempt is taken.
func (p pair) rightTooLate(ctx context.Context) error {
	s, err := p.password(ctx)
	if err != nil {
		return err
	}
	guess, err := s.M3(ctx, s.Guess(0))
	if err != nil {
		return err
	}
	serial := arena.Denied(protocol.CodeSerial)
	return p.Leaves(ctx, "the right password in the wrong place", arena.Spent.And(arena.Refused(6), arena.Tried), func() error {
		for range 2 { // the second is a repeat, which counts nothing
			r, err := s.Send(ctx, guess)
			if err != nil {
				return err
			}
			p.Expect(r.Named("a wrong password"), arena.Retry)
			p.Check(r.P4.TriesLeft != nil && *r.P4.TriesLeft == 2, "%v tries left, want 2", r.P4.TriesLeft)
			p.Check(r.Res.Decision == nil && r.Res.NextHandle == nil, "a retry with decision or handle")
		}
		if err := p.wrong(ctx, 1); err != nil {
			return err
		}
		return p.Play(
			ctx,
			arena.Move{What: "the right one as attempt 0", On: s, Sign: s.Honest(), Want: serial},
			arena.Move{What: "another guess as attempt 0", On: s, Sign: s.Guess(0), Want: serial},
			arena.Move{What: "the right one as attempt 2", On: s, Sign: at(2, s.Honest()), Want: serial},
			arena.Move{What: "the right one as attempt 1", On: s, Sign: at(1, s.Honest()), Want: arena.Approved},
			arena.Move{What: "a guess after the approval", On: s, Sign: s.Guess(2), Want: serial},
			arena.Move{What: "the right one once more", On: s, Sign: at(2, s.Honest()), Want: serial},
		)
	})
}

// wrong holds the guard's count against what it should be.
func (p pair) wrong(ctx context.Context, want uint32) error {
	state, err := p.ClientState(ctx, p.alice)
	p.Check(state.Password.Wrong == want, "the guard has counted %d, want %d", state.Password.Wrong, want)
	return err
}

func (p pair) unlock(ctx context.Context) error { return p.Do(ctx, "client/"+p.alice.Name+"/unlock") }

// threeWrong end the challenge and its serial.
func (p pair) threeWrong(ctx context.Context) error {
	s, err := p.password(ctx)
	if err != nil {
		return err
	}
	err = p.Leaves(ctx, "three wrong passwords", arena.Spent.And(arena.Refused(4), arena.Tried), func() error {
		return p.Play(
			ctx,
			arena.Move{What: "first", On: s, Sign: s.Guess(0), Want: arena.Retry},
			arena.Move{What: "second", On: s, Sign: s.Guess(1), Want: arena.Retry},
			arena.Move{What: "third", On: s, Sign: s.Guess(2), Want: arena.Denied(protocol.CodePassword)},
			arena.Move{What: "the right one as attempt 3", On: s, Sign: at(3, s.Honest()), Want: arena.Denied(protocol.CodeSerial)},
			arena.Move{What: "the right one as attempt 2", On: s, Sign: at(2, s.Honest()), Want: arena.Denied(protocol.CodeSerial)},
		)
	})
	if err != nil {
		return err
	}
	if err := p.wrong(ctx, 3); err != nil {
		return err
	}
	return p.unlock(ctx)
}

// twoHandles: two challenges to one serial give no more than three tries together.
func (p pair) twoHandles(ctx context.Context) error {
	one, err := p.password(ctx)
	if err != nil {
		return err
	}
	two := *one
	if err := two.Relay(ctx); err != nil {
		return err
	}
	serial := arena.Denied(protocol.CodeSerial)
	err = p.Leaves(ctx, "one serial, two challenges", arena.Spent.And(arena.Refused(6), arena.Tried), func() error {
		return p.Play(
			ctx,
			arena.Move{What: "guess 1", On: one, Sign: one.Guess(0), Want: arena.Retry},
			arena.Move{What: "attempt 0 at the other", On: &two, Sign: two.Guess(0), Want: serial},
			arena.Move{What: "guess 2 at the other", On: &two, Sign: two.Guess(1), Want: arena.Retry},
			arena.Move{What: "attempt 1 at the first", On: one, Sign: at(1, one.Honest()), Want: serial},
			arena.Move{What: "guess 3", On: one, Sign: one.Guess(2), Want: arena.Denied(protocol.CodePassword)},
			arena.Move{What: "right at the other", On: &two, Sign: at(2, two.Honest()), Want: serial},
			arena.Move{What: "right at the first", On: one, Sign: at(2, one.Honest()), Want: serial},
		)
	})
	if err != nil {
		return err
	}
	if err := p.wrong(ctx, 3); err != nil {
		return err
	}
	return p.unlock(ctx)
}

// withoutPassword: attempts are for passwords.
func (p pair) withoutPassword(ctx context.Context) error {
	s, err := p.AskFor(p.alice, arena.Door, 1).Must(ctx)
	if err != nil {
		return err
	}
	none, err := p.AskFor(p.bob, arena.Door, 2).Must(ctx) // enrolled without one
	if err != nil {
		return err
	}
	return p.Leaves(ctx, "attempts without passwords", arena.Spent.And(arena.Spent), func() error {
		return p.Play(
			ctx,
			arena.Move{What: "attempt 1 at level 1", On: s, Sign: at(1, s.Honest()), Want: arena.Denied(protocol.CodeSerial)},
			arena.Move{What: "attempt 255 at level 1", On: s, Sign: at(255, s.Honest()), Want: arena.Denied(protocol.CodeSerial)},
			arena.Move{What: "a proof where none is asked for", On: s, Sign: s.Guess(0), Want: arena.Approved},
			arena.Move{What: "no proof and no verifier", On: none, Sign: arena.Sign{Verdict: protocol.Approve, Slot: protocol.SlotSigning, Key: p.bob.Key}, Want: arena.Denied(protocol.CodePolicy)},
		)
	})
}

// badSignatures never count as tries: nobody is locked out from afar.
func (p pair) badSignatures(ctx context.Context) error {
	s, err := p.password(ctx)
	if err != nil {
		return err
	}
	forged := s.Guess(0)
	forged.Key = arena.NewKey()
	return p.Leaves(ctx, "30 guesses with a bad signature", arena.Nothing, func() error {
		for range 30 {
			if err := p.Play(ctx, arena.Move{What: "forged", On: s, Sign: forged, Want: arena.Denied(protocol.CodeSignature)}); err != nil {
				return err
			}
		}
		return nil
	})
}

// lockOut: five wrong ones lock, the right one does not unlock, an administrator does.
func (p pair) lockOut(ctx context.Context) error {
	putBack, err := p.Restraints(ctx)
	if err != nil {
		return err
	}
	for i := range store.FreeTries {
		s, err := p.password(ctx)
		if err != nil {
			return err
		}
		want := arena.Retry
		if i == store.FreeTries-1 {
			want = arena.Denied(protocol.CodeLocked)
		}
		if err := p.Play(ctx, arena.Move{What: "a wrong one", On: s, Sign: s.Guess(0), Want: want}); err != nil {
			return err
		}
	}
	if p.Break == "guard" {
		if err := putBack(ctx); err != nil {
			return err
		}
	}
	s, err := p.password(ctx)
	if err != nil {
		return err
	}
	err = p.Leaves(ctx, "the right password while locked", arena.Refused(2), func() error {
		r, err := s.Try(ctx, s.Honest())
		if err != nil {
			return err
		}
		p.Expect(r.Named("the right one while locked"), arena.Denied(protocol.CodeLocked))
		p.Check(r.P4.Retry != nil && *r.P4.Retry > 0 && *r.P4.Retry <= 30, "locked for %v, want 1 to 30 s", r.P4.Retry)
		return p.Play(ctx, arena.Move{What: "a wrong one while locked", On: s, Sign: s.Guess(0), Want: arena.Denied(protocol.CodeLocked)})
	})
	if err != nil {
		return err
	}
	if err := p.wrong(ctx, store.FreeTries); err != nil {
		return err
	}
	if err := p.unlock(ctx); err != nil {
		return err
	}
	if s, err = p.password(ctx); err != nil {
		return err
	}
	return p.Play(ctx, arena.Move{What: "the right one, unlocked", On: s, Sign: s.Honest(), Want: arena.Approved})
}

// guessers is how many guess at once.
const guessers = 64

// parallel: those who guess at once get no more than the free tries together.
func (p pair) parallel(ctx context.Context) error {
	sessions := make([]*arena.Session, guessers)
	for i := range sessions {
		var err error
		if sessions[i], err = p.password(ctx); err != nil {
			return err
		}
	}
	var all sync.WaitGroup
	for _, s := range sessions {
		all.Go(func() {
			r, err := s.Try(ctx, s.Guess(0))
			p.Check(err == nil && r.P4.Result != protocol.ResultApproved, "a guess: %s, %v", r.Verdict, err)
		})
	}
	all.Wait()
	if err := p.wrong(ctx, store.FreeTries); err != nil {
		return err
	}
	return p.unlock(ctx)
}

// counters are stale, jump, or are those of a clone.
func counters(ctx context.Context, a *arena.Arena) error {
	alice, err := a.Equipped(ctx, "counter-alice")
	if err != nil {
		return err
	}
	for _, l := range []protocol.Level{1, 2} {
		if err := (pair{a, alice, nil}).counters(ctx, l); err != nil {
			return err
		}
	}
	return nil
}

func (p pair) counters(ctx context.Context, l protocol.Level) error {
	left := arena.Spent
	if l > 1 {
		left = left.And(arena.Tried)
	}
	p.alice.Counter += 10
	newest := p.AskFor(p.alice, arena.Door, l)
	if err := p.use(ctx, "a counter that jumps", newest, arena.Approved, left); err != nil {
		return err
	}
	counter := newest.P1.Serial.Counter()
	for _, c := range []struct {
		what    string
		counter uint32
		code    protocol.Code
	}{
		{"the same counter, another random part", counter, protocol.CodeClone},
		{"the counter before", counter - 1, protocol.CodeSerial},
		{"counter 0", 0, protocol.CodeSerial},
	} {
		ask := p.AskFor(p.alice, arena.Door, l)
		ask.P1.Serial = arena.NewSerial(c.counter)
		if err := p.use(ctx, c.what, ask, arena.Denied(c.code), arena.Refused(1)); err != nil {
			return err
		}
	}
	again := newest
	if err := p.use(ctx, "the same serial in a new challenge", again, arena.Denied(protocol.CodeSerial), arena.Refused(1)); err != nil {
		return err
	}
	forged := p.AskFor(p.alice, arena.Door, l)
	forged.P1.Serial = arena.NewSerial(1<<32 - 1)
	s, err := forged.Must(ctx)
	if err != nil {
		return err
	}
	bad := s.Honest()
	bad.Key = arena.NewKey()
	return p.Leaves(ctx, "the highest counter under a bad signature", arena.Nothing, func() error {
		return p.Play(ctx, arena.Move{What: "the highest counter", On: s, Sign: bad, Want: arena.Denied(protocol.CodeSignature)})
	})
}

// use runs an honest countersignature of an application that is not.
func (p pair) use(ctx context.Context, what string, ask arena.Ask, want arena.Verdict, left arena.Effects) error {
	s, err := ask.Must(ctx)
	if err != nil {
		return err
	}
	return p.Leaves(ctx, what, left, func() error {
		return p.Play(ctx, arena.Move{What: what, On: s, Sign: s.Honest(), Want: want})
	})
}
