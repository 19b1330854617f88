package failover

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"countersign/hsm"
	"countersign/hsm/internal/kwp"
)

// This file compares the secret keys of the members. The id of a key pair is the hash of its
// public key, and the pool proves the private half. The id of a secret key proves nothing. With
// another value of mac no seal verifies, and with another value of wrap no verifier unwraps.

// errOtherKey means that a secret key of a token has another value than the key with the
// same id on a token that joined before. The token gets no calls. It wraps
// [hsm.ErrUnavailable].
var errOtherKey = fmt.Errorf("the token has another key under the same id, and gets no calls: %w", hsm.ErrUnavailable)

// errJoining means that a token is being compared while another one serves.
var errJoining = fmt.Errorf("the keys of the token are being compared: %w", hsm.ErrUnavailable)

// retryRefused is the time after which a token that did not join is compared again.
const retryRefused = 10 * time.Second

// sampleText is the input of samples. It has no meaning in any protocol of the appliance.
const sampleText = "countersign same key v1"

// standing is the outcome of the last comparison of a member.
type standing struct {
	returns uint64      // Token.Returns before it
	unshown []hsm.KeyID // the member made no sample of them, and there was none
	err     error       // nil: it joined; [errOtherKey]: it did not
	at      time.Time
}

// sample has outputs of a secret key. Another token with the same key gives the same outputs.
type sample struct {
	from    string // the name of the member
	mac     []byte // of a MACKey: over sampleText
	wrapped []byte // of a WrapKey: secret, wrapped
	secret  [32]byte
}

func (s sample) empty() bool { return s.mac == nil && s.wrapped == nil }

// samples has one sample for each secret key that a member joined with.
type samples struct {
	mu sync.Mutex // guards of
	of map[hsm.KeyID]sample
}

func (s *samples) get(id hsm.KeyID) (sample, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	known, ok := s.of[id]
	return known, ok
}

// any reports whether one of the keys has a sample.
func (s *samples) any(ids []hsm.KeyID) bool {
	return slices.ContainsFunc(ids, func(id hsm.KeyID) bool { _, ok := s.get(id); return ok })
}

// add stores the first sample of a key. It returns false if there is one.
func (s *samples) add(id hsm.KeyID, made sample) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.of[id]; ok {
		return false
	}
	s.of[id] = made
	return true
}

func (s *samples) remove(id hsm.KeyID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.of, id)
}

// due reports whether a member with this standing has to be compared.
func (st *standing) due() bool {
	return st == nil || st.err != nil && time.Since(st.at) >= retryRefused
}

// holds reports whether a comparison still shows the member's keys: it did not come back since, and no key has its
// first sample since.
func (m *member) holds(st *standing) bool {
	return st.returns == m.Returns() && !m.samples.any(st.unshown)
}

// compared returns the outcome of the last comparison if it holds, or nil.
func (m *member) compared() *standing {
	if st := m.standing.Load(); st != nil && m.holds(st) {
		return st
	}
	return nil
}

// joined reports whether the member's keys were compared, and are the set's.
func (m *member) joined() bool {
	st := m.compared()
	return st != nil && st.err == nil
}

// refused returns [errOtherKey] if the member did not join.
func (m *member) refused() error {
	if st := m.compared(); st != nil {
		return st.err
	}
	return nil
}

// due reports whether the member's keys have to be compared.
func (m *member) due() bool { return m.compared().due() }

// Refused returns why a member does not join, or nil. The error wraps [errOtherKey].
func (s *Set) Refused(name string) error {
	m, err := s.find(name)
	if err != nil {
		return nil
	}
	s.compareDue()
	return m.refused()
}

// admit returns the standing with which the member may get a call, or nil if it is the only one and is compared with
// none. It starts the comparison of members that came back, and waits for it if wait is set or no other member serves.
func (s *Set) admit(ctx context.Context, m *member, wait bool) (*standing, error) {
	if len(s.members) == 1 {
		return nil, nil
	}
	s.compareDue()
	switch st := m.compared(); {
	case st != nil:
		return st, st.err
	case !wait && s.othersServe(m):
		return nil, errJoining
	}
	return s.compare(ctx, m)
}

// anyDue reports whether a member can and should be compared.
func (s *Set) anyDue() bool {
	for _, m := range s.members {
		if m.due() && !m.drained.Load() && m.Ready() {
			return true
		}
	}
	return false
}

// compareDue compares the members that are due, one after the other, beside the caller.
func (s *Set) compareDue() {
	if !s.anyDue() || !s.comparing.CompareAndSwap(false, true) {
		return
	}
	go func() {
		defer s.comparing.Store(false)
		for _, m := range s.members {
			if m.due() && !m.drained.Load() && m.Ready() {
				s.compareLater(m)
			}
		}
	}()
}

// compareLater compares a member without the deadline of a caller.
func (s *Set) compareLater(m *member) {
	ctx, cancel := s.background()
	defer cancel()
	if _, err := s.compare(ctx, m); err != nil && !errors.Is(err, errOtherKey) {
		s.log.Warn("keys of the token could not be compared", "token", m.Name, "error", err)
	}
}

// background returns a context for work that no caller waits for.
func (s *Set) background() (context.Context, context.CancelFunc) {
	if s.timeout == 0 {
		return context.WithCancel(context.Background())
	}
	return context.WithTimeout(context.Background(), 10*s.timeout)
}

// compare compares the secret keys of a member with the samples, if that is due, and stores its
// standing. The error is errOtherKey, or an error of the member, which stays due then. If the outcome
// does not hold, as for a member that came back meanwhile, compare begins anew.
func (s *Set) compare(ctx context.Context, m *member) (*standing, error) {
	select {
	case m.turn <- struct{}{}:
		defer func() { <-m.turn }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	for range hsm.Tries {
		if st := m.compared(); !st.due() { // another caller has compared it
			return st, st.err
		}
		st := &standing{returns: m.Returns()}
		st.unshown, st.err = s.compareKeys(ctx, m)
		if st.err != nil && !errors.Is(st.err, errOtherKey) {
			return nil, st.err
		}
		if m.holds(st) {
			return st, s.settle(m, st)
		}
	}
	return nil, errJoining
}

// settle stores the standing of a member, and returns its error.
func (s *Set) settle(m *member, st *standing) error {
	st.at = time.Now()
	before := m.standing.Swap(st)
	switch {
	case st.err != nil && (before == nil || before.err == nil):
		s.log.Error("token does not join: it holds another key under the same id", "token", m.Name, "error", st.err)
	case st.err == nil && before != nil && before.err != nil:
		s.log.Info("token joins", "token", m.Name)
	}
	return st.err
}

// compareKeys compares all secret keys of a member, and returns those that it did not show.
func (s *Set) compareKeys(ctx context.Context, m *member) (unshown []hsm.KeyID, err error) {
	keys, err := m.Keys(ctx)
	if err != nil {
		return nil, err
	}
	for _, k := range keys {
		shown, err := s.compareKey(ctx, m, k, keys)
		if err != nil {
			return nil, fmt.Errorf("key %q: %w", k.Label, err)
		}
		if !shown {
			s.log.Warn("token cannot show which key it has: the key is compared as soon as another token can",
				"token", m.Name, "key", k.Label)
			unshown = append(unshown, k.ID)
		}
	}
	return unshown, nil
}

// compareKey compares one secret key with its sample, or makes the sample. shown is false if there is
// still none.
func (s *Set) compareKey(ctx context.Context, m *member, k hsm.Key, all []hsm.Key) (shown bool, err error) {
	if k.Usage != hsm.MACKey && k.Usage != hsm.WrapKey {
		return true, nil
	}
	known, ok := s.samples.get(k.ID)
	if !ok {
		made, err := m.sample(ctx, k, all)
		if err != nil || made.empty() {
			return false, err
		}
		if err := s.confirm(ctx, m, k, made); err != nil || s.samples.add(k.ID, made) {
			return true, err
		}
		known, _ = s.samples.get(k.ID)
	}
	return true, m.matches(ctx, k, known)
}

// confirm compares the first sample of a key with the members that joined without showing it: they have served, and
// stay. One that cannot answer is compared before its next call.
func (s *Set) confirm(ctx context.Context, m *member, k hsm.Key, made sample) error {
	for _, o := range s.members {
		if st := o.compared(); o == m || o.drained.Load() || st == nil || !slices.Contains(st.unshown, k.ID) {
			continue
		}
		made.from = o.Name // for the error, which is about m
		if err := o.matches(ctx, k, made); errors.Is(err, errOtherKey) {
			return err
		}
	}
	return nil
}

// matches returns errOtherKey if the member's key is not the one of a sample.
func (m *member) matches(ctx context.Context, k hsm.Key, known sample) error {
	for range hsm.Tries { // a token that errs once has no other key
		same, err := m.makes(ctx, k, known)
		if err != nil || same {
			return err
		}
	}
	return fmt.Errorf("compared with token %s: %w", known.from, errOtherKey)
}

// sample makes a sample of a key, and has the member confirm it. The sample of a WrapKey needs a
// DeriveP256 key of the member; without one it is empty.
func (m *member) sample(ctx context.Context, k hsm.Key, all []hsm.Key) (sample, error) {
	for range hsm.Tries {
		made := sample{from: m.Name}
		var err error
		if k.Usage == hsm.MACKey {
			made.mac, err = m.Token.MAC(ctx, k.ID, []byte(sampleText))
		} else {
			err = m.wrapSample(ctx, k, all, &made)
		}
		if lacks(err) || err == nil && made.empty() {
			return sample{}, nil
		}
		if err != nil {
			return sample{}, err
		}
		if same, err := m.makes(ctx, k, made); err != nil || same {
			return made, err
		}
	}
	return sample{}, fmt.Errorf("different answers to one question: %w", hsm.ErrGarbled)
}

// wrapSample has a random secret imported under a WrapKey, as a password verifier is.
func (m *member) wrapSample(ctx context.Context, k hsm.Key, all []hsm.Key, into *sample) error {
	for _, with := range all {
		recipient, err := with.ECDH()
		if with.Usage != hsm.DeriveP256 || err != nil {
			continue
		}
		ephemeral, err := ecdh.P256().GenerateKey(rand.Reader)
		if err != nil {
			return err
		}
		z, err := ephemeral.ECDH(recipient)
		if err != nil {
			return err
		}
		_, _ = rand.Read(into.secret[:]) // never fails, crypto/rand
		label := sha256.Sum256([]byte(sampleText))
		kek, err := kwp.KEK(z, label)
		if err != nil {
			return err
		}
		sent, err := kwp.Wrap(kek, into.secret[:])
		if err != nil {
			return err
		}
		into.wrapped, err = m.Token.Import(ctx, hsm.Import{
			Enrol: with.ID, Wrap: k.ID, Ephemeral: ephemeral.PublicKey(), Context: label, Wrapped: sent,
		})
		return err
	}
	return nil
}

// makes reports whether the member's key gives the outputs of the sample.
func (m *member) makes(ctx context.Context, k hsm.Key, of sample) (bool, error) {
	if k.Usage == hsm.MACKey {
		mac, err := m.Token.MAC(ctx, k.ID, []byte(sampleText))
		if lacks(err) {
			return true, nil // it cannot use the key at all
		}
		return err == nil && hmac.Equal(mac, of.mac), err
	}
	got, err := m.Token.MACWrapped(ctx, k.ID, of.wrapped, []byte(sampleText))
	switch {
	case errors.Is(err, hsm.ErrInput): // it does not unwrap
		return false, nil
	case lacks(err):
		return true, nil
	case err != nil:
		return false, err
	}
	want := hmac.New(sha256.New, of.secret[:])
	want.Write([]byte(sampleText))
	return bytes.Equal(got, want.Sum(nil)), nil
}

// proveCopies compares a new secret key of all members. One that cannot show it is compared after the others, and if
// none can, again before its next call.
func (s *Set) proveCopies(ctx context.Context, k hsm.Key) error {
	if len(s.members) == 1 || k.Usage.Pair() {
		return nil
	}
	for i, turn := 0, slices.Clone(s.members); i < len(turn); i++ {
		m := turn[i]
		shown := true
		keys, err := m.Keys(ctx)
		if err == nil {
			shown, err = s.compareKey(ctx, m, k, keys)
		}
		switch {
		case err != nil:
			s.samples.remove(k.ID)
			return fmt.Errorf("comparing key %q on token %s: %w", k.Label, m.Name, err)
		case shown:
		case i < len(s.members):
			turn = append(turn, m)
		default:
			m.standing.Store(nil)
		}
	}
	return nil
}

// lacks reports whether a token cannot use a key, or no longer has it.
func lacks(err error) bool { return errors.Is(err, hsm.ErrUnsupported) || errors.Is(err, hsm.ErrKey) }
