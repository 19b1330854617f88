package faults

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"countersign/softhsm-test/harness"
)

// replaced is what a worker may take to be killed and replaced after a deadline.
const replaced = time.Second

// hangOne stops one of two workers, which then hangs as in a module that does not
// return.
func hangOne(ctx context.Context, s *stage) {
	s.inRush(ctx, func(r *rush) { r.hangOne(ctx) })
}

func (r *rush) hangOne(ctx context.Context) {
	workers, err := r.workers()
	if err != nil || len(workers) != 2 {
		harness.Fail("%d workers: %w", len(workers), err)
	}
	victim := workers[0]
	r.struck = time.Now()
	harness.Do(syscall.Kill(victim.PID, syscall.SIGSTOP))
	err = victim.Wait(ctx)
	killed := time.Now()
	harness.Do(err)
	took := r.whole(ctx, victim)
	r.within(deadline+replaced, killed.Sub(r.struck)+took, "a worker that hangs is killed and replaced")
	during := r.journal.rate(r.struck, killed)
	r.Check(during >= r.rate/2, "approvals per second: %.0f before, %.0f while one of two workers hung", r.rate, during)
	r.inTime()
}

// Of a whole HSM that is away.
const (
	noticed = 2 * time.Second        // until /readyz says so
	shed    = 100 * time.Millisecond // an answer when that is known
	back    = 5 * time.Second        // from its return until all is well
)

// hangAll lets every call hang for 30 s, and then stops every worker there is, and
// those that come in their place.
func hangAll(ctx context.Context, s *stage) {
	s.inRush(ctx, func(r *rush) { r.hangAll(ctx) })
}

func (r *rush) hangAll(ctx context.Context) {
	harness.Do(r.awayAndBack(ctx, "all calls hang", func() (func() error, error) {
		return r.Clear, r.strike("C_* sleep 30000")
	}))
	r.whole(ctx)
	stop := r.keepToken(ctx)
	err := r.awayAndBack(ctx, "all workers are stopped", func() (func() error, error) {
		return r.stopAll(ctx), nil
	})
	harness.Do(errors.Join(err, stop()))
}

// awayAndBack takes the HSM away for a while under load; away gives what brings it back.
func (r *rush) awayAndBack(ctx context.Context, what string, away func() (func() error, error)) error {
	r.struck = time.Now()
	restore, err := away()
	if err != nil {
		return err
	}
	took, err := r.ops.ready(ctx, false)
	if err != nil {
		return err
	}
	r.within(noticed, took, what+": not ready")
	known := r.struck.Add(deadline + margin)
	if err := during(ctx, time.Until(known.Add(2*time.Second))); err != nil {
		return err
	}
	r.shed(what, known)
	if err := restore(); err != nil {
		return err
	}
	if took, err = r.backAgain(ctx); err != nil {
		return err
	}
	r.within(back, took, what+": back after it")
	return nil
}

// shed checks the requests since the absence was known.
func (r *rush) shed(what string, known time.Time) {
	first, later := r.refusals(r.struck, known), r.refusals(known, time.Now())
	r.within(deadline+margin, quantile(first, 1), what+": 503 at the deadline, longest")
	r.Check(len(later) != 0, "%s: %d requests refused until the deadline, %d afterwards", what, len(first), len(later))
	r.within(shed, quantile(later, 0.95), what+": refused afterwards, 95 % of them")
	r.Say("longest of them %v", quantile(later, 1).Round(time.Millisecond))
	without := filter(later, func(e exchange) bool { return !e.retryAfter })
	r.Check(len(without) == 0, "%s: refusals without Retry-After: %d", what, len(without))
}

// backAgain waits until the appliance is ready and approves again.
func (r *rush) backAgain(ctx context.Context) (time.Duration, error) {
	begun := time.Now()
	if _, err := r.ops.ready(ctx, true); err != nil {
		return 0, err
	}
	n := len(r.journal.approvals())
	err := harness.Until(ctx, "an approval", func() (bool, error) { return len(r.journal.approvals()) > n, nil })
	return time.Since(begun), err
}

// stopAll stops all workers that there are until the function that it gives is called.
func (r *rush) stopAll(ctx context.Context) func() error {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error)
	go func() {
		stopped := map[int]bool{}
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		var err error
		for ctx.Err() == nil && err == nil {
			err = r.stopEach(stopped)
			select {
			case <-tick.C:
			case <-ctx.Done():
			}
		}
		r.Say("stopped %d workers one after the other", len(stopped))
		done <- err
	}()
	return func() error {
		cancel()
		return <-done
	}
}

func (r *rush) stopEach(stopped map[int]bool) error {
	workers, err := r.workers()
	if err != nil {
		return err
	}
	for _, w := range workers {
		if stopped[w.PID] {
			continue
		}
		if err := syscall.Kill(w.PID, syscall.SIGSTOP); err != nil && err != syscall.ESRCH {
			return err
		}
		stopped[w.PID] = true
	}
	return nil
}

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

// Of a refused PIN.
const (
	starts      = 20 // as of a service manager that starts again and again
	exitAuth    = 77
	pinTries    = 3             // of a token that locks
	refusedMark = "pin-refused" // in state_dir: this PIN was refused
	endLimit    = 10 * time.Second
)

// wrongPIN starts a daemon with a wrong PIN again and again, on a token that never
// locks and on one that does.
func wrongPIN(ctx context.Context, s *stage) {
	s.enrol(ctx, 2)
	v := s.service(2)
	right := harness.Must(os.ReadFile(s.pinFile()))
	for _, rule := range []string{"set pin_tries 0", fmt.Sprint("set pin_tries ", pinTries)} {
		harness.Do(errors.Join(s.Set(rule), os.WriteFile(s.pinFile(), []byte("wrong-pin\n"), 0o600)))
		s.restarts20(ctx, v, rule)
		harness.Do(os.WriteFile(s.pinFile(), right, 0o600))
		r := harness.Must(s.Config.Bin.Run(ctx, harness.Call{Program: "countersignctl", Args: []string{"hsm", "unlock", "--state-dir", s.state()}}))
		s.Check(r.Code == 0, "%s: countersignctl hsm unlock: exit code %d %s", rule, r.Code, line(r.Stderr))
	}
	if err := v.start(ctx, s); err != nil {
		s.Check(false, "the right PIN, on a token that locks after %d wrong ones%s", pinTries, because(err))
		return
	}
	err := s.works(ctx)
	s.Check(err == nil, "the right PIN serves again%s", because(err))
}

// restarts20 starts the daemon, which is to end by itself and to try the PIN once in all.
func (s *stage) restarts20(ctx context.Context, v *service, rule string) {
	before := harness.Must(s.Counts())
	ended := map[int]int{}
	for range starts {
		if harness.Break() == breakGuard {
			if err := os.Remove(filepath.Join(s.state(), refusedMark)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				harness.Do(err)
				return
			}
		}
		code := s.startInVain(ctx, v)
		ended[code]++
	}
	after := harness.Must(s.Counts())
	logins := after.Minus(before)["C_Login"]
	s.Check(ended[exitAuth] == starts, "%s: %d starts with a wrong PIN, ended with exit code: %v", rule, starts, ended)
	s.Check(logins.Calls == 1, "%s: C_Login %d times", rule, logins.Calls)
}

func (s *stage) startInVain(ctx context.Context, v *service) (code int) {
	ctx, cancel := context.WithTimeout(ctx, endLimit)
	defer cancel()
	r, err := s.Config.Bin.Run(ctx, v.call)
	harness.Do(err)
	return r.Code
}
