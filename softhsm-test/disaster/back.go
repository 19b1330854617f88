package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"countersign/softhsm-test/rig"
)

// killRounds is how often a restore is killed, quickly so; longestRestore bounds the random
// time from its begin to the kill: about what it takes.
const (
	killRounds     = 10
	quickRounds    = 2
	longestRestore = 1200 * time.Millisecond
)

// kills kills restores at random moments. Each is followed by one that goes on from
// whatever the one before left; a store that is in place already is taken away.
func (s *stage) kills(ctx context.Context) error {
	rounds, began, marked, done := killRounds, 0, 0, 0
	if s.quick {
		rounds = quickRounds
	}
	for range rounds {
		if err := s.kill(ctx); err != nil {
			return err
		}
		labels, err := s.objects(ctx)
		if err != nil {
			return err
		}
		switch {
		case exists(s.path("state", "countersign.db")):
			done++
			if err := s.startsOnce(ctx); err != nil {
				return err
			}
			if err := errors.Join(os.RemoveAll(s.path("state")), s.newToken(ctx)); err != nil {
				return err
			}
		case exists(s.path("state", "restoring")):
			marked++
			if err := s.refusesMeanwhile(ctx); err != nil {
				return err
			}
		default:
			began++
			s.Check(len(labels) == 0, "without a mark the token has %v", labels)
		}
	}
	s.Say("%d kills: %d before the token was touched, %d while keys came, %d after", rounds, began, marked, done)
	return nil
}

// startsOnce: a store that is in place is whole, and what the kill left is tidied up.
func (s *stage) startsOnce(ctx context.Context) error {
	if err := s.serve(ctx); err != nil {
		return err
	}
	if err := s.origins(ctx); err != nil {
		return err
	}
	s.Check(!exists(s.path("state", "restoring")), "the mark of the restore is left")
	_, err := s.Stop()
	return err
}

func (s *stage) kill(ctx context.Context) error {
	d, err := s.Config.Bin.Start(rig.Call{Program: "countersignd", Args: s.daemonArgs(s.keyed().args()), Env: s.env()})
	if err != nil {
		return err
	}
	timer := time.NewTimer(time.Duration(s.random.Int64N(int64(longestRestore))))
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
	children, err := d.Children()
	if err := errors.Join(err, d.Kill()); err != nil {
		return err
	}
	for _, c := range children {
		if err := c.Wait(ctx); err != nil {
			return err
		}
	}
	return nil
}

// refusesMeanwhile: where a restore was cut off nothing else begins.
func (s *stage) refusesMeanwhile(ctx context.Context) error {
	for _, command := range []string{"init", "serve"} {
		r, err := s.countersignd(ctx, command)
		if err != nil {
			return err
		}
		s.Check(r.Code == 1, "%s after a restore that was cut off: exit code %d, want 1: %s", command, r.Code, r.Stderr)
	}
	return nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

// restore brings the appliance back, once.
func (s *stage) restore(ctx context.Context) error {
	f := s.good()
	if s.broken == "share" {
		s.Say("(BREAK=share: a bit of a share is flipped)")
		if err := s.flip(&f.shares[0], -10); err != nil {
			return err
		}
	}
	if s.broken == "database" {
		s.Say("(BREAK=database: a bit of the database is flipped)")
		if err := s.withSig(&f, s.flip); err != nil {
			return err
		}
	}
	begun := time.Now()
	r, err := s.countersignd(ctx, f.args()...)
	if err != nil {
		return err
	}
	if r.Code != 0 {
		return fmt.Errorf("countersignd restore: exit code %d: %s", r.Code, r.Stderr)
	}
	s.Say("restored in %v", time.Since(begun).Round(10*time.Millisecond))
	for _, says := range []string{" client/otto revoked", ", signed by decision@6 of "} {
		s.Check(strings.Contains(r.Stdout, says), "the report does not say %q: %s", says, r.Stdout)
	}
	s.Check(!exists(s.path("state", "restoring")) && !exists(s.path("state", "countersign.db.restoring")), "something of the restore is left in the state")
	r, err = s.countersignd(ctx, f.args()...)
	s.Check(err == nil && r.Code == 1, "a second restore: exit code %d, want 1: %v %s", r.Code, err, r.Stderr)
	if err := s.serve(ctx); err != nil {
		return err
	}
	return s.origins(ctx)
}

// origins: the token has the registry's keys and no other, and both tell that they
// were restored.
func (s *stage) origins(ctx context.Context) error {
	r, err := s.must(ctx, "key", "list", "-o", "json")
	if err != nil {
		return err
	}
	var keys []struct{ Name, ID, Origin string }
	if err := json.Unmarshal([]byte(r.Stdout), &keys); err != nil {
		return err
	}
	var ids []string
	for _, k := range keys {
		s.Check(k.Origin == "restored", "%s has the origin %q", k.Name, k.Origin)
		if !slices.Contains(ids, k.ID) {
			ids = append(ids, k.ID)
		}
	}
	all, err := s.list(ctx)
	if err != nil {
		return err
	}
	s.Check(len(all) == len(ids), "the token has %d keys, the registry %d", len(all), len(ids))
	for _, o := range all {
		s.Check(slices.Contains(ids, o.id), "%s, %s, is not in the registry", o.label, o.id)
		s.Check(o.access == "sensitive", "access to %s is %q: not what a key is that came by unwrapping", o.label, o.access)
	}
	r, err = s.Ctl(ctx, "key", "attest")
	s.Check(err == nil && (r.Code == 0 || r.Code == exitUnavailable), "key attest: exit code %d: %v %s", r.Code, err, r.Stderr)
	return s.recorded(ctx)
}

// exitUnavailable is that of key attest where the token's driver tells no attributes.
const exitUnavailable = 69

// recorded: the audit says that there was a restore.
func (s *stage) recorded(ctx context.Context) error {
	records, err := s.Records(ctx)
	if err != nil {
		return err
	}
	n := 0
	for _, r := range records {
		if r.Kind == "store" && r.Fields["event"] == "restored" {
			n++
		}
	}
	s.Check(n == 1, "%d records of a restore", n)
	return nil
}

// again: all who were enrolled go on; what the gap took is what RECOVERY.md says.
func (s *stage) again(ctx context.Context) error {
	if err := s.everybody(ctx); err != nil {
		return err
	}
	if err := s.gap(ctx); err != nil {
		return err
	}
	if _, err := s.gate.Stop(); err != nil {
		return err
	}
	if err := s.gate.Restart(ctx); err != nil {
		return err
	}
	if err := s.authorize(ctx, s.gate, authorization{"dora", 3, 0}); err != nil {
		return err
	}
	for _, step := range [][]string{{"key", "rotate", "kem"}, {"key", "activate", "kem"}, {"key", "backup", "--out", s.path("keys.2")}, {"store", "backup", "--out", s.path("store.2")}} {
		if _, err := s.must(ctx, step...); err != nil {
			return err
		}
	}
	if err := s.authorize(ctx, s.door, authorization{"alice", 1, 0}); err != nil {
		return err
	}
	return s.acted()
}

// gap: what waited is denied, who came after the copy comes again, and who was revoked
// after it is revoked again.
func (s *stage) gap(ctx context.Context) error {
	r, err := s.phone(ctx, "frank", "approve", "--link", s.door.Link, "--yes", "--password-file", s.path("password"))
	s.Check(err == nil && r.Code == denied, "approving what waited before: exit code %d, want %d: %v %s", r.Code, denied, err, r.Stderr)
	r, err = s.phone(ctx, "erin", "status", "--last", "--link", s.door.Link)
	s.Check(err == nil && r.Code == denied, "what became of it: exit code %d, want %d: %v %s", r.Code, denied, err, r.Stderr)
	if err := s.authorize(ctx, s.door, authorization{"gus", 1, denied}); err != nil {
		return err
	}
	r, err = s.phone(ctx, "hugo", "enrol", "--url", s.URL, "--no-password", s.code)
	s.Check(err == nil && r.Code != 0, "an activation code from before was taken: %v %s", err, r.Stdout)
	if err := s.enrol(ctx, person{name: "hugo"}); err != nil {
		return err
	}
	if err := os.RemoveAll(s.path("phone-gus")); err != nil {
		return err
	}
	if err := s.enrol(ctx, person{name: "gus"}); err != nil {
		return err
	}
	if _, err := s.must(ctx, "client", "revoke", "mallory", "--yes"); err != nil {
		return err
	}
	for _, a := range []authorization{{"gus", 1, 0}, {"mallory", 1, denied}} {
		if err := s.authorize(ctx, s.door, a); err != nil {
			return err
		}
	}
	return nil
}
