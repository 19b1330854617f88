package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
)

// files is what a restore is given.
type files struct {
	root, backup, database string
	shares                 []string
	rest                   []string
}

// good is enough: a share that Debian's age opened, and one by its passphrase.
func (s *stage) good() files {
	return files{
		root: s.roots[0], backup: s.path("keys.backup"), database: s.path("store.backup"), shares: []string{s.path("share-1.txt"), s.share(3)},
		rest: []string{"--passphrase-file", s.path("passphrase")},
	}
}

// keyed takes no passphrase, whose stretching takes a second, and knows the second root.
func (s *stage) keyed() files {
	f := s.good()
	f.root, f.shares, f.rest = s.roots[1], []string{s.path("share-1.txt"), s.share(2)}, []string{"--identity", s.path("ben.key")}
	return f
}

func (f files) args() []string {
	args := append([]string{"restore", "--backup", f.backup, "--database", f.database}, f.rest...)
	if f.root != "" {
		args = append(args, "--root", f.root)
	}
	for _, share := range f.shares {
		args = append(args, "--share", share)
	}
	return args
}

// refusal is a restore that must fail, and what it must say.
type refusal struct {
	what string
	code int
	says string
	with func(*files) error
}

func (s *stage) refusals(ctx context.Context) error {
	for _, c := range s.bad(ctx) {
		f := s.keyed()
		if err := c.with(&f); err != nil {
			return fmt.Errorf("%s: %w", c.what, err)
		}
		r, err := s.countersignd(ctx, f.args()...)
		if err != nil {
			return err
		}
		s.Check(r.Code == c.code && strings.Contains(r.Stderr, c.says) && strings.Contains(r.Stderr, "hint: "),
			"%s: exit code %d, want %d and %q: %s", c.what, r.Code, c.code, c.says, r.Stderr)
		if err := s.nothingThere(ctx, c.what); err != nil {
			return err
		}
	}
	return s.usedToken(ctx)
}

// nothingThere: a restore that failed has left neither store nor key.
func (s *stage) nothingThere(ctx context.Context, what string) error {
	left, err := os.ReadDir(s.path("state"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	s.Check(len(left) == 0, "%s left %v", what, left)
	labels, err := s.objects(ctx)
	s.Check(len(labels) == 0, "%s left %v on the token", what, labels)
	return err
}

func (s *stage) bad(ctx context.Context) []refusal {
	one := func(name string) func(*files) error {
		return func(f *files) error { f.shares = []string{name}; return nil }
	}
	return []refusal{
		{"one share of two", 3, "not enough shares", one(s.path("share-1.txt"))},
		{"the same share twice", 3, "not enough shares", func(f *files) error { f.shares = []string{f.shares[0], f.shares[0]}; return nil }},
		{"a share of another set", 3, "not enough shares", func(f *files) error { return s.otherSet(ctx, f, 1) }},
		{"shares of another set", 3, "another backup key", func(f *files) error { return s.otherSet(ctx, f, 2) }},
		{"a share that is still locked", 77, "no identity opens", func(f *files) error { f.rest = nil; return nil }},
		{"a damaged share", 1, "not a share", func(f *files) error { return s.flip(&f.shares[0], -10) }},
		{"a damaged file of a share", 1, "not a share", func(f *files) error { return s.flip(&f.shares[1], -100) }},
		{"a damaged backup", 1, "not what an appliance signed", func(f *files) error { return s.flip(&f.backup, 5000) }},
		{"a backup that was cut off", 1, "not what an appliance signed", func(f *files) error { return s.cut(&f.backup) }},
		{"a backup for a database", 1, "not what an appliance signed", func(f *files) error { f.backup = s.path("store.backup.sig"); return nil }},
		{"a damaged database", 1, "not the file that its statement is of", func(f *files) error { return s.withSig(f, s.flip) }},
		{"a database without its statement", 1, "nothing vouches", func(f *files) error { return s.another(f) }},
		{"a sealed copy that was changed", 1, "another in the backup", func(f *files) error { return s.spoilt(ctx, f) }},
		{"another root", 1, "another appliance", func(f *files) error { return strangersRoot(ctx, f) }},
		{"both by a root of their own", 1, "no root that vouches for the key backup is", func(f *files) error { return s.resigned(ctx, f, true, true) }},
		{"a backup by a root of its own", 1, "no root that vouches for the key backup is", func(f *files) error { return s.resigned(ctx, f, true, false) }},
		{"a statement by a root of its own", 1, "no root that vouches for the database is", func(f *files) error { return s.resigned(ctx, f, false, true) }},
		{"a statement that was cut off", 1, "not what an appliance signed", func(f *files) error { return s.cutSig(f) }},
		{"a backup by a key that was ruled out", 1, "no longer counts", func(f *files) error { f.backup = s.path("keys.ruled-out"); return nil }},
		{"a database by a key that was ruled out", 1, "no longer counts", func(f *files) error { f.database = s.path("store.ruled-out"); return nil }},
		{"files below the least epoch", 1, "below 99", func(f *files) error { f.rest = append(f.rest, "--min-epoch", "99"); return nil }},
		{"no root", 2, "no root of this appliance is named", func(f *files) error { f.root = ""; return nil }},
	}
}

// flip puts a file with one bit changed in place of another; a negative position
// counts from the end.
func (s *stage) flip(path *string, at int) error {
	raw, err := os.ReadFile(*path)
	if err != nil {
		return err
	}
	if at < 0 {
		at += len(raw)
	}
	raw = bytes.Clone(raw)
	raw[at] ^= 1
	*path = s.path("damaged")
	return os.WriteFile(*path, raw, 0o600)
}

func (s *stage) cut(path *string) error {
	raw, err := os.ReadFile(*path)
	if err != nil {
		return err
	}
	*path = s.path("damaged")
	return os.WriteFile(*path, raw[:len(raw)-1], 0o600)
}

// strangersRoot is a root of nobody here.
func strangersRoot(ctx context.Context, f *files) error {
	by, err := newForger(ctx)
	f.root = by.root.String()
	return err
}

// cutSig cuts the statement off.
func (s *stage) cutSig(f *files) error {
	sig := f.database + ".sig"
	if err := s.another(f); err != nil {
		return err
	}
	raw, err := os.ReadFile(sig)
	if err != nil {
		return err
	}
	return os.WriteFile(f.database+".sig", raw[:len(raw)-1], 0o600)
}

// withSig damages the database and keeps its statement beside it.
func (s *stage) withSig(f *files, damage func(*string, int) error) error {
	sig, err := os.ReadFile(f.database + ".sig")
	if err != nil {
		return err
	}
	return errors.Join(damage(&f.database, 70_000), os.WriteFile(f.database+".sig", sig, 0o600))
}

// spoilt is a database by other means, with a sealed copy that is not what was backed up.
func (s *stage) spoilt(ctx context.Context, f *files) error {
	if err := s.another(f); err != nil {
		return err
	}
	f.rest = append(f.rest, "--unsigned-database")
	return s.spoil(ctx, f.database)
}

// another is a copy of the database that nothing lies beside.
func (s *stage) another(f *files) error {
	raw, err := os.ReadFile(f.database)
	if err != nil {
		return err
	}
	f.database = s.path("another")
	if err := os.Remove(f.database + ".sig"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.WriteFile(f.database, raw, 0o600)
}

// otherSet makes another backup key and hands over n of its shares.
func (s *stage) otherSet(ctx context.Context, f *files, n int) error {
	dir := s.path("other")
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	args := []string{"key", "custodians", "init", "--threshold", "2", "--out", dir}
	for range 2 {
		args = append(args, "--recipient", s.custodians[1]) // ben's, twice
	}
	if _, err := s.must(ctx, args...); err != nil {
		return err
	}
	f.shares = append(f.shares[:2-n:2-n], []string{dir + "/share-1.age", dir + "/share-2.age"}[:n]...)
	return nil
}

// usedToken: a token that has a key of anybody is left alone.
func (s *stage) usedToken(ctx context.Context) error {
	_, err := s.tool(ctx, "pkcs11-tool", "--module", softhsm, "--login", "--pin", pin, "--keypairgen", "--key-type", "EC:prime256v1", "--label", "kem@1", "--id", "01", "--usage-sign")
	if err != nil {
		return err
	}
	f := s.keyed()
	r, err := s.countersignd(ctx, f.args()...)
	s.Check(err == nil && r.Code == 1 && strings.Contains(r.Stderr, "not empty"), "onto a used token: exit code %d, want 1: %v %s", r.Code, err, r.Stderr)
	labels, err := s.objects(ctx)
	s.Check(err == nil && len(labels) == 1, "on the used token afterwards: %v, %v", labels, err)
	return errors.Join(err, os.RemoveAll(s.path("state")), s.newToken(ctx))
}
