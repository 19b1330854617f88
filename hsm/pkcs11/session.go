package pkcs11

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/miekg/pkcs11"

	"countersign/hsm"
)

// patience bounds the waiting for a busy token when the context does not.
const patience = 2 * time.Second

// maxDrops is how many sessions one call may lose under it.
const maxDrops = 8

// session is one PKCS#11 session of the pool. It belongs to one call at a time.
type session struct {
	handle pkcs11.SessionHandle
	opened time.Time
}

// take waits for a session. A place in the pool is held even when opening the
// session fails; put gives it back.
func (t *Token) take(ctx context.Context) (*session, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	select {
	case s := <-t.sessions:
		return s, nil
	default: // asking for ctx.Done may set a timer
	}
	select {
	case s := <-t.sessions:
		return s, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// put returns a session, or its place when an error made it doubtful.
func (t *Token) put(s *session, outcome class) {
	if s != nil && !outcome.harmless() {
		if outcome != reconnect { // a lost module is not called again
			_ = t.ctx.CloseSession(s.handle)
		}
		s = nil
	}
	t.sessions <- s
}

func (t *Token) once(ctx context.Context, f func(*session) error) (age time.Duration, outcome class, err error) {
	s, err := t.take(ctx)
	if err != nil {
		return 0, waiting, err
	}
	if s == nil {
		handle, err := t.ctx.OpenSession(t.slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
		if err != nil {
			t.put(nil, fine)
			return 0, classify(err), at("C_OpenSession", err)
		}
		s = &session{handle, time.Now()}
	}
	age, outcome = s.since(), other
	defer func() { t.put(s, outcome) }()
	if err = f(s); err == nil {
		outcome = fine
	} else {
		outcome = classify(err)
	}
	return age, outcome, err
}

// run does f on a session and reacts to the class of its error. What it
// returns is nil, a [*callError] or a wrapped context error.
func (t *Token) run(ctx context.Context, key hsm.KeyID, f func(*session) error) error {
	start, discarded, drops := time.Now(), false, 0
	for pause := time.Millisecond; ; pause *= 2 {
		age, outcome, err := t.once(ctx, f)
		switch {
		case outcome == fine:
			return nil
		case outcome == waiting:
			return fmt.Errorf("waiting for a session of token %s: %w", t.label, err)
		case outcome == discard && !discarded:
			discarded = true
			continue
		case outcome == dropped && drops < maxDrops && t.loggedIn() == nil:
			drops++ // a network HSM drops a session now and then, and the others live
			continue
		case outcome == busy && time.Since(start) < patience && rest(ctx, pause):
			continue
		}
		failed := &callError{err, t.label, key, age, time.Since(start), outcome}
		if outcome == reconnect || outcome == dropped {
			t.die(failed)
		}
		return failed
	}
}

// rest waits for between half of d and d; false when the context ends first.
func rest(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d/2 + rand.N(d/2))
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
