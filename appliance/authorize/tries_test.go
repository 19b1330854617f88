package authorize_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"countersign/appliance/appliancetest"
	"countersign/appliance/keyuse"
	"countersign/appliance/store"
	"countersign/hsm"
	"countersign/protocol"
)

// sick is a token whose checks of passwords fail.
type sick struct {
	hsm.Token
	check func(ctx context.Context, real func() ([]byte, error)) ([]byte, error) // nil: well
}

func (s *sick) MACWrapped(ctx context.Context, wrap hsm.KeyID, wrapped, data []byte) ([]byte, error) {
	real := func() ([]byte, error) { return s.Token.MACWrapped(ctx, wrap, wrapped, data) }
	if s.check == nil {
		return real()
	}
	return s.check(ctx, real)
}

func withSickToken(t *testing.T) (*appliancetest.Bench, *appliancetest.Phone, *sick) {
	t.Helper()
	b := appliancetest.New(t)
	alice := b.EnrolFull("alice")
	token := &sick{Token: b.Token}
	var err error
	if b.Keyring, err = keyuse.Load(t.Context(), token, b.Store, keyuse.Pins{Root: b.Keyring.Root()}); err != nil {
		t.Fatal(err)
	}
	b.Restart()
	return b, alice, token
}

// TestErrorIsNoWrongPassword: whatever error the token gives in place of an answer, the phone gets
// 503, nothing is counted, and the same M3 is good afterwards.
func TestErrorIsNoWrongPassword(t *testing.T) {
	b, alice, token := withSickToken(t)
	for name, failed := range map[string]error{
		"unavailable": hsm.ErrUnavailable, "garbled": hsm.ErrGarbled, "busy": hsm.ErrBusy, "PIN": hsm.ErrPIN,
		"does not unwrap": hsm.ErrInput, "no key": hsm.ErrKey, "lacking": hsm.ErrUnsupported, "unknown": errors.New("odd"),
		"internal timeout": context.DeadlineExceeded,
	} {
		t.Run(name, func(t *testing.T) {
			token.check = func(context.Context, func() ([]byte, error)) ([]byte, error) {
				return nil, fmt.Errorf("sick: %w", failed)
			}
			s := alice.Challenge(payment, eur(5000))
			m3 := s.With(0, nil)
			for range store.HardLock + 1 {
				if a, err := s.Send(m3); !errors.Is(err, hsm.ErrUnavailable) {
					t.Fatalf("answered %+v, %v, want ErrUnavailable", a.P4, err)
				}
			}
			if g := b.GuardOf(alice); g.Wrong != 0 || len(g.Recent) != 0 || !g.Until.IsZero() {
				t.Errorf("counted: %+v", g)
			}
			token.check = nil
			expect(t, s.Must(m3), protocol.ResultApproved, 0)
		})
	}
}

// TestContradictionIsNoWrongPassword: a token that gives a new answer each time has not checked.
func TestContradictionIsNoWrongPassword(t *testing.T) {
	b, alice, token := withSickToken(t)
	n := byte(0)
	token.check = func(context.Context, func() ([]byte, error)) ([]byte, error) {
		n++
		answer := make([]byte, 32)
		answer[31] = n
		return answer, nil
	}
	s := alice.Challenge(payment, eur(5000))
	if a, err := s.Send(s.With(0, nil)); !errors.Is(err, hsm.ErrUnavailable) {
		t.Errorf("answered %+v, %v, want ErrUnavailable", a.P4, err)
	}
	if g := b.GuardOf(alice); g.Wrong != 0 {
		t.Errorf("counted: %+v", g)
	}
}

// TestNoFreeGuess: an attempt stays counted if the caller could tell that the proof did not fit:
// an outage after the first answer, a caller that goes away, a repeat of an attempt of before.
func TestNoFreeGuess(t *testing.T) {
	b, alice, token := withSickToken(t)
	guess := func() (*appliancetest.Session, []byte) {
		s := alice.Challenge(payment, eur(5000))
		return s, s.With(0, wrongProof)
	}
	asked := 0
	token.check = func(_ context.Context, real func() ([]byte, error)) ([]byte, error) {
		if asked++; asked > 1 {
			return nil, hsm.ErrUnavailable
		}
		return real()
	}
	s, m3 := guess()
	if _, err := s.Send(m3); !errors.Is(err, hsm.ErrUnavailable) {
		t.Fatalf("an outage after the first answer: %v", err)
	}
	if g := b.GuardOf(alice); g.Wrong != 1 {
		t.Errorf("after an outage that began after the first answer: %+v", g)
	}
	token.check = func(context.Context, func() ([]byte, error)) ([]byte, error) { return nil, hsm.ErrUnavailable }
	if _, err := s.Send(m3); !errors.Is(err, hsm.ErrUnavailable) {
		t.Fatalf("a repeat within an outage: %v", err)
	}
	if g := b.GuardOf(alice); g.Wrong != 1 {
		t.Errorf("a repeat gave the attempt back: %+v", g)
	}
	ctx, cancel := context.WithCancel(t.Context())
	s, m3 = guess()
	token.check = func(context.Context, func() ([]byte, error)) ([]byte, error) {
		cancel()
		return nil, ctx.Err()
	}
	if _, err := s.SendIn(ctx, m3); err == nil {
		t.Fatal("a caller that went away got an answer")
	}
	if g := b.GuardOf(alice); g.Wrong != 2 {
		t.Errorf("after a caller that went away: %+v", g)
	}
}
