package main

import (
	"context"
	"time"
)

// hsmGone pulls the HSM while nobody asks for anything.
func hsmGone(ctx context.Context, s *stage) error {
	if err := s.enrol(ctx, 2); err != nil {
		return err
	}
	if err := s.works(ctx); err != nil {
		return err
	}
	pid := s.PID()
	if err := s.Set("C_* rv CKR_DEVICE_REMOVED"); err != nil {
		return err
	}
	took, err := s.ops.ready(ctx, false)
	if err != nil {
		return err
	}
	s.within(noticed, took, "idle and removed: not ready")
	s.refuses(ctx, "CKR_DEVICE_REMOVED")
	if err := s.Set("C_* rv CKR_TOKEN_NOT_PRESENT"); err != nil {
		return err
	}
	s.refuses(ctx, "CKR_TOKEN_NOT_PRESENT")
	if err := s.Clear(); err != nil {
		return err
	}
	begun := time.Now()
	if _, err = s.ops.ready(ctx, true); err != nil {
		return err
	}
	s.within(back, time.Since(begun), "put back: ready")
	err = s.works(ctx)
	s.check(err == nil, "an authorization is approved%s", because(err))
	s.check(s.Running() && s.PID() == pid, "countersignd %d lives", pid)
	return s.audit(ctx)
}

// refuses asks the appliance so many times, one after the other.
func (s *stage) refuses(ctx context.Context, what string) {
	const asked = 10
	from := time.Now()
	for range asked {
		s.customers[0].step(ctx)
	}
	all := s.journal.since(from, time.Now())
	refused := filter(all, func(e exchange) bool { return e.failed() && e.foreseen() && e.retryAfter })
	s.check(len(refused) == asked, "%s: %d of %d requests refused with a time to try again: %s", what, len(refused), asked, codes(all))
	s.within(shed, quantile(all, 1), what+": longest refusal")
}
