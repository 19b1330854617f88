package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"countersign/softhsm-test/harness"
)

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
func wrongPIN(ctx context.Context, s *stage) (err error) {
	if err := s.enrol(ctx, 2); err != nil {
		return err
	}
	v, err := s.service(2)
	if err != nil {
		return err
	}
	defer v.end(&err)
	right, err := os.ReadFile(s.pinFile())
	if err != nil {
		return err
	}
	for _, rule := range []string{"set pin_tries 0", fmt.Sprint("set pin_tries ", pinTries)} {
		if err := errors.Join(s.Set(rule), os.WriteFile(s.pinFile(), []byte("wrong-pin\n"), 0o600)); err != nil {
			return err
		}
		if err := s.restarts20(ctx, v, rule); err != nil {
			return err
		}
		if err := os.WriteFile(s.pinFile(), right, 0o600); err != nil {
			return err
		}
		r, err := s.Config.Bin.Run(ctx, harness.Call{Program: "countersignctl", Args: []string{"hsm", "unlock", "--state-dir", s.state()}})
		if err != nil {
			return err
		}
		s.check(r.Code == 0, "%s: countersignctl hsm unlock: exit code %d %s", rule, r.Code, line(r.Stderr))
	}
	if err := v.start(ctx, s); err != nil {
		s.check(false, "the right PIN, on a token that locks after %d wrong ones%s", pinTries, because(err))
		return nil
	}
	err = s.works(ctx)
	s.check(err == nil, "the right PIN serves again%s", because(err))
	return nil
}

// restarts20 starts the daemon, which is to end by itself and to try the PIN once in all.
func (s *stage) restarts20(ctx context.Context, v *service, rule string) error {
	before, err := s.Counts()
	if err != nil {
		return err
	}
	ended := map[int]int{}
	for range starts {
		if s.broken == breakGuard {
			if err := os.Remove(filepath.Join(s.state(), refusedMark)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		code, err := s.startInVain(ctx, v)
		if err != nil {
			return err
		}
		ended[code]++
	}
	after, err := s.Counts()
	if err != nil {
		return err
	}
	logins := after.Minus(before)["C_Login"]
	s.check(ended[exitAuth] == starts, "%s: %d starts with a wrong PIN, ended with exit code: %v", rule, starts, ended)
	s.check(logins.Calls == 1, "%s: C_Login %d times", rule, logins.Calls)
	return nil
}

func (s *stage) startInVain(ctx context.Context, v *service) (code int, err error) {
	ctx, cancel := context.WithTimeout(ctx, endLimit)
	defer cancel()
	r, err := s.Config.Bin.Run(ctx, v.call)
	return r.Code, err
}
