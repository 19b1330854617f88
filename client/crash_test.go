package client

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	"countersign/protocol"
	"countersign/softhsm-test/clienttest"
)

var errStep = errors.New("failed for the test")

// steps counts file operations and messages, and acts at one of them.
type steps struct {
	count, at int
	then      func() error
}

func (s *steps) next(string) error {
	if s.count++; s.count == s.at {
		return s.then()
	}
	return nil
}

// steppedLink counts sent and received messages. A failure after sending is a step of its own.
type steppedLink struct {
	Link
	steps *steps
}

func (l steppedLink) Send(m []byte) error {
	if err := l.steps.next("send"); err != nil {
		return err
	}
	return errors.Join(l.Link.Send(m), l.steps.next("sent"))
}

func (l steppedLink) Receive() ([]byte, error) {
	m, err := l.Link.Receive()
	return m, errors.Join(err, l.steps.next("received"))
}

// authorizeOnce does the same as a user: settle the open authorization, then authorize.
func authorizeOnce(ctx context.Context, cfg Config, link Link) (r Receipt, err error) {
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
	return c.Authorize(ctx, link, door(), says(protocol.Approve))
}

// checkBooks compares the receipts with the appliance's actions: the client knows exactly its
// approvals, and nothing was done twice.
func checkBooks(t *testing.T, a *clienttest.Appliance, dir string) {
	t.Helper()
	c := openClient(t, Config{Dir: dir})
	defer func() { _ = c.Close() }()
	list, err := c.Receipts()
	if err != nil {
		t.Fatal(err)
	}
	acts := a.Acts()
	for _, r := range list {
		counter := r.Serial.Counter()
		if !r.Known || r.Approved() != (acts[counter] == 1) {
			t.Errorf("receipt of counter %d: %+v, acts %d", counter, r, acts[counter])
		}
		delete(acts, counter)
	}
	if len(acts) != 0 {
		t.Errorf("acts without a receipt: %v", acts)
	}
	if c.state.Counter < a.Highest() {
		t.Errorf("counter %d is behind %d, which was sent", c.state.Counter, a.Highest())
	}
}

// TestFailureAtEveryStep fails each file operation and message once. The appliance asserts that
// counters do not repeat and that M3 does, byte for byte.
func TestFailureAtEveryStep(t *testing.T) {
	a := clienttest.New(t)
	first, dir := enrolledClient(t, a)
	address := a.Listen("unix")
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	for at := 1; ; at++ {
		s := &steps{at: at, then: func() error { return errStep }}
		link := clienttest.Dial(t, address)
		_, err := authorizeOnce(t.Context(), Config{Dir: dir, before: s.next}, steppedLink{link, s})
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
		if r, err := authorizeOnce(t.Context(), Config{Dir: dir}, link); err != nil || !r.Approved() {
			t.Fatalf("after a failure at step %d: %+v, %v", at, r, err)
		}
		a.HangUp(address, link)
		checkBooks(t, a, dir)
	}
}

const childEnv = "COUNTERSIGN_CLIENT_CHILD" // directory, link address and step of a child process

// TestKillAtEveryStep kills -9 a process at each step.
func TestKillAtEveryStep(t *testing.T) {
	a := clienttest.New(t)
	first, dir := enrolledClient(t, a)
	address := a.Listen("unix")
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	for at := 1; ; at++ {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestChild$")
		cmd.Env = append(os.Environ(), childEnv+"="+dir, childEnv+"_LINK="+address, childEnv+"_STEP="+strconv.Itoa(at))
		out, err := cmd.CombinedOutput()
		a.HangUp(address)
		var exit *exec.ExitError
		switch {
		case err == nil:
			if at < 20 {
				t.Fatalf("only %d steps", at)
			}
			checkBooks(t, a, dir)
			return
		case !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL:
			t.Fatalf("step %d: %v\n%s", at, err, out)
		}
		link := clienttest.Dial(t, address)
		if r, err := authorizeOnce(t.Context(), Config{Dir: dir}, link); err != nil || !r.Approved() {
			t.Fatalf("after kill -9 at step %d: %+v, %v", at, r, err)
		}
		a.HangUp(address, link)
		checkBooks(t, a, dir)
	}
}

// TestChild is the process that TestKillAtEveryStep kills. By itself it does nothing.
func TestChild(t *testing.T) {
	dir := os.Getenv(childEnv)
	if dir == "" {
		return
	}
	at, err := strconv.Atoi(os.Getenv(childEnv + "_STEP"))
	if err != nil {
		t.Fatal(err)
	}
	s := &steps{at: at, then: func() error { return syscall.Kill(os.Getpid(), syscall.SIGKILL) }}
	link := steppedLink{clienttest.Dial(t, os.Getenv(childEnv+"_LINK")), s}
	if r, err := authorizeOnce(t.Context(), Config{Dir: dir, before: s.next}, link); err != nil || !r.Approved() {
		t.Fatalf("%+v, %v", r, err)
	}
}

// TestEnrolFailureAtEveryStep fails each file operation of an enrolment once. The same code must
// work afterwards.
func TestEnrolFailureAtEveryStep(t *testing.T) {
	a := clienttest.New(t)
	url := a.Serve()
	for at := 1; ; at++ {
		dir, code := filepath.Join(t.TempDir(), "state"), a.Invite()
		s := &steps{at: at, then: func() error { return errStep }}
		err := enrolOnce(t, Config{Dir: dir, before: s.next}, EnrolConfig{URL: url, Code: code})
		if s.count < at {
			if err != nil || at < 10 {
				t.Fatalf("no step %d, error %v", at, err)
			}
			return
		}
		if !errors.Is(err, errStep) {
			t.Errorf("step %d failed: error %v", at, err)
		}
		clients := a.Clients()
		if err := enrolOnce(t, Config{Dir: dir}, EnrolConfig{URL: url, Code: code}); err != nil && !errors.Is(err, ErrEnrolled) {
			t.Fatalf("after a failure at step %d: %v", at, err)
		}
		if made := a.Clients(); clients > at || made != at {
			t.Errorf("step %d: %d clients, then %d", at, clients, made)
		}
	}
}

func enrolOnce(t *testing.T, cfg Config, enrol EnrolConfig) (err error) {
	c, err := Open(t.Context(), cfg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	_, err = c.Enrol(t.Context(), enrol)
	return err
}
