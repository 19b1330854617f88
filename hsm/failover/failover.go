// Package failover implements [hsm.Token] over several tokens that hold the same keys, of
// one vendor or of two. A call goes to the first that is ready, and within its deadline to
// the next if that one cannot answer. A new key is made on the first and copied to the
// others before the caller gets it.
package failover

import (
	"context"
	"crypto/ecdh"
	"errors"
	"fmt"
	"slices"
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

// Token is a token that reports whether it is ready.
type Token interface {
	hsm.Token
	Ready() bool   // it can be expected to answer
	InFlight() int // calls without an answer
	// Returns counts its starts and returns. It changes before the first call that may reach
	// another token than earlier calls.
	Returns() uint64
}

// Member is a token with the administrator's name for it.
type Member struct {
	Name string
	Token
}

// Config describes a [Set].
type Config struct {
	Members []Member      // at least one; the first that is ready takes all calls
	Timeout time.Duration // of a call; a member that is not the last gets half of it
	Logger  hclog.Logger
}

// Set implements [hsm.Token] over its members. It owns none of them.
type Set struct {
	members []*member
	timeout time.Duration
	log     hclog.Logger

	making    sync.Mutex // one new key at a time
	draining  sync.Mutex // one Drain at a time
	comparing atomic.Bool
	samples   samples
}

type member struct {
	Member
	drained   atomic.Bool
	standing  atomic.Pointer[standing] // nil before its keys were compared
	samples   *samples                 // of the set
	turn      chan struct{}            // has a value while the member is compared
	transport hsm.Key                  // guarded by Set.making; zero if not read yet
}

// New returns a set of open tokens.
func New(cfg Config) *Set {
	s := &Set{timeout: cfg.Timeout, log: cfg.Logger, samples: samples{of: map[hsm.KeyID]sample{}}}
	for _, m := range cfg.Members {
		s.members = append(s.members, &member{Member: m, samples: &s.samples, turn: make(chan struct{}, 1)})
	}
	return s
}

// Ready reports whether a member that takes calls is ready.
func (s *Set) Ready() bool {
	for _, m := range s.members {
		if m.serves() {
			return true
		}
	}
	return false
}

// serves reports whether calls go to the member, or will once its keys were compared.
func (m *member) serves() bool { return !m.drained.Load() && m.Ready() && m.refused() == nil }

// Drained reports whether the member takes no calls.
func (s *Set) Drained(name string) bool {
	m, err := s.find(name)
	return err == nil && m.drained.Load()
}

// Drain stops giving calls to a member; false gives it calls again. It returns [ErrLast]
// for the last member that takes calls, [ErrNoMember] for an unknown name, and errOtherKey
// for a member that holds another key now: it stays drained. A call that was given to the
// member just before may be under way: see [Set.Idle].
func (s *Set) Drain(name string, drain bool) error {
	s.draining.Lock()
	defer s.draining.Unlock()
	m, err := s.find(name)
	if err != nil {
		return err
	}
	if drain {
		s.compareOthers(m)
		if !s.othersServe(m) {
			return fmt.Errorf("draining token %s: %w", name, ErrLast)
		}
	} else if err := s.compareAgain(m); err != nil {
		return fmt.Errorf("resuming token %s: %w", name, err)
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

// compareAgain compares a member that was drained. Only another key is an error: a member
// that does not answer is compared when it does.
func (s *Set) compareAgain(m *member) error {
	if !m.drained.Load() || len(s.members) == 1 {
		return nil
	}
	m.standing.Store(nil)
	if m.Ready() {
		s.compareLater(m)
	}
	return m.refused()
}

// compareOthers compares the members that can take over.
func (s *Set) compareOthers(than *member) {
	for _, m := range s.members {
		if m != than && m.due() && m.Ready() {
			s.compareLater(m)
		}
	}
}

func (s *Set) othersServe(than *member) bool {
	for _, m := range s.members {
		if m != than && m.serves() && m.joined() {
			return true
		}
	}
	return false
}

// order returns the members to ask: those that are ready first, each in the order of the
// configuration, without drained ones.
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

// do asks one member after the other until one answers, or another would not succeed: see
// [hsm.TryElsewhere].
func do[T any](ctx context.Context, s *Set, call func(context.Context, hsm.Token) (T, error)) (answer T, err error) {
	order := s.order()
	var failed []error
	for i, m := range order {
		answer, err = try(ctx, s.share(len(order)-i), func(ctx context.Context) (T, error) {
			return ask(ctx, s, m, i == len(order)-1, call)
		})
		if err == nil || !hsm.TryElsewhere(ctx, err) {
			return answer, err
		}
		failed = append(failed, fmt.Errorf("token %s: %w", m.Name, err))
	}
	return answer, gravest(failed)
}

// ask gives a call to a member whose keys are the set's. The answer of a token that came back
// since its keys were compared does not count, because it may be another token. The last member
// that can be asked is waited for.
func ask[T any](
	ctx context.Context, s *Set, m *member, last bool, call func(context.Context, hsm.Token) (T, error),
) (answer T, err error) {
	st, err := s.admit(ctx, m, last)
	if err != nil {
		return answer, err
	}
	answer, err = call(ctx, m.Token)
	if st != nil && st.returns != m.Returns() {
		var none T
		return none, errJoining
	}
	return answer, err
}

// share returns how long a member may take, if left members, itself included, remain to be
// asked. 0 is until the deadline of the caller.
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

// gravest returns the most important error. A key is missing only if all members say so,
// because an unreachable one may have it.
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

// Sign implements [hsm.Token].
func (s *Set) Sign(ctx context.Context, key hsm.KeyID, alg hsm.Algorithm, input []byte) ([]byte, error) {
	return do(ctx, s, func(ctx context.Context, t hsm.Token) ([]byte, error) { return t.Sign(ctx, key, alg, input) })
}

// Decap implements [hsm.Token].
func (s *Set) Decap(ctx context.Context, key hsm.KeyID, kem hsm.KEM, enc *ecdh.PublicKey) ([]byte, error) {
	return do(ctx, s, func(ctx context.Context, t hsm.Token) ([]byte, error) { return t.Decap(ctx, key, kem, enc) })
}

// KEMs implements [hsm.Token]: it lists what every member can do. A member that was not opened yet is
// left out.
func (s *Set) KEMs() (common []hsm.KEM) {
	first := true
	for _, m := range s.members {
		kems := m.KEMs()
		switch {
		case len(kems) == 0:
		case first:
			common, first = slices.Clone(kems), false
		default:
			common = slices.DeleteFunc(common, func(k hsm.KEM) bool { return !slices.Contains(kems, k) })
		}
	}
	return common
}

// MAC implements [hsm.Token].
func (s *Set) MAC(ctx context.Context, key hsm.KeyID, data []byte) ([]byte, error) {
	return do(ctx, s, func(ctx context.Context, t hsm.Token) ([]byte, error) { return t.MAC(ctx, key, data) })
}

// Import implements [hsm.Token].
func (s *Set) Import(ctx context.Context, i hsm.Import) ([]byte, error) {
	return do(ctx, s, func(ctx context.Context, t hsm.Token) ([]byte, error) { return t.Import(ctx, i) })
}

// MACWrapped implements [hsm.Token].
func (s *Set) MACWrapped(ctx context.Context, wrap hsm.KeyID, wrapped, data []byte) ([]byte, error) {
	return do(ctx, s, func(ctx context.Context, t hsm.Token) ([]byte, error) { return t.MACWrapped(ctx, wrap, wrapped, data) })
}

// Certificates implements [hsm.Token].
func (s *Set) Certificates(ctx context.Context) ([]hsm.Certificate, error) {
	return do(ctx, s, func(ctx context.Context, t hsm.Token) ([]hsm.Certificate, error) { return t.Certificates(ctx) })
}

// Rewrap implements [hsm.Token].
func (s *Set) Rewrap(ctx context.Context, r hsm.Rewrap) ([]byte, error) {
	return do(ctx, s, func(ctx context.Context, t hsm.Token) ([]byte, error) { return t.Rewrap(ctx, r) })
}
