package failover

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"countersign/hsm"
	"countersign/hsm/memory"
)

// secretKeys makes one key of each usage whose id proves nothing, and a key agreement.
func secretKeys(t *testing.T, s *Set) (made []hsm.Key) {
	t.Helper()
	for _, usage := range []hsm.Usage{hsm.DeriveP256, hsm.MACKey, hsm.WrapKey} {
		k, err := s.Generate(t.Context(), hsm.KeySpec{Label: usage.String() + "@1", Usage: usage})
		if err != nil {
			t.Fatal(err)
		}
		made = append(made, k)
	}
	return made[1:]
}

// plant puts a random secret in the place of a key.
func plant(t *testing.T, token hsm.Token, k hsm.Key) {
	t.Helper()
	spec := hsm.KeySpec{Label: k.Label, Usage: k.Usage}
	with, err := token.Generate(t.Context(), hsm.KeySpec{Label: "planting@1", Usage: hsm.DeriveP256})
	if err != nil {
		t.Fatal(err)
	}
	to, err := with.ECDH()
	if err != nil {
		t.Fatal(err)
	}
	spec.Recipients = []*ecdh.PublicKey{to}
	other, err := memory.New().Generate(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	spec.Recipients = nil
	if err := token.Destroy(t.Context(), k.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := token.Restore(t.Context(), hsm.Restore{Spec: spec, Sealed: other.Sealed[0], With: with.ID, ID: k.ID}); err != nil {
		t.Fatal(err)
	}
	if err := token.Destroy(t.Context(), with.ID); err != nil {
		t.Fatal(err)
	}
}

// use uses a secret key of a set, and returns what the caller sees of its value.
func use(ctx context.Context, s *Set, k hsm.Key) ([]byte, error) {
	if k.Usage == hsm.MACKey {
		return s.MAC(ctx, k.ID, []byte("input"))
	}
	return s.Rewrap(ctx, hsm.Rewrap{From: k.ID, To: k.ID, Wrapped: wrappedUnder[k.ID]})
}

var wrappedUnder = map[hsm.KeyID][]byte{}

func (f *fragile) MAC(ctx context.Context, key hsm.KeyID, data []byte) ([]byte, error) {
	if f.away.Load() {
		return nil, hsm.ErrUnavailable
	}
	return f.Token.MAC(ctx, key, data)
}

func (f *fragile) Rewrap(ctx context.Context, r hsm.Rewrap) ([]byte, error) {
	if f.away.Load() {
		return nil, hsm.ErrUnavailable
	}
	return f.Token.Rewrap(ctx, r)
}

// A token that holds another key under the same id gets no calls, at whichever moment it comes.
func TestOtherKey(t *testing.T) {
	for _, usage := range []hsm.Usage{hsm.MACKey, hsm.WrapKey} {
		for name, come := range map[string]func(t *testing.T, s *Set, second *fragile) *Set{
			"at the start": func(_ *testing.T, s *Set, _ *fragile) *Set {
				return New(Config{Members: members(s), Timeout: limit, Logger: s.log})
			},
			"back from an outage": func(_ *testing.T, s *Set, second *fragile) *Set {
				second.returns.Add(1)
				return s
			},
			"back from maintenance": func(t *testing.T, s *Set, _ *fragile) *Set {
				if err := s.Drain("second", true); err != nil {
					t.Fatal(err)
				}
				if err := s.Drain("second", false); !errors.Is(err, errOtherKey) || !s.Drained("second") {
					t.Errorf("resuming it: %v, want errOtherKey", err)
				}
				return s
			},
		} {
			t.Run(fmt.Sprint(usage, " ", name), func(t *testing.T) {
				s, first, second := newSet(t)
				k := keyOf(secretKeys(t, s), usage)
				if usage == hsm.WrapKey {
					wrappedUnder[k.ID] = keep(t, first, k)
				}
				want, err := use(t.Context(), s, k)
				if err != nil {
					t.Fatal(err)
				}
				plant(t, second, k)
				s = come(t, s, second)
				if got, err := use(t.Context(), s, k); err != nil || !bytes.Equal(got, want) {
					t.Errorf("with both: %x, %v, want %x", got, err, want)
				}
				first.away.Store(true)
				if got, err := use(t.Context(), s, k); !errors.Is(err, hsm.ErrUnavailable) {
					t.Errorf("with the other key only: %x, %v, want ErrUnavailable", got, err)
				}
				if !s.Drained("second") && !errors.Is(s.Refused("second"), errOtherKey) {
					t.Errorf("Refused: %v, want errOtherKey", s.Refused("second"))
				}
				if s.Refused("first") != nil || s.Ready() {
					t.Errorf("first is refused: %v, ready %v", s.Refused("first"), s.Ready())
				}
			})
		}
	}
}

func members(s *Set) (all []Member) {
	for _, m := range s.members {
		all = append(all, m.Member)
	}
	return all
}

func keyOf(keys []hsm.Key, usage hsm.Usage) hsm.Key {
	for _, k := range keys {
		if k.Usage == usage {
			return k
		}
	}
	return hsm.Key{}
}

// settled waits until nothing is compared, so that a test can replace a token.
func (s *Set) settled() {
	for s.comparing.Load() {
		runtime.Gosched()
	}
}

// keep returns a secret wrapped under k.
func keep(t *testing.T, f *fragile, k hsm.Key) []byte {
	t.Helper()
	keys, err := f.Keys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var made sample
	if err := (&member{Member: Member{"first", f}}).wrapSample(t.Context(), k, keys, &made); err != nil || made.empty() {
		t.Fatalf("no sample: %v", err)
	}
	return made.wrapped
}

// A token that was refused joins when it has the right key again, and one that is away when it
// answers.
func TestJoinsLater(t *testing.T) {
	s, first, second := newSet(t)
	k := keyOf(secretKeys(t, s), hsm.MACKey)
	s.settled()
	good := second.Clone()
	plant(t, second.Token, k)
	second.returns.Add(1)
	if err := s.compareFor(t, "second"); !errors.Is(err, errOtherKey) {
		t.Fatalf("another key: %v, want errOtherKey", err)
	}
	if _, err := s.Generate(t.Context(), hsm.KeySpec{Label: "mac@2", Usage: hsm.MACKey}); !errors.Is(err, errOtherKey) {
		t.Errorf("a new key beside it: %v, want errOtherKey", err)
	}
	if err := s.Drain("first", true); !errors.Is(err, ErrLast) {
		t.Errorf("Drain of the only token that joined: %v, want ErrLast", err)
	}
	s.settled()
	second.Token = good
	second.returns.Add(1)
	first.away.Store(true)
	if _, err := s.MAC(t.Context(), k.ID, nil); err != nil || s.Refused("second") != nil {
		t.Errorf("the right key again: %v, refused %v", err, s.Refused("second"))
	}
}

func (s *Set) compareFor(t *testing.T, name string) error {
	t.Helper()
	m, err := s.find(name)
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.compare(t.Context(), m)
	return err
}

// An answer of a token that came back during the call does not count.
func TestReturnsDuringCall(t *testing.T) {
	s, first, _ := newSet(t)
	k := keyOf(secretKeys(t, s), hsm.MACKey)
	before, err := s.MAC(t.Context(), k.ID, nil)
	if err != nil {
		t.Fatal(err)
	}
	s.settled()
	s.members[0].Token = returning{first}
	if after, err := s.MAC(t.Context(), k.ID, nil); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the second token was not asked: %x, %v", after, err)
	}
}

// returning is replaced by another token within each MAC.
type returning struct{ *fragile }

func (r returning) MAC(context.Context, hsm.KeyID, []byte) ([]byte, error) {
	r.returns.Add(1)
	return make([]byte, 32), nil
}

// A token that is replaced while its keys are compared gets no call, and one that merely comes back meanwhile gets it.
func TestReplacedWhileCompared(t *testing.T) {
	for name, same := range map[string]bool{"another token": false, "the same token": true} {
		s, first, second := newSet(t)
		k := keyOf(secretKeys(t, s), hsm.MACKey)
		want, err := s.MAC(t.Context(), k.ID, nil)
		if err != nil {
			t.Fatal(err)
		}
		s.settled()
		s.members[1].Token = &replaced{fragile: second, same: same}
		second.returns.Add(1)
		first.away.Store(true)
		switch got, err := s.MAC(t.Context(), k.ID, nil); {
		case same && (err != nil || !bytes.Equal(got, want)):
			t.Errorf("%s: %x, %v, want %x", name, got, err, want)
		case !same && !errors.Is(err, hsm.ErrUnavailable):
			t.Errorf("%s: %x, %v, want ErrUnavailable", name, got, err)
		}
	}
}

// A token that comes back again and again while it is compared does not join.
func TestNeverTheSame(t *testing.T) {
	s, _, second := newSet(t)
	secretKeys(t, s)
	s.settled()
	s.members[1].Token = restless{second}
	second.returns.Add(1)
	if err := s.compareFor(t, "second"); !errors.Is(err, errJoining) || s.members[1].joined() {
		t.Errorf("%v, joined %v, want errJoining", err, s.members[1].joined())
	}
}

type restless struct{ *fragile }

func (r restless) MAC(ctx context.Context, key hsm.KeyID, data []byte) ([]byte, error) {
	r.returns.Add(1)
	return r.fragile.MAC(ctx, key, data)
}

// replaced goes away and comes back right after its first MAC, as the same token or as another one.
type replaced struct {
	*fragile
	same, left bool
}

func (r *replaced) MAC(ctx context.Context, key hsm.KeyID, data []byte) ([]byte, error) {
	if r.left && !r.same {
		return make([]byte, 32), nil
	}
	mac, err := r.fragile.MAC(ctx, key, data)
	if !r.left {
		r.left = true
		r.returns.Add(1)
	}
	return mac, err
}

// silent has no key with which a sample of a WrapKey can be made, and counts what it is asked about one.
type silent struct {
	*fragile
	asked atomic.Int64
}

func (m *silent) Keys(ctx context.Context) ([]hsm.Key, error) {
	keys, err := m.fragile.Keys(ctx)
	return slices.DeleteFunc(keys, func(k hsm.Key) bool { return k.Usage == hsm.DeriveP256 }), err
}

func (m *silent) MACWrapped(ctx context.Context, wrap hsm.KeyID, wrapped, data []byte) ([]byte, error) {
	m.asked.Add(1)
	if m.away.Load() {
		return nil, hsm.ErrUnavailable
	}
	return m.fragile.MACWrapped(ctx, wrap, wrapped, data)
}

// Of a token that cannot show its WrapKey and another that can, both serve only if they have the same key.
func TestCannotShow(t *testing.T) {
	for name, c := range map[string]struct{ same, away bool }{
		"same key":                               {same: true},
		"another key":                            {},
		"same key, away when the other joins":    {same: true, away: true},
		"another key, away when the other joins": {away: true},
	} {
		t.Run(name, func(t *testing.T) {
			s, first, second := newSet(t)
			k := keyOf(secretKeys(t, s), hsm.WrapKey)
			s.settled()
			if !c.same {
				plant(t, second.Token, k)
			}
			mute := &silent{fragile: first}
			s = New(Config{Members: []Member{{"first", mute}, {"second", second}}, Timeout: limit, Logger: s.log})
			if err := s.compareFor(t, "first"); err != nil || mute.asked.Load() != 0 {
				t.Fatalf("alone: %v, asked %d times", err, mute.asked.Load())
			}
			first.away.Store(c.away)
			second.returns.Add(1)
			errSecond := s.compareFor(t, "second")
			first.away.Store(false)
			errFirst := s.compareFor(t, "first")
			if mute.asked.Load() == 0 {
				t.Error("the key was never compared")
			}
			refused := errors.Is(errFirst, errOtherKey) != errors.Is(errSecond, errOtherKey)
			if c.same && (errFirst != nil || errSecond != nil) || !c.same && !refused {
				t.Errorf("first %v, second %v", errFirst, errSecond)
			}
			if !c.same && !c.away && errFirst != nil {
				t.Errorf("the token that served is refused: %v", errFirst)
			}
		})
	}
}

// A new WrapKey is compared also on a token that cannot show it.
func TestCannotShowNewKey(t *testing.T) {
	_, first, second := newSet(t)
	mute := &silent{fragile: first}
	s := New(Config{Members: []Member{{"first", mute}, {"second", second}}, Timeout: limit, Logger: hclog.NewNullLogger()})
	_, err := s.Generate(t.Context(), hsm.KeySpec{Label: "wrap@1", Usage: hsm.WrapKey})
	if err != nil || mute.asked.Load() == 0 {
		t.Errorf("%v, asked %d times", err, mute.asked.Load())
	}
}

// wrong errs in some answers, but has the right keys.
type wrong struct {
	*fragile
	left int
}

func (w *wrong) MAC(ctx context.Context, key hsm.KeyID, data []byte) ([]byte, error) {
	if w.left--; w.left >= 0 {
		return make([]byte, 32), nil
	}
	return w.fragile.MAC(ctx, key, data)
}

// A token that errs now and then does not count as one with another key.
func TestErringTokenJoins(t *testing.T) {
	s, _, second := newSet(t)
	secretKeys(t, s)
	s.settled()
	s.members[1].Token = &wrong{second, hsm.Tries - 1}
	second.returns.Add(1)
	if err := s.compareFor(t, "second"); err != nil {
		t.Errorf("%d wrong answers: %v", hsm.Tries-1, err)
	}
	s.settled()
	s.members[1].Token = &wrong{second, hsm.Tries}
	second.returns.Add(1)
	if err := s.compareFor(t, "second"); !errors.Is(err, errOtherKey) {
		t.Errorf("%d wrong answers: %v, want errOtherKey", hsm.Tries, err)
	}
}

// A token that hangs while it is compared delays no call that the other can answer.
func TestHangsWhileCompared(t *testing.T) {
	s, _, second := newSet(t)
	k := keyOf(secretKeys(t, s), hsm.MACKey)
	stop := make(chan struct{})
	defer close(stop)
	s.settled()
	s.members[1].Token = hanging{second, stop}
	second.returns.Add(1)
	start := time.Now()
	for range 10 {
		if _, err := s.MAC(t.Context(), k.ID, nil); err != nil {
			t.Fatal(err)
		}
	}
	if took := time.Since(start); took > limit {
		t.Errorf("ten calls took %s", took)
	}
}

type hanging struct {
	*fragile
	stop chan struct{}
}

func (h hanging) Keys(ctx context.Context) ([]hsm.Key, error) {
	select {
	case <-h.stop:
	case <-ctx.Done():
	}
	return nil, hsm.ErrUnavailable
}
