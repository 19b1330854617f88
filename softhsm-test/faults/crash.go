package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"countersign/softhsm-test/harness"
)

// aWhile is how long the load goes on after a fault that costs nobody anything.
const aWhile = time.Second

// restarts counts workers started in place of lost ones.
func (s *stage) restarts(ctx context.Context) (int, error) {
	n, err := s.ops.metric(ctx, "countersign_hsm_worker_restarts_total")
	return int(n), err
}

// replacesAll strikes and waits until so many workers were replaced; how long it took.
func (r *rush) replacesAll(ctx context.Context, n int, rule string) (time.Duration, error) {
	before, err := r.restarts(ctx)
	if err != nil {
		return 0, err
	}
	if err := r.strike(rule); err != nil {
		return 0, err
	}
	err = harness.Until(ctx, fmt.Sprintf("%d restarts after %s", n, rule), func() (bool, error) {
		now, err := r.restarts(ctx)
		return now >= before+n, err
	})
	if err != nil {
		return 0, err
	}
	_, err = r.whole(ctx)
	return time.Since(r.struck), err
}

// sessionsDie ends all sessions of both workers, as when a token is initialized anew.
func sessionsDie(ctx context.Context, s *stage) error {
	return s.inRush(ctx, func(r *rush) error {
		took, err := r.replacesAll(ctx, 1, "@crypto closeall each=1 n=1")
		if err != nil {
			return err
		}
		r.within(time.Second, took, "sessions of one worker die: replaced")
		r.unharmed("sessions of one worker die")
		if took, err = r.replacesAll(ctx, 2, "@crypto closeall each=1 n=2"); err != nil {
			return err
		}
		r.within(time.Second, took, "sessions of both workers die: replaced")
		return r.mostlyUnharmed(ctx, "sessions of both workers die")
	})
}

// loginLost logs the token out behind one worker, then behind both.
func loginLost(ctx context.Context, s *stage) error {
	return s.inRush(ctx, func(r *rush) error {
		if err := r.loggedOut(ctx, 1); err != nil {
			return err
		}
		r.unharmed("login of one worker lost")
		if err := r.loggedOut(ctx, 2); err != nil {
			return err
		}
		return r.mostlyUnharmed(ctx, "login of both workers lost")
	})
}

// loggedOut strikes so many workers, each of which is replaced with one C_Login.
func (r *rush) loggedOut(ctx context.Context, workers int) error {
	before, err := r.Counts()
	if err != nil {
		return err
	}
	restarts, err := r.restarts(ctx)
	if err != nil {
		return err
	}
	took, err := r.replacesAll(ctx, workers, fmt.Sprintf("C_SignInit logout each=1 n=%d", workers))
	if err != nil {
		return err
	}
	after, err := r.Counts()
	if err != nil {
		return err
	}
	now, err := r.restarts(ctx)
	logins := after.Minus(before)["C_Login"]
	r.check(logins.Calls == uint64(now-restarts) && logins.Errors == 0, "login lost: %d workers replaced after %v, C_Login %d, refused %d",
		now-restarts, took.Round(time.Millisecond), logins.Calls, logins.Errors)
	return err
}

// mostlyUnharmed is for a fault of both workers at once, which can strike a request
// and its one internal retry: it then fails, once for each phone at most.
func (r *rush) mostlyUnharmed(ctx context.Context, what string) error {
	if err := during(ctx, aWhile); err != nil {
		return err
	}
	since := r.journal.touched(r.struck)
	failed := filter(since, exchange.failed)
	r.check(len(failed) <= phones, "%s: %d requests, %d failed after a retry that failed too%s", what, len(since), len(failed), example(failed))
	return nil
}

// segfault lets the module crash: one worker several times, then both at once.
func segfault(ctx context.Context, s *stage) error {
	return s.inRush(ctx, func(r *rush) error {
		const times = 5
		first := time.Now()
		for range times {
			if _, err := r.replacesAll(ctx, 1, r.once("C_Sign segv")); err != nil {
				return err
			}
		}
		r.struck = first
		r.unharmed(fmt.Sprintf("one worker crashed %d times", times))
		took, err := r.replacesAll(ctx, 2, "C_Sign segv each=1 n=2")
		if err != nil {
			return err
		}
		r.within(time.Second, took, "both crashed at once: replaced")
		return r.mostlyUnharmed(ctx, "both crashed at once")
	})
}

// busy lets the module be busy, full or confused once.
func busy(ctx context.Context, s *stage) error {
	return s.inRush(ctx, func(r *rush) error {
		if err := r.strike("C_Sign rv CKR_FUNCTION_FAILED"); err != nil {
			return err
		}
		if err := during(ctx, 300*time.Millisecond); err != nil {
			return err
		}
		if err := r.Clear(); err != nil {
			return err
		}
		if err := during(ctx, aWhile); err != nil {
			return err
		}
		r.unharmed("CKR_FUNCTION_FAILED for 300 ms")
		for _, rule := range []string{
			"C_SignInit rv CKR_SESSION_COUNT", "C_Sign rv CKR_OPERATION_ACTIVE keep=1", "C_SignInit rv CKR_KEY_HANDLE_INVALID",
			"C_DeriveKey rv CKR_KEY_HANDLE_INVALID", "C_DeriveKey rv CKR_FUNCTION_FAILED", "C_GetAttributeValue rv CKR_OBJECT_HANDLE_INVALID",
		} {
			if err := r.struckOnce(ctx, rule); err != nil {
				return err
			}
		}
		return nil
	})
}

// struckOnce strikes one call, and nobody is to notice.
func (r *rush) struckOnce(ctx context.Context, rule string) error {
	before, err := r.Counts()
	if err != nil {
		return err
	}
	if err := r.strike(r.once(rule)); err != nil {
		return err
	}
	err = harness.Until(ctx, rule, func() (bool, error) {
		now, err := r.Counts()
		return now.Minus(before).Faults() != 0, err
	})
	if err != nil {
		return err
	}
	n := len(r.journal.approvals()) + 4*phones
	err = harness.Until(ctx, "approvals after "+rule, func() (bool, error) { return len(r.journal.approvals()) >= n, nil })
	r.unharmed(rule + " once")
	return err
}

// Of a storm.
const (
	kills = 30
	storm = 10 * time.Second
)

// restartStorm kills workers at random instants.
func restartStorm(ctx context.Context, s *stage) error {
	return s.inRush(ctx, func(r *rush) error {
		stop, err := r.keepToken(ctx)
		if err != nil {
			return err
		}
		r.struck = time.Now()
		err = r.killAtRandom(ctx)
		end := time.Now()
		if err = errors.Join(err, stop()); err != nil {
			return err
		}
		took, err := r.whole(ctx)
		if err != nil {
			return err
		}
		r.within(back, took, fmt.Sprintf("whole after %d kills in %v", kills, end.Sub(r.struck).Round(time.Millisecond)))
		r.say("approvals per second: %.0f before, %.0f in the storm", r.rate, r.journal.rate(r.struck, end))
		failed := filter(r.journal.since(r.struck, end), exchange.failed)
		r.say("requests turned away in the storm: %d %s", len(failed), codes(failed))
		r.inTime()
		return nil
	})
}

func (r *rush) killAtRandom(ctx context.Context) error {
	var instants []time.Duration
	for range kills {
		instants = append(instants, rand.N(storm))
	}
	slices.Sort(instants)
	for _, at := range instants {
		if err := during(ctx, time.Until(r.struck.Add(at))); err != nil {
			return err
		}
		if err := r.killOne(ctx); err != nil {
			return err
		}
	}
	return nil
}

// killOne kills a worker, whichever there is.
func (r *rush) killOne(ctx context.Context) error {
	var workers []harness.Process
	err := harness.Until(ctx, "a worker", func() (ok bool, err error) {
		workers, err = r.workers()
		return len(workers) != 0, err
	})
	if err != nil {
		return err
	}
	return workers[rand.N(len(workers))].Kill()
}
