package faults

import (
	"context"
	"time"

	"countersign/protocol"
	"countersign/softhsm-test/harness"
)

// phones is how many authorize at once, half of them over the relay.
const phones = 12

// warmUp is how long all is well before the fault, for comparison.
const warmUp = 1500 * time.Millisecond

// rush is a stage on which phones authorize, with the measurements before the fault.
type rush struct {
	*stage
	begun  time.Time // of the load that counts
	struck time.Time // the fault
	rate   float64   // approvals per second before it
	before held
	stop   func()
	watch  func() held
}

// rush lets phones authorize until [rush.end].
func (s *stage) rush(ctx context.Context) *rush {
	s.enrol(ctx, phones)
	r := &rush{stage: s, stop: s.crowd(ctx)}
	if err := harness.Try(func() { r.warm(ctx) }); err != nil {
		r.stop()
		harness.Do(err)
	}
	return r
}

func (r *rush) warm(ctx context.Context) {
	r.begun = time.Now()
	calm := r.ops.watch(ctx)
	if err := during(ctx, warmUp); err != nil {
		calm()
		harness.Do(err)
	}
	r.before, r.struck = calm(), time.Now()
	r.rate = r.journal.rate(r.begun, r.struck)
	r.watch = r.ops.watch(ctx)
}

// inRush plays a fault under load.
func (s *stage) inRush(ctx context.Context, play func(*rush)) {
	r := s.rush(ctx)
	err := harness.Try(func() { play(r) })
	r.end(ctx)
	harness.Do(err)
}

// strike puts a fault in force, now.
func (r *rush) strike(rules ...string) error {
	r.struck = time.Now()
	return r.Set(rules...)
}

// end stops the load, and holds every scene to what must hold in all of them.
func (r *rush) end(ctx context.Context) {
	r.stop()
	most := r.watch()
	r.Check(r.Running(), "countersignd %d lives", r.PID())
	r.Check(most.within(r.before), "held at most: %v; before: %v", most, r.before)
	r.audit(ctx)
	all := r.journal.since(r.begun, time.Now())
	strange := filter(all, func(e exchange) bool { return !e.foreseen() })
	r.Check(len(strange) == 0, "requests %s, of them not foreseen %d%s", codes(all), len(strange), example(strange))
}

func example(some []exchange) string {
	if len(some) == 0 {
		return ""
	}
	return ", one of them " + some[0].String()
}

// inTime: every request to the appliance ended by its deadline.
func (r *rush) inTime() {
	direct := filter(r.journal.since(r.begun, time.Now()), func(e exchange) bool { return !e.overLink })
	r.within(deadline+margin, quantile(direct, 1), "longest request")
}

// unharmed: the fault led to no refusal.
func (r *rush) unharmed(what string) {
	since := r.journal.touched(r.struck)
	failed := filter(since, exchange.failed)
	r.Check(len(failed) == 0 && len(since) != 0, "%s: %d requests, %d failed%s", what, len(since), len(failed), example(failed))
}

// refusals are the requests to the appliance since a time that the HSM's absence ended.
func (r *rush) refusals(from, to time.Time) []exchange {
	return filter(r.journal.since(from, to), func(e exchange) bool { return !e.overLink && e.code == protocol.CodeHSM })
}
