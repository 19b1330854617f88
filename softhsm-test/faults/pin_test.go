package faults

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
