package faults

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
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

// aWhile is how long the load continues after a fault that must not affect any request.
const aWhile = time.Second

// restarts counts workers started in place of lost ones.
func (s *stage) restarts(ctx context.Context) (int, error) {
	n, err := s.ops.metric(ctx, "countersign_hsm_worker_restarts_total")
	return int(n), err
}

// replacesAll strikes and waits until so many workers were replaced; how long it took.
func (r *rush) replacesAll(ctx context.Context, n int, rule string) time.Duration {
	before := harness.Must(r.restarts(ctx))
	harness.Do(r.strike(rule))
	harness.Do(harness.Until(ctx, fmt.Sprintf("%d restarts after %s", n, rule), func() (bool, error) {
		now, err := r.restarts(ctx)
		return now >= before+n, err
	}))
	r.whole(ctx)
	return time.Since(r.struck)
}

// sessionsDie ends all sessions of both workers, as when a token is initialized anew.
func sessionsDie(ctx context.Context, s *stage) {
	s.inRush(ctx, func(r *rush) {
		took := r.replacesAll(ctx, 1, "@crypto closeall each=1 n=1")
		r.within(time.Second, took, "sessions of one worker die: replaced")
		r.unharmed("sessions of one worker die")
		took = r.replacesAll(ctx, 2, "@crypto closeall each=1 n=2")
		r.within(time.Second, took, "sessions of both workers die: replaced")
		r.mostlyUnharmed(ctx, "sessions of both workers die")
	})
}

// loginLost logs the token out behind one worker, then behind both.
func loginLost(ctx context.Context, s *stage) {
	s.inRush(ctx, func(r *rush) {
		r.loggedOut(ctx, 1)
		r.unharmed("login of one worker lost")
		r.loggedOut(ctx, 2)
		r.mostlyUnharmed(ctx, "login of both workers lost")
	})
}

// loggedOut strikes so many workers, each of which is replaced with one C_Login.
func (r *rush) loggedOut(ctx context.Context, workers int) {
	before := harness.Must(r.Counts())
	restarts := harness.Must(r.restarts(ctx))
	took := r.replacesAll(ctx, workers, fmt.Sprintf("C_SignInit logout each=1 n=%d", workers))
	after := harness.Must(r.Counts())
	now, err := r.restarts(ctx)
	logins := after.Minus(before)["C_Login"]
	r.Check(logins.Calls == uint64(now-restarts) && logins.Errors == 0, "login lost: %d workers replaced after %v, C_Login %d, refused %d",
		now-restarts, took.Round(time.Millisecond), logins.Calls, logins.Errors)
	harness.Do(err)
}

// mostlyUnharmed is for a fault of both workers at once, which can strike a request
// and its one internal retry: it then fails, once for each phone at most.
func (r *rush) mostlyUnharmed(ctx context.Context, what string) {
	harness.Do(during(ctx, aWhile))
	since := r.journal.touched(r.struck)
	failed := filter(since, exchange.failed)
	r.Check(len(failed) <= phones, "%s: %d requests, %d failed after a retry that failed too%s", what, len(since), len(failed), example(failed))
}

// segfault lets the module crash: one worker several times, then both at once.
func segfault(ctx context.Context, s *stage) {
	s.inRush(ctx, func(r *rush) {
		const times = 5
		first := time.Now()
		for range times {
			r.replacesAll(ctx, 1, r.once("C_Sign segv"))
		}
		r.struck = first
		r.unharmed(fmt.Sprintf("one worker crashed %d times", times))
		took := r.replacesAll(ctx, 2, "C_Sign segv each=1 n=2")
		r.within(time.Second, took, "both crashed at once: replaced")
		r.mostlyUnharmed(ctx, "both crashed at once")
	})
}

// busy lets the module be busy, full or confused once.
func busy(ctx context.Context, s *stage) {
	s.inRush(ctx, func(r *rush) {
		harness.Do(r.strike("C_Sign rv CKR_FUNCTION_FAILED"))
		harness.Do(during(ctx, 300*time.Millisecond))
		harness.Do(r.Clear())
		harness.Do(during(ctx, aWhile))
		r.unharmed("CKR_FUNCTION_FAILED for 300 ms")
		for _, rule := range []string{
			"C_SignInit rv CKR_SESSION_COUNT", "C_Sign rv CKR_OPERATION_ACTIVE keep=1", "C_SignInit rv CKR_KEY_HANDLE_INVALID",
			"C_DeriveKey rv CKR_KEY_HANDLE_INVALID", "C_DeriveKey rv CKR_FUNCTION_FAILED", "C_GetAttributeValue rv CKR_OBJECT_HANDLE_INVALID",
		} {
			r.struckOnce(ctx, rule)
		}
	})
}

// struckOnce strikes one call, which must not affect any request.
func (r *rush) struckOnce(ctx context.Context, rule string) {
	before := harness.Must(r.Counts())
	harness.Do(r.strike(r.once(rule)))
	harness.Do(harness.Until(ctx, rule, func() (bool, error) {
		now, err := r.Counts()
		return now.Minus(before).Faults() != 0, err
	}))
	n := len(r.journal.approvals()) + 4*phones
	err := harness.Until(ctx, "approvals after "+rule, func() (bool, error) { return len(r.journal.approvals()) >= n, nil })
	r.unharmed(rule + " once")
	harness.Do(err)
}

// Of a storm.
const (
	kills = 30
	storm = 10 * time.Second
)

// restartStorm kills workers at random instants.
func restartStorm(ctx context.Context, s *stage) {
	s.inRush(ctx, func(r *rush) {
		stop := r.keepToken(ctx)
		r.struck = time.Now()
		err := harness.Try(func() { r.killAtRandom(ctx) })
		end := time.Now()
		harness.Do(errors.Join(err, stop()))
		took := r.whole(ctx)
		r.within(back, took, fmt.Sprintf("whole after %d kills in %v", kills, end.Sub(r.struck).Round(time.Millisecond)))
		r.Say("approvals per second: %.0f before, %.0f in the storm", r.rate, r.journal.rate(r.struck, end))
		failed := filter(r.journal.since(r.struck, end), exchange.failed)
		r.Say("requests turned away in the storm: %d %s", len(failed), codes(failed))
		r.inTime()
	})
}

func (r *rush) killAtRandom(ctx context.Context) {
	var instants []time.Duration
	for range kills {
		instants = append(instants, rand.N(storm))
	}
	slices.Sort(instants)
	for _, at := range instants {
		harness.Do(during(ctx, time.Until(r.struck.Add(at))))
		r.killOne(ctx)
	}
}

// killOne kills a worker, whichever there is.
func (r *rush) killOne(ctx context.Context) {
	var workers []harness.Process
	harness.Do(harness.Until(ctx, "a worker", func() (ok bool, err error) {
		workers, err = r.workers()
		return len(workers) != 0, err
	}))
	harness.Do(workers[rand.N(len(workers))].Kill())
}
