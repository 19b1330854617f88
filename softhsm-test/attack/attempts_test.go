package attack

import (
	"context"
	"sync"

	"countersign/appliance/store"
	"countersign/protocol"
	"countersign/softhsm-test/harness"
	"countersign/softhsm-test/harness/phone"
)

// attempts plays with the number of the attempt, and with the guard.
func attempts(ctx context.Context, a *Arena) {
	alice := a.Equipped(ctx, "attempt-alice")
	plain := a.Plain(ctx, "attempt-plain")
	p := pair{a, alice, plain}
	for _, f := range []func(context.Context){
		p.outOfTurn, p.rightTooLate, p.threeWrong, p.twoHandles, p.withoutPassword, p.badSignatures, p.lockOut, p.parallel,
	} {
		f(ctx)
	}
}

func (p pair) password(ctx context.Context) *Session {
	return p.AskFor(p.alice, Door, 2).Must(ctx)
}

// at is a move with another attempt.
func at(attempt uint8, s Sign) Sign {
	s.Attempt = attempt
	return s
}

// outOfTurn: an attempt that no retry asked for is refused, password right or wrong.
func (p pair) outOfTurn(ctx context.Context) {
	s := p.password(ctx)
	serial := Denied(protocol.CodeSerial)
	p.Leaves(ctx, "attempts out of turn", Refused(6), func() {
		p.Play(
			ctx,
			Move{What: "attempt 1 without 0", On: s, Sign: at(1, s.Honest()), Want: serial},
			Move{What: "attempt 2 without 0", On: s, Sign: at(2, s.Honest()), Want: serial},
			Move{What: "attempt 3", On: s, Sign: at(3, s.Honest()), Want: serial},
			Move{What: "attempt 255", On: s, Sign: at(255, s.Honest()), Want: serial},
			Move{What: "a guess at attempt 1 without 0", On: s, Sign: s.Guess(1), Want: serial},
			Move{What: "a guess at attempt 255", On: s, Sign: s.Guess(255), Want: serial},
		)
	})
}

// rightTooLate: after a retry only the next attempt is taken.
func (p pair) rightTooLate(ctx context.Context) {
	s := p.password(ctx)
	guess := s.M3(ctx, s.Guess(0))
	serial := Denied(protocol.CodeSerial)
	p.Leaves(ctx, "the right password in the wrong place", Spent.And(Refused(6), Tried), func() {
		for range 2 { // the second is a repeat, which counts nothing
			r := s.Send(ctx, guess)
			p.Expect(r.Named("a wrong password"), Retry)
			p.Check(r.P4.TriesLeft != nil && *r.P4.TriesLeft == 2, "%v tries left, want 2", r.P4.TriesLeft)
			p.Check(r.Res.Decision == nil && r.Res.NextHandle == nil, "a retry with decision or handle")
		}
		p.wrong(ctx, 1)
		p.Play(
			ctx,
			Move{What: "the right one as attempt 0", On: s, Sign: s.Honest(), Want: serial},
			Move{What: "another guess as attempt 0", On: s, Sign: s.Guess(0), Want: serial},
			Move{What: "the right one as attempt 2", On: s, Sign: at(2, s.Honest()), Want: serial},
			Move{What: "the right one as attempt 1", On: s, Sign: at(1, s.Honest()), Want: Approved},
			Move{What: "a guess after the approval", On: s, Sign: s.Guess(2), Want: serial},
			Move{What: "the right one once more", On: s, Sign: at(2, s.Honest()), Want: serial},
		)
	})
}

// wrong holds the guard's count against what it should be.
func (p pair) wrong(ctx context.Context, want uint32) {
	state := p.ClientState(ctx, p.alice)
	p.Check(state.Password.Wrong == want, "the guard has counted %d, want %d", state.Password.Wrong, want)
}

func (p pair) unlock(ctx context.Context) { p.Do(ctx, "client/"+p.alice.Name+"/unlock") }

// threeWrong end the challenge and its serial.
func (p pair) threeWrong(ctx context.Context) {
	s := p.password(ctx)
	p.Leaves(ctx, "three wrong passwords", Spent.And(Refused(4), Tried), func() {
		p.Play(
			ctx,
			Move{What: "first", On: s, Sign: s.Guess(0), Want: Retry},
			Move{What: "second", On: s, Sign: s.Guess(1), Want: Retry},
			Move{What: "third", On: s, Sign: s.Guess(2), Want: Denied(protocol.CodePassword)},
			Move{What: "the right one as attempt 3", On: s, Sign: at(3, s.Honest()), Want: Denied(protocol.CodeSerial)},
			Move{What: "the right one as attempt 2", On: s, Sign: at(2, s.Honest()), Want: Denied(protocol.CodeSerial)},
		)
	})
	p.wrong(ctx, 3)
	p.unlock(ctx)
}

// twoHandles: two challenges to one serial give no more than three tries together.
func (p pair) twoHandles(ctx context.Context) {
	one := p.password(ctx)
	two := *one
	two.Relay(ctx)
	serial := Denied(protocol.CodeSerial)
	p.Leaves(ctx, "one serial, two challenges", Spent.And(Refused(6), Tried), func() {
		p.Play(
			ctx,
			Move{What: "guess 1", On: one, Sign: one.Guess(0), Want: Retry},
			Move{What: "attempt 0 at the other", On: &two, Sign: two.Guess(0), Want: serial},
			Move{What: "guess 2 at the other", On: &two, Sign: two.Guess(1), Want: Retry},
			Move{What: "attempt 1 at the first", On: one, Sign: at(1, one.Honest()), Want: serial},
			Move{What: "guess 3", On: one, Sign: one.Guess(2), Want: Denied(protocol.CodePassword)},
			Move{What: "right at the other", On: &two, Sign: at(2, two.Honest()), Want: serial},
			Move{What: "right at the first", On: one, Sign: at(2, one.Honest()), Want: serial},
		)
	})
	p.wrong(ctx, 3)
	p.unlock(ctx)
}

// withoutPassword: attempts are for passwords.
func (p pair) withoutPassword(ctx context.Context) {
	s := p.AskFor(p.alice, Door, 1).Must(ctx)
	none := p.AskFor(p.bob, Door, 2).Must(ctx)
	p.Leaves(ctx, "attempts without passwords", Spent.And(Spent), func() {
		p.Play(
			ctx,
			Move{What: "attempt 1 at level 1", On: s, Sign: at(1, s.Honest()), Want: Denied(protocol.CodeSerial)},
			Move{What: "attempt 255 at level 1", On: s, Sign: at(255, s.Honest()), Want: Denied(protocol.CodeSerial)},
			Move{What: "a proof where none is asked for", On: s, Sign: s.Guess(0), Want: Approved},
			Move{What: "no proof and no verifier", On: none, Sign: Sign{Verdict: protocol.Approve, Slot: protocol.SlotSigning, Key: p.bob.Key}, Want: Denied(protocol.CodePolicy)},
		)
	})
}

// badSignatures never count as tries: no attacker without the key can lock a client out.
func (p pair) badSignatures(ctx context.Context) {
	s := p.password(ctx)
	forged := s.Guess(0)
	forged.Key = NewKey()
	p.Leaves(ctx, "30 guesses with a bad signature", Nothing, func() {
		for range 30 {
			p.Play(ctx, Move{What: "forged", On: s, Sign: forged, Want: Denied(protocol.CodeSignature)})
		}
	})
}

// lockOut: five wrong ones lock, the right one does not unlock, an administrator does.
func (p pair) lockOut(ctx context.Context) {
	putBack := p.Restraints(ctx)
	for i := range store.FreeTries {
		s := p.password(ctx)
		want := Retry
		if i == store.FreeTries-1 {
			want = Denied(protocol.CodeLocked)
		}
		p.Play(ctx, Move{What: "a wrong one", On: s, Sign: s.Guess(0), Want: want})
	}
	if harness.Break() == breakGuard {
		putBack(ctx)
	}
	s := p.password(ctx)
	p.Leaves(ctx, "the right password while locked", Refused(2), func() {
		r := s.Try(ctx, s.Honest())
		p.Expect(r.Named("the right one while locked"), Denied(protocol.CodeLocked))
		p.Check(r.P4.Retry != nil && *r.P4.Retry > 0 && *r.P4.Retry <= 30, "locked for %v, want 1 to 30 s", r.P4.Retry)
		p.Play(ctx, Move{What: "a wrong one while locked", On: s, Sign: s.Guess(0), Want: Denied(protocol.CodeLocked)})
	})
	p.wrong(ctx, store.FreeTries)
	p.unlock(ctx)
	s = p.password(ctx)
	p.Play(ctx, Move{What: "the right one, unlocked", On: s, Sign: s.Honest(), Want: Approved})
}

// guessers is how many guess at once.
const guessers = 64

// parallel: those who guess at once get no more than the free tries together.
func (p pair) parallel(ctx context.Context) {
	sessions := make([]*Session, guessers)
	for i := range sessions {
		sessions[i] = p.password(ctx)
	}
	var all sync.WaitGroup
	for _, s := range sessions {
		all.Go(func() {
			var r Reply
			err := harness.Try(func() { r = s.Try(ctx, s.Guess(0)) })
			p.Check(err == nil && r.P4.Result != protocol.ResultApproved, "a guess: %s, %v", r.Verdict, err)
		})
	}
	all.Wait()
	p.wrong(ctx, store.FreeTries)
	p.unlock(ctx)
}

// counters are stale, jump, or belong to a clone.
func counters(ctx context.Context, a *Arena) {
	alice := a.Equipped(ctx, "counter-alice")
	for _, l := range []protocol.Level{1, 2} {
		(pair{a, alice, nil}).counters(ctx, l)
	}
}

func (p pair) counters(ctx context.Context, l protocol.Level) {
	left := Spent
	if l > 1 {
		left = left.And(Tried)
	}
	p.alice.Counter += 10
	newest := p.AskFor(p.alice, Door, l)
	p.use(ctx, "a counter that jumps", newest, Approved, left)
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
		ask := p.AskFor(p.alice, Door, l)
		ask.P1.Serial = phone.NewSerial(c.counter)
		p.use(ctx, c.what, ask, Denied(c.code), Refused(1))
	}
	again := newest
	p.use(ctx, "the same serial in a new challenge", again, Denied(protocol.CodeSerial), Refused(1))
	forged := p.AskFor(p.alice, Door, l)
	forged.P1.Serial = phone.NewSerial(1<<32 - 1)
	s := forged.Must(ctx)
	bad := s.Honest()
	bad.Key = NewKey()
	p.Leaves(ctx, "the highest counter under a bad signature", Nothing, func() {
		p.Play(ctx, Move{What: "the highest counter", On: s, Sign: bad, Want: Denied(protocol.CodeSignature)})
	})
}

// use runs an honest countersignature of an application that is not.
func (p pair) use(ctx context.Context, what string, ask Ask, want Verdict, left Effects) {
	s := ask.Must(ctx)
	p.Leaves(ctx, what, left, func() {
		p.Play(ctx, Move{What: what, On: s, Sign: s.Honest(), Want: want})
	})
}
