package client

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"testing"

	"countersign/protocol"
	"countersign/protocol/password"
	"countersign/softhsm-test/clienttest"
)

// levelOnce is authorizeOnce at level 3, by a user who types these passwords.
func levelOnce(ctx context.Context, cfg Config, link Link, types ...string) (r Receipt, err error) {
	p := &typist{types: types}
	cfg.Passwords, cfg.Verifier = p, p
	c, err := Open(ctx, cfg)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	if _, ok := c.Pending(); ok {
		if r, err := c.Resume(ctx, link); err != nil {
			return r, fmt.Errorf("resuming: %w", err)
		}
	}
	return c.Authorize(ctx, link, level(3), says(protocol.Approve))
}

// TestWrongPasswordFailureAtEveryStep fails each file operation and message once while the user
// types a wrong password and then the right one.
func TestWrongPasswordFailureAtEveryStep(t *testing.T) {
	a := clienttest.New(t)
	first, dir := levelClient(t, a, &typist{})
	address := a.Listen("unix")
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	for at := 1; ; at++ {
		s := &steps{at: at, then: func() error { return errStep }}
		link := clienttest.Dial(t, address)
		_, err := levelOnce(t.Context(), Config{Dir: dir, before: s.next}, steppedLink{link, s}, wrong, right)
		a.HangUp(address, link)
		if s.count < at {
			if err != nil || at < 30 {
				t.Fatalf("no step %d, error %v", at, err)
			}
			return
		}
		if err == nil {
			t.Errorf("step %d failed and nobody noticed", at)
		}
		link = clienttest.Dial(t, address)
		if r, err := levelOnce(t.Context(), Config{Dir: dir}, link, right, right); err != nil || !r.Approved() {
			t.Fatalf("after a failure at step %d: %+v, %v", at, r, err)
		}
		a.HangUp(address, link)
		checkBooks(t, a, dir)
	}
}

// TestSettleFailureAtEveryStep asks for the outcome of an authorization and fails once at each step.
func TestSettleFailureAtEveryStep(t *testing.T) {
	a := clienttest.New(t)
	address := a.Listen("unix")
	for at := 1; ; at++ {
		c, dir := enrolledClient(t, a)
		a.Do(cutAfterM3(false))
		link := clienttest.Dial(t, address)
		if _, err := c.Authorize(t.Context(), link, door(), says(protocol.Approve)); !errors.Is(err, ErrUnknownOutcome) {
			t.Fatal(err)
		}
		a.HangUp(address, link)
		a.Do(clienttest.Behaviour{})
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		s := &steps{at: at, then: func() error { return errStep }}
		link = clienttest.Dial(t, address)
		err := settleOnce(t.Context(), Config{Dir: dir, before: s.next}, steppedLink{link, s})
		a.HangUp(address, link)
		if s.count < at {
			if err != nil || at < 20 {
				t.Fatalf("no step %d, error %v", at, err)
			}
			return
		}
		if err == nil {
			t.Errorf("step %d failed and nobody noticed", at)
		}
		link = clienttest.Dial(t, address)
		if err := settleOnce(t.Context(), Config{Dir: dir}, link); err != nil {
			t.Fatalf("after a failure at step %d: %v", at, err)
		}
		a.HangUp(address, link)
	}
}

func settleOnce(ctx context.Context, cfg Config, link Link) (err error) {
	c, err := Open(ctx, cfg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	serial, err := c.Last()
	if err != nil {
		return err
	}
	r, err := c.Settle(ctx, link, serial, says(protocol.Approve))
	if err == nil && !r.Approved() {
		return fmt.Errorf("settled as %v", r.Result)
	}
	return err
}

// TestPasswordEnrolFailureAtEveryStep interrupts an enrolment. The password of the first request
// remains.
func TestPasswordEnrolFailureAtEveryStep(t *testing.T) {
	a := clienttest.New(t)
	url, address := a.Serve(), a.Listen("unix")
	for at := 1; ; at++ {
		dir := filepath.Join(t.TempDir(), "state")
		cfg := EnrolConfig{URL: url, Code: a.Invite(), Password: Password(right), Params: cheap, UV: true}
		s := &steps{at: at, then: func() error { return errStep }}
		err := enrolOnce(t, Config{Dir: dir, before: s.next}, cfg)
		if s.count < at {
			if err != nil || at < 15 {
				t.Fatalf("no step %d, error %v", at, err)
			}
			return
		}
		c := openClient(t, Config{Dir: dir})
		if waits, with := c.Enrolling(cfg.Code); waits {
			cfg.Password, cfg.UV = Password(wrong), false
			if !with {
				t.Errorf("step %d: the request sets no password", at)
			}
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		if err := enrolOnce(t, Config{Dir: dir}, cfg); err != nil && !errors.Is(err, ErrEnrolled) {
			t.Fatalf("after a failure at step %d: %v", at, err)
		}
		if r, err := levelOnce(t.Context(), Config{Dir: dir}, clienttest.Dial(t, address), right); err != nil || !r.Approved() {
			t.Errorf("step %d: %+v, %v", at, r, err)
		}
	}
}

// TestEnrolWithShortPassword: a password below the floor leaves no key and no request behind, and the code is good for a
// longer one.
func TestEnrolWithShortPassword(t *testing.T) {
	a := clienttest.New(t)
	cfg := EnrolConfig{URL: a.Serve(), Code: a.Invite(), Password: Password("five5"), Params: cheap}
	c := openClient(t, Config{Dir: t.TempDir()})
	_, err := c.Enrol(t.Context(), cfg)
	var short *password.ShortError
	if !errors.As(err, &short) || short.Length != 5 || short.Least != password.DefaultLength {
		t.Fatal(err)
	}
	if waits, _ := c.Enrolling(cfg.Code); waits || a.Clients() != 0 {
		t.Errorf("a request waits: %v; %d clients", waits, a.Clients())
	}
	cfg.Password = Password("sixsix")
	if _, err := c.Enrol(t.Context(), cfg); err != nil {
		t.Error(err)
	}
}

func TestEnrolWithPasswordRefused(t *testing.T) {
	a := clienttest.New(t)
	url := a.Serve()
	for name, cfg := range map[string]EnrolConfig{
		"not UTF-8":        {Password: Password("\xffabcdef"), Params: cheap},
		"cheap parameters": {Password: Password(right), Params: password.Params{MemoryKiB: cheap.MemoryKiB - 1, Iterations: 2, Parallelism: 1}},
	} {
		c := openClient(t, Config{Dir: t.TempDir()})
		cfg.URL, cfg.Code = url, a.Invite()
		if _, err := c.Enrol(t.Context(), cfg); !errors.Is(err, protocol.CodeFormat) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if a.Clients() != 0 {
		t.Errorf("%d clients", a.Clients())
	}
}
