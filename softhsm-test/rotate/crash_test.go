package rotate

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"countersign/softhsm-test/harness"
)

// killRounds is how often each key is rotated with a kill in each of its steps.
const killRounds = 2

// longestStep bounds the random time from when a step may have reached the daemon to the
// kill: about what the slowest takes, so that kills fall before, within and after it.
const longestStep = 100 * time.Millisecond

// killAll kills the daemon within every step of every key.
func (s *stage) killAll(ctx context.Context) {
	for _, m := range []*harness.Machine{s.strict, s.asleep} {
		harness.Must(m.Stop())
	}
	var k kills
	for range s.times(killRounds) {
		for _, t := range s.turns {
			s.killTurn(ctx, &k, t)
		}
	}
	s.Say("%d kills: %d before the step was stored, %d of them with a key already made, %d after", k.before+k.after, k.before, k.made, k.after)
}

// kills counts where they fell.
type kills struct {
	before, made, after int

	reach time.Duration // half of what a command takes that does nothing
}

// killTurn is one rotation with a kill in each step. The version that comes next is
// known by the dry run.
func (s *stage) killTurn(ctx context.Context, k *kills, t turn) {
	name := t.name
	old := s.active(ctx, name)
	begun := time.Now()
	planned, r := s.keys(ctx, "rotate", name, "--dry-run")
	k.reach = time.Since(begun) / 2
	if len(planned) == 0 {
		harness.Fail("key rotate %s --dry-run: exit code %d: %s", name, r.Code, r.Stderr)
	}
	next := nextOf(name, planned)
	steps := [][]string{{"rotate", name}, {"activate", next.ref()}}
	if name == "root" {
		steps[1] = append(steps[1], "--yes")
	}
	if t.retire {
		steps = append(steps, []string{"retire", old.ref(), "--early", "--yes"})
	}
	for _, step := range steps {
		s.killStep(ctx, k, step)
	}
	in := s.active(ctx, name)
	s.Check(in.Version == next.Version, "%s is active after a rotation to %s", in.ref(), next.ref())
}

// killStep begins a step, kills the daemon at some moment, starts it again, repeats the
// step until it is taken, and holds that it was taken once, that nothing is left over,
// and that a phone is served.
func (s *stage) killStep(ctx context.Context, k *kills, step []string) {
	before := s.steps(ctx)
	begun := make(chan error, 1)
	go func() {
		begun <- harness.Try(func() { s.keys(ctx, step...) })
	}()
	timer := time.NewTimer(k.reach + time.Duration(s.random.Int64N(int64(longestStep))))
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
	harness.Do(errors.Join(s.KillAll(ctx), <-begun))
	harness.Do(s.Restart(ctx))
	s.where(ctx, k, before)
	s.repeat(ctx, step)
	after := s.steps(ctx)
	s.Check(after == before+1, "%v: %d audit records, want 1", step, after-before)
	objects, rows := s.countObjects(ctx)
	s.Check(objects == rows, "after %v the token has %d objects, the registry %d", step, objects, rows)
	r := s.authorize(ctx, "crash", s.Link)
	s.Check(r.Code == 0, "authorization after %v: exit code %d: %s", step, r.Code, r.Stderr)
}

func (s *stage) repeat(ctx context.Context, step []string) {
	var last harness.Result
	err := harness.Until(ctx, fmt.Sprintf("the step %v", step), func() (ok bool, err error) {
		_, last = s.keys(ctx, step...)
		return last.Code == 0, nil
	})
	if err != nil {
		harness.Fail("%w: exit code %d: %s", err, last.Code, last.Stderr)
	}
}

// steps counts the audit records of keys, except the ones of resealed records.
func (s *stage) steps(ctx context.Context) (n int) {
	for _, r := range harness.Must(s.Records(ctx)) {
		if r.Kind == "key" && r.Fields["event"] != "resealed" {
			n++
		}
	}
	return n
}

// where notes at which point the step was killed.
func (s *stage) where(ctx context.Context, k *kills, before int) {
	now := s.steps(ctx)
	if now > before {
		k.after++
		return
	}
	k.before++
	objects, rows := s.countObjects(ctx)
	if objects > rows {
		k.made++
	}
}

// countObjects counts the private and secret keys that the token has, by pkcs11-tool,
// and those that it has to have by the registry. A key pair that was cut off while the
// module wrote it has no name, and is none.
func (s *stage) countObjects(ctx context.Context) (objects, rows int) {
	keys, _ := s.keys(ctx, "list")
	ids := map[string]bool{}
	for _, k := range keys {
		ids[k.ID] = true
	}
	dir := filepath.Join(s.dir, "dev")
	pin := strings.TrimSpace(string(harness.Must(os.ReadFile(filepath.Join(dir, "pin")))))
	list := harness.Objects(ctx, pin, []string{"SOFTHSM2_CONF=" + filepath.Join(dir, "softhsm2.conf")})
	versioned := func(o harness.Object) bool { return strings.Contains(o.Label, "@") }
	return len(list) - len(slices.DeleteFunc(slices.Clone(list), versioned)), len(ids)
}
