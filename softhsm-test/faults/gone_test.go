package faults

import (
	"context"
	"time"

	"countersign/softhsm-test/harness"
)

// hsmGone removes the HSM while there is no request.
func hsmGone(ctx context.Context, s *stage) {
	s.enrol(ctx, 2)
	harness.Do(s.works(ctx))
	pid := s.PID()
	harness.Do(s.Set("C_* rv CKR_DEVICE_REMOVED"))
	took := harness.Must(s.ops.ready(ctx, false))
	s.within(noticed, took, "idle and removed: not ready")
	s.refuses(ctx, "CKR_DEVICE_REMOVED")
	harness.Do(s.Set("C_* rv CKR_TOKEN_NOT_PRESENT"))
	s.refuses(ctx, "CKR_TOKEN_NOT_PRESENT")
	harness.Do(s.Clear())
	begun := time.Now()
	harness.Must(s.ops.ready(ctx, true))
	s.within(back, time.Since(begun), "put back: ready")
	err := s.works(ctx)
	s.Check(err == nil, "an authorization is approved%s", because(err))
	s.Check(s.Running() && s.PID() == pid, "countersignd %d lives", pid)
	s.audit(ctx)
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
	s.Check(len(refused) == asked, "%s: %d of %d requests refused with a time to try again: %s", what, len(refused), asked, codes(all))
	s.within(shed, quantile(all, 1), what+": longest refusal")
}
