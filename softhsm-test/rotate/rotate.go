package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"countersign/protocol/message"
	"countersign/softhsm-test/rig"
)

// errNone is where a list lacks what it should have.
var errNone = errors.New("none in the list")

func now() uint64 { return uint64(time.Now().Unix()) }

// turn is one key.
type turn struct {
	name   string
	times  int  // it is rotated so often
	retire bool // and the version before is retired at once
}

// turns are all keys. Of ca the version before stays: certificates of devices are by it.
var turns = []turn{
	{"decision", 2, true},
	{"kem", 4, true},
	{"client-ca", 2, true},
	{"enrol", 2, true},
	{"ca", 2, false},
	{"mac", 2, true},
	{"wrap", 2, true},
	{"root", 3, false},
}

// rotateAll rotates every key in turn while the load goes on.
func (s *stage) rotateAll(ctx context.Context) error {
	acts, _, err := s.acts()
	if err != nil {
		return err
	}
	l := s.start(ctx)
	for _, t := range s.turns {
		for range s.times(t.times) {
			if err = s.turn(ctx, l, t); err != nil {
				break
			}
		}
		if err != nil {
			break
		}
		s.Say("%s: %d times", t.name, s.times(t.times))
	}
	if endErr := l.end(map[string]int{"acts": len(acts)}); err == nil {
		err = endErr
	}
	return err
}

// times is n, or 1 where it is to be quick.
func (s *stage) times(n int) int {
	if s.quick {
		return 1
	}
	return n
}

// turn rotates one key once: rotate, activate and retire, each with the load passing
// over it.
func (s *stage) turn(ctx context.Context, l *load, t turn) error {
	old, err := s.active(ctx, t.name)
	if err != nil {
		return err
	}
	next, err := s.rotate(ctx, l, t.name)
	if err != nil {
		return err
	}
	if s.wrapped, err = s.verifiers(ctx); err != nil {
		return err
	}
	if err := s.activate(ctx, l, next); err != nil {
		return err
	}
	if err := s.enrolsStill(ctx, l, next); err != nil {
		return err
	}
	if !t.retire {
		_, r, err := s.keys(ctx, "retire", old.ref(), "--yes")
		s.Check(err == nil && r.Code == 1, "retiring %s at once: exit code %d, want 1: %v %s", old.ref(), r.Code, err, r.Stderr)
		return err
	}
	if t.name == "wrap" {
		return s.retireWrap(ctx, l, old)
	}
	return s.retire(ctx, l, old)
}

func (s *stage) active(ctx context.Context, name string) (key, error) {
	keys, r, err := s.keys(ctx, "list")
	for _, k := range keys {
		if k.Name == name && k.State == "active" {
			return k, nil
		}
	}
	return key{}, fmt.Errorf("no version of %s is active: exit code %d: %s: %w", name, r.Code, r.Stderr, cmp.Or(err, errNone))
}

// rotate readies the next version; its dry run has said so.
func (s *stage) rotate(ctx context.Context, l *load, name string) (next key, err error) {
	planned, r, err := s.keys(ctx, "rotate", name, "--dry-run")
	if err != nil || r.Code != 0 {
		return next, fmt.Errorf("key rotate %s --dry-run: exit code %d: %s: %w", name, r.Code, r.Stderr, cmp.Or(err, errNone))
	}
	made, r, err := s.keys(ctx, "rotate", name)
	if err != nil || r.Code != 0 {
		return next, fmt.Errorf("key rotate %s: exit code %d: %s: %w", name, r.Code, r.Stderr, cmp.Or(err, errNone))
	}
	s.Check(slices.EqualFunc(planned, made, sameVersion), "rotate %s: %v, its dry run said %v", name, made, planned)
	return nextOf(name, made), l.passes(ctx)
}

func sameVersion(a, b key) bool { return a.ref() == b.ref() && a.State == b.State }

// nextOf is the version that a rotation readies: of root the lower one, since that
// after it is made too.
func nextOf(name string, made []key) key {
	versions := slices.DeleteFunc(slices.Clone(made), func(k key) bool { return k.Name != name })
	if len(versions) == 0 {
		return key{Name: name}
	}
	return slices.MinFunc(versions, func(a, b key) int { return cmp.Compare(a.Version, b.Version) })
}

func (s *stage) activate(ctx context.Context, l *load, next key) error {
	if err := s.breakBefore(ctx, next); err != nil {
		return err
	}
	args := []string{"activate", next.ref()}
	if next.Name == "root" {
		args = append(args, "--yes")
	}
	_, r, err := s.keys(ctx, args...)
	if err != nil || r.Code != 0 {
		return fmt.Errorf("key activate %s: exit code %d: %s: %w", next.ref(), r.Code, r.Stderr, err)
	}
	in, err := s.active(ctx, next.Name)
	s.Check(err == nil && in.Version == next.Version, "%s is active after activate %s: %v", in.ref(), next.ref(), err)
	return l.passes(ctx)
}

// breakBefore breaks what activate relies on.
func (s *stage) breakBefore(ctx context.Context, next key) error {
	switch {
	case s.broken == "mac" && next.ref() == "mac@2":
		s.Say("(BREAK=mac: mac@1 may be retired before any record is sealed anew)")
	case s.broken == "wrap" && next.ref() == "wrap@2":
		s.Say("(BREAK=wrap: wrap@1 is given up before any verifier is wrapped anew)")
	case s.broken == "cert" && next.ref() == "kem@2":
		s.Say("(BREAK=cert: the KeyCert of kem@2 is spoilt)")
		return s.tamper(ctx, `UPDATE key SET cert = zeroblob(127) WHERE name = 'kem' AND version = 2`)
	}
	return nil
}

// enrolsStill enrols a phone with a password, which then authorizes.
func (s *stage) enrolsStill(ctx context.Context, l *load, next key) error {
	name := fmt.Sprintf("new-%s-%d+", next.Name, next.Version)
	if err := s.enrol(ctx, name); err != nil {
		return err
	}
	r, err := s.authorize(ctx, name, s.Link)
	s.Check(err == nil && r.Code == 0, "%s: exit code %d: %v %s", name, r.Code, err, r.Stderr)
	if r.Code == 0 {
		l.good.Add(1)
		l.newcomers++
	}
	return err
}

// retire ends a version. Records under a mac are made anew in the background, and it
// is refused until they are.
func (s *stage) retire(ctx context.Context, l *load, old key) error {
	_, r, err := s.keys(ctx, "retire", old.ref(), "--yes")
	s.Check(err == nil && r.Code == 1, "retiring %s before its overlap is over: exit code %d, want 1: %v %s", old.ref(), r.Code, err, r.Stderr)
	err = rig.Until(ctx, "retiring "+old.ref(), func() (bool, error) {
		_, r, err := s.keys(ctx, "retire", old.ref(), "--early", "--yes")
		return r.Code == 0, err
	})
	if err != nil {
		return err
	}
	if err := l.passes(ctx); err != nil || old.Name != "kem" {
		return err
	}
	return s.refusesEpoch(ctx, old)
}

// refusesEpoch: an application under a retired kem epoch is answered with a key
// update, which leads on.
func (s *stage) refusesEpoch(ctx context.Context, old key) error {
	if s.broken == "retired" && old.Version == 1 {
		s.Say("(BREAK=retired: kem@1 is accepted after it was retired)")
	}
	kind, answer, err := s.insist.answered(ctx, s.Link)
	if err != nil {
		return err
	}
	s.Check(kind == message.KindKeyUpdate, "an application under %s: answer of kind %#x, want a key update", old.ref(), kind)
	if kind != message.KindKeyUpdate {
		return nil
	}
	if err := s.insist.follow(answer); err != nil {
		return err
	}
	kind, _, err = s.insist.answered(ctx, s.Link)
	s.Check(err == nil && kind == message.KindM2, "after the key update: answer of kind %#x, want a challenge: %v", kind, err)
	return err
}
