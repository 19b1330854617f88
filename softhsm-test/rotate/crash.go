package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"countersign/softhsm-test/rig"
)

// killRounds is how often each key is rotated with a kill in each of its steps.
const killRounds = 2

// longestStep bounds the random time from when a step may have reached the daemon to the
// kill: about what the slowest takes, so that kills fall before, within and after it.
const longestStep = 100 * time.Millisecond

// killAll kills the daemon within every step of every key.
func (s *stage) killAll(ctx context.Context) error {
	for _, m := range []*rig.Machine{s.strict, s.asleep} {
		if _, err := m.Stop(); err != nil {
			return err
		}
	}
	var k kills
	for range s.times(killRounds) {
		for _, t := range s.turns {
			if err := s.killTurn(ctx, &k, t); err != nil {
				return fmt.Errorf("%s: %w", t.name, err)
			}
		}
	}
	s.Say("%d kills: %d before the step was stored, %d of them with a key already made, %d after", k.before+k.after, k.before, k.made, k.after)
	return nil
}

// kills counts where they fell.
type kills struct {
	before, made, after int

	reach time.Duration // half of what a command takes that does nothing
}

// killTurn is one rotation with a kill in each step. The version that comes next is
// known by the dry run.
func (s *stage) killTurn(ctx context.Context, k *kills, t turn) error {
	name := t.name
	old, err := s.active(ctx, name)
	if err != nil {
		return err
	}
	begun := time.Now()
	planned, r, err := s.keys(ctx, "rotate", name, "--dry-run")
	k.reach = time.Since(begun) / 2
	if err != nil || len(planned) == 0 {
		return fmt.Errorf("key rotate %s --dry-run: exit code %d: %s: %w", name, r.Code, r.Stderr, err)
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
		if err := s.killStep(ctx, k, step); err != nil {
			return err
		}
	}
	in, err := s.active(ctx, name)
	s.Check(err == nil && in.Version == next.Version, "%s is active after a rotation to %s: %v", in.ref(), next.ref(), err)
	return err
}

// killStep begins a step, kills the daemon at some moment, starts it again, repeats the
// step until it is taken, and holds that it was taken once, that nothing is left over,
// and that a phone is served.
func (s *stage) killStep(ctx context.Context, k *kills, step []string) error {
	before, err := s.steps(ctx)
	if err != nil {
		return err
	}
	begun := make(chan error, 1)
	go func() {
		_, _, err := s.keys(ctx, step...)
		begun <- err
	}()
	timer := time.NewTimer(k.reach + time.Duration(s.random.Int64N(int64(longestStep))))
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
	if err := errors.Join(s.KillAll(ctx), <-begun); err != nil {
		return err
	}
	if err := s.Restart(ctx); err != nil {
		return err
	}
	if err := s.where(ctx, k, before); err != nil {
		return err
	}
	if err := s.repeat(ctx, step); err != nil {
		return err
	}
	after, err := s.steps(ctx)
	s.Check(err == nil && after == before+1, "%v: %d audit records, want 1: %v", step, after-before, err)
	objects, rows, err := s.countObjects(ctx)
	if err != nil {
		return err
	}
	s.Check(objects == rows, "after %v the token has %d objects, the registry %d", step, objects, rows)
	r, err := s.authorize(ctx, "crash", s.Link)
	s.Check(err == nil && r.Code == 0, "authorization after %v: exit code %d: %v %s", step, r.Code, err, r.Stderr)
	return err
}

func (s *stage) repeat(ctx context.Context, step []string) error {
	var last rig.Result
	err := rig.Until(ctx, fmt.Sprintf("the step %v", step), func() (ok bool, err error) {
		_, last, err = s.keys(ctx, step...)
		return last.Code == 0, err
	})
	if err != nil {
		return fmt.Errorf("%w: exit code %d: %s", err, last.Code, last.Stderr)
	}
	return nil
}

// steps counts the audit records of keys, without those of records that were sealed anew.
func (s *stage) steps(ctx context.Context) (n int, err error) {
	records, err := s.Records(ctx)
	for _, r := range records {
		if r.Kind == "key" && r.Fields["event"] != "resealed" {
			n++
		}
	}
	return n, err
}

// where notes at which point the step was killed.
func (s *stage) where(ctx context.Context, k *kills, before int) error {
	now, err := s.steps(ctx)
	if err != nil {
		return err
	}
	if now > before {
		k.after++
		return nil
	}
	k.before++
	objects, rows, err := s.countObjects(ctx)
	if objects > rows {
		k.made++
	}
	return err
}

// countObjects counts the private and secret keys that the token has, by pkcs11-tool,
// and those that it has to have by the registry. A key pair that was cut off while the
// module wrote it has no name, and is none.
func (s *stage) countObjects(ctx context.Context) (objects, rows int, err error) {
	keys, _, err := s.keys(ctx, "list")
	if err != nil {
		return 0, 0, err
	}
	ids := map[string]bool{}
	for _, k := range keys {
		ids[k.ID] = true
	}
	dir := filepath.Join(s.dir, "dev")
	pin, err := os.ReadFile(filepath.Join(dir, "pin"))
	if err != nil {
		return 0, 0, err
	}
	cmd := exec.CommandContext(ctx, "pkcs11-tool", "--module", "/usr/lib/softhsm/libsofthsm2.so", "--login", "--pin", strings.TrimSpace(string(pin)), "--list-objects")
	cmd.Env = append(os.Environ(), "SOFTHSM2_CONF="+filepath.Join(dir, "softhsm2.conf"))
	out, err := cmd.Output()
	if err != nil {
		return 0, 0, fmt.Errorf("pkcs11-tool: %w", err)
	}
	return countNamed(string(out)), len(ids), nil
}

// countNamed counts the private and secret keys with a label in what pkcs11-tool lists.
func countNamed(list string) (n int) {
	counts := false
	for line := range strings.Lines(list) {
		switch {
		case !strings.HasPrefix(line, " "):
			counts = strings.HasPrefix(line, "Private Key Object") || strings.HasPrefix(line, "Secret Key Object")
		case counts && strings.HasPrefix(strings.TrimSpace(line), "label:") && strings.Contains(line, "@"):
			n++
		}
	}
	return n
}
