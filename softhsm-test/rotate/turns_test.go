package rotate

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"countersign/protocol"
	"countersign/softhsm-test/harness"
)

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

// rotateAll rotates every key in turn while phones authorize.
func (s *stage) rotateAll(ctx context.Context) {
	acts, _ := s.acts()
	l := s.start(ctx)
	err := harness.Try(func() {
		for _, t := range s.turns {
			for range s.times(t.times) {
				s.turn(ctx, l, t)
			}
			s.Say("%s: %d times", t.name, s.times(t.times))
		}
	})
	l.end(len(acts))
	harness.Do(err)
}

// times returns n, or 1 under -short.
func (s *stage) times(n int) int {
	if testing.Short() {
		return 1
	}
	return n
}

// turn rotates one key once: rotate, activate and retire, each with the load passing
// over it.
func (s *stage) turn(ctx context.Context, l *load, t turn) {
	old := s.active(ctx, t.name)
	next := s.rotate(ctx, l, t.name)
	s.wrapped = s.verifiers(ctx)
	s.activate(ctx, l, next)
	s.enrolsStill(ctx, l, next)
	if !t.retire {
		_, r := s.keys(ctx, "retire", old.ref(), "--yes")
		s.Check(r.Code == 1, "retiring %s at once: exit code %d, want 1: %s", old.ref(), r.Code, r.Stderr)
		return
	}
	if t.name == "wrap" {
		s.retireWrap(ctx, l, old)
		return
	}
	s.retire(ctx, l, old)
}

func (s *stage) active(ctx context.Context, name string) key {
	keys, r := s.keys(ctx, "list")
	for _, k := range keys {
		if k.Name == name && k.State == "active" {
			return k
		}
	}
	harness.Fail("no version of %s is active: exit code %d: %s", name, r.Code, r.Stderr)
	return key{}
}

// rotate readies the next version; its dry run has said so.
func (s *stage) rotate(ctx context.Context, l *load, name string) (next key) {
	planned, r := s.keys(ctx, "rotate", name, "--dry-run")
	if r.Code != 0 {
		harness.Fail("key rotate %s --dry-run: exit code %d: %s", name, r.Code, r.Stderr)
	}
	made, r := s.keys(ctx, "rotate", name)
	if r.Code != 0 {
		harness.Fail("key rotate %s: exit code %d: %s", name, r.Code, r.Stderr)
	}
	s.Check(slices.EqualFunc(planned, made, sameVersion), "rotate %s: %v, its dry run said %v", name, made, planned)
	l.passes(ctx)
	return nextOf(name, made)
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

func (s *stage) activate(ctx context.Context, l *load, next key) {
	s.breakBefore(ctx, next)
	args := []string{"activate", next.ref()}
	if next.Name == "root" {
		args = append(args, "--yes")
	}
	_, r := s.keys(ctx, args...)
	if r.Code != 0 {
		harness.Fail("key activate %s: exit code %d: %s", next.ref(), r.Code, r.Stderr)
	}
	in := s.active(ctx, next.Name)
	s.Check(in.Version == next.Version, "%s is active after activate %s", in.ref(), next.ref())
	l.passes(ctx)
}

// breakBefore breaks what activate relies on.
func (s *stage) breakBefore(ctx context.Context, next key) {
	switch {
	case harness.Break() == breakMAC && next.ref() == "mac@2":
		s.Say("(BREAK=mac: mac@1 may be retired before any record is sealed anew)")
	case harness.Break() == breakWrap && next.ref() == "wrap@2":
		s.Say("(BREAK=wrap: wrap@1 is given up before any verifier is wrapped anew)")
	case harness.Break() == breakCert && next.ref() == "kem@2":
		s.Say("(BREAK=cert: the KeyCert of kem@2 is spoilt)")
		s.tamper(ctx, `UPDATE key SET cert = zeroblob(127) WHERE name = 'kem' AND version = 2`)
		return
	}
}

// enrolsStill enrols a phone with a password, which then authorizes.
func (s *stage) enrolsStill(ctx context.Context, l *load, next key) {
	name := fmt.Sprintf("new-%s-%d+", next.Name, next.Version)
	s.enrol(ctx, name)
	r := s.authorize(ctx, name, s.Link)
	s.Check(r.Code == 0, "%s: exit code %d: %s", name, r.Code, r.Stderr)
	if r.Code == 0 {
		l.good.Add(1)
		l.newcomers++
	}
}

// retire ends a version. Records under a mac are made anew in the background, and it
// is refused until they are.
func (s *stage) retire(ctx context.Context, l *load, old key) {
	_, r := s.keys(ctx, "retire", old.ref(), "--yes")
	s.Check(r.Code == 1, "retiring %s before its overlap is over: exit code %d, want 1: %s", old.ref(), r.Code, r.Stderr)
	harness.Do(harness.Until(ctx, "retiring "+old.ref(), func() (bool, error) {
		_, r := s.keys(ctx, "retire", old.ref(), "--early", "--yes")
		return r.Code == 0, nil
	}))
	l.passes(ctx)
	if old.Name == "kem" {
		s.refusesEpoch(ctx, old)
	}
}

// refusesEpoch: an application under a retired kem epoch is answered with a key
// update, which leads on.
func (s *stage) refusesEpoch(ctx context.Context, old key) {
	if harness.Break() == breakRetired && old.Version == 1 {
		s.Say("(BREAK=retired: kem@1 is accepted after it was retired)")
	}
	kind, answer := s.insist.answered(ctx, s.Link)
	s.Check(kind == protocol.KindKeyUpdate, "an application under %s: answer of kind %#x, want a key update", old.ref(), kind)
	if kind != protocol.KindKeyUpdate {
		return
	}
	s.insist.follow(answer)
	kind, _ = s.insist.answered(ctx, s.Link)
	s.Check(kind == protocol.KindM2, "after the key update: answer of kind %#x, want a challenge", kind)
}
