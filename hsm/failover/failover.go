// Package failover makes one token of several that hold the same keys: two of one
// vendor, or of two. A call goes to the first that is ready, and within its
// deadline to the next where that one cannot answer. A new key is made on the
// first and copied to the others before anybody learns of it.
package failover

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"countersign/hsm"
)

var (
	// ErrNoMember: no token has that name.
	ErrNoMember = errors.New("no such token")
	// ErrLast: the only token that takes calls cannot be drained.
	ErrLast = errors.New("the last token that takes calls")
)

// Token is a member: a token that can tell whether it is worth asking.
type Token interface {
	hsm.Token
	Ready() bool   // an answer can be expected
	InFlight() int // calls it has not answered yet
}

// Member is a token with its name, which is the administrator's.
type Member struct {
	Name string
	Token
}

// Config says what a [Set] is made of.
type Config struct {
	Members []Member      // one at least; the first that is ready takes all calls
	Timeout time.Duration // of a call in all; a member that is not the last has half of it
	Logger  hclog.Logger
}

// Set implements [hsm.Token] over its members. It owns none of them.
type Set struct {
	members []*member
	timeout time.Duration
	log     hclog.Logger

	making   sync.Mutex // one key is made at a time
	draining sync.Mutex // one change of who is drained at a time
}

type member struct {
	Member
	drained   atomic.Bool
	transport hsm.Key // guarded by Set.making; zero until it is needed
}

// New makes a set of tokens that are open.
func New(cfg Config) *Set {
	s := &Set{timeout: cfg.Timeout, log: cfg.Logger}
	for _, m := range cfg.Members {
		s.members = append(s.members, &member{Member: m})
	}
	return s
}

// Ready tells whether a member that takes calls is ready.
func (s *Set) Ready() bool {
	for _, m := range s.members {
		if !m.drained.Load() && m.Ready() {
			return true
		}
	}
	return false
}

// Drained tells whether the member of that name takes no calls.
func (s *Set) Drained(name string) bool {
	m, err := s.find(name)
	return err == nil && m.drained.Load()
}

// Drain gives a member no more calls; false takes that back. The last member that
// takes calls is [ErrLast], a name that is none [ErrNoMember]. A call that was given
// to it just before may still be on its way: see [Set.Idle].
func (s *Set) Drain(name string, drain bool) error {
	s.draining.Lock()
	defer s.draining.Unlock()
	m, err := s.find(name)
	if err != nil {
		return err
	}
	if drain && !s.othersServe(m) {
		return fmt.Errorf("draining token %s: %w", name, ErrLast)
	}
	m.drained.Store(drain)
	s.log.Info("token drained", "token", name, "drained", drain)
	return nil
}

// Idle waits until a member has answered all its calls.
func (s *Set) Idle(ctx context.Context, name string) error {
	m, err := s.find(name)
	if err != nil {
		return err
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for m.InFlight() > 0 {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("token %s has %d calls in flight: %w", name, m.InFlight(), ctx.Err())
		}
	}
	return nil
}

func (s *Set) find(name string) (*member, error) {
	for _, m := range s.members {
		if m.Name == name {
			return m, nil
		}
	}
	return nil, fmt.Errorf("token %q: %w", name, ErrNoMember)
}

func (s *Set) othersServe(than *member) bool {
	for _, m := range s.members {
		if m != than && !m.drained.Load() && m.Ready() {
			return true
		}
	}
	return false
}

// order is whom to ask: those that are ready first, each in the order of the
// configuration; the drained never.
func (s *Set) order() (all []*member) {
	var away []*member
	for _, m := range s.members {
		switch {
		case m.drained.Load():
		case m.Ready():
			all = append(all, m)
		default:
			away = append(away, m)
		}
	}
	return append(all, away...)
}

// do asks one member after the other until one can answer.
func do[T any](ctx context.Context, s *Set, call func(context.Context, hsm.Token) (T, error)) (answer T, err error) {
	order := s.order()
	var failed []error
	for i, m := range order {
		answer, err = try(ctx, s.share(len(order)-i), func(ctx context.Context) (T, error) { return call(ctx, m.Token) })
		if err == nil || !hsm.TryElsewhere(ctx, err) {
			return answer, err
		}
		failed = append(failed, fmt.Errorf("token %s: %w", m.Name, err))
	}
	return answer, gravest(failed)
}

// share is how long a member may take with left members, itself included, to ask;
// 0 is until the caller's deadline, which the member has an eye on itself.
func (s *Set) share(left int) time.Duration {
	if left <= 1 {
		return 0
	}
	return s.timeout / 2
}

func try[T any](ctx context.Context, limit time.Duration, call func(context.Context) (T, error)) (T, error) {
	if limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
	}
	return call(ctx)
}

// gravest is the error that tells most: that a key is nowhere only when all say
// so, for the one that is away may have it.
func gravest(failed []error) error {
	if len(failed) == 0 {
		return fmt.Errorf("every token is drained: %w", hsm.ErrUnavailable)
	}
	for _, err := range failed {
		if errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, hsm.ErrUnavailable) {
			return fmt.Errorf("%v: %w", err, hsm.ErrUnavailable)
		}
		if !errors.Is(err, hsm.ErrKey) {
			return err
		}
	}
	return failed[0]
}
