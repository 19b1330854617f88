package disaster

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"strings"

	"countersign/softhsm-test/harness"
)

// files is what a restore is given.
type files struct {
	root, backup, database string
	shares                 []string
	rest                   []string
}

// good returns enough shares: one that Debian's age opened, and the third custodian's.
func (s *stage) good() files {
	return files{
		root: s.roots[0], backup: s.path("keys.backup"), database: s.path("store.backup"), shares: []string{s.path("share-1.txt"), s.share(3)},
		rest: s.third(),
	}
}

// keyed takes no passphrase, whose stretching takes seconds, and names the second root.
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
	with func(*files)
}

func (s *stage) refusals(ctx context.Context) {
	for _, c := range s.bad(ctx) {
		f := s.keyed()
		c.with(&f)
		r := s.countersignd(ctx, f.args()...)
		s.Check(r.Code == c.code && strings.Contains(r.Stderr, c.says) && strings.Contains(r.Stderr, "hint: "),
			"%s: exit code %d, want %d and %q: %s", c.what, r.Code, c.code, c.says, r.Stderr)
		s.nothingThere(ctx, c.what)
	}
	s.usedToken(ctx)
}

// nothingThere: a restore that failed has left neither store nor key.
func (s *stage) nothingThere(ctx context.Context, what string) {
	left, err := os.ReadDir(s.path("state"))
	if !errors.Is(err, fs.ErrNotExist) {
		harness.Do(err)
	}
	s.Check(len(left) == 0, "%s left %v", what, left)
	labels := s.list(ctx)
	s.Check(len(labels) == 0, "%s left %v on the token", what, labels)
}

func (s *stage) bad(ctx context.Context) []refusal {
	one := func(name string) func(*files) {
		return func(f *files) { f.shares = []string{name} }
	}
	return []refusal{
		{"one share of two", 3, "not enough shares", one(s.path("share-1.txt"))},
		{"the same share twice", 3, "not enough shares", func(f *files) { f.shares = []string{f.shares[0], f.shares[0]} }},
		{"a share of another set", 3, "not enough shares", func(f *files) { s.otherSet(ctx, f, 1) }},
		{"shares of another set", 3, "another backup key", func(f *files) { s.otherSet(ctx, f, 2) }},
		{"a share that is still locked", 77, "no identity opens", func(f *files) { f.rest = nil }},
		{"a damaged share", 1, "not a share", func(f *files) { s.flip(&f.shares[0], -10) }},
		{"a damaged file of a share", 1, "not a share", func(f *files) { s.flip(&f.shares[1], -100) }},
		{"a damaged backup", 1, "not what an appliance signed", func(f *files) { s.flip(&f.backup, 5000) }},
		{"a backup that was cut off", 1, "not what an appliance signed", func(f *files) { s.cut(&f.backup) }},
		{"a backup for a database", 1, "not what an appliance signed", func(f *files) { f.backup = s.path("store.backup.sig") }},
		{"a damaged database", 1, "not the file that its statement is of", func(f *files) { s.withSig(f, s.flip) }},
		{"a database without its statement", 1, "nothing vouches", func(f *files) { s.another(f) }},
		{"a sealed copy that was changed", 1, "another in the backup", func(f *files) { s.spoilt(ctx, f) }},
		{"another root", 1, "another appliance", func(f *files) { strangersRoot(ctx, f) }},
		{"both by a root of their own", 1, "no root that vouches for the key backup is", func(f *files) { s.resigned(ctx, f, true, true) }},
		{"a backup by a root of its own", 1, "no root that vouches for the key backup is", func(f *files) { s.resigned(ctx, f, true, false) }},
		{"a statement by a root of its own", 1, "no root that vouches for the database is", func(f *files) { s.resigned(ctx, f, false, true) }},
		{"a statement that was cut off", 1, "not what an appliance signed", func(f *files) { s.cutSig(f) }},
		{"a backup by a key that was ruled out", 1, "no longer counts", func(f *files) { f.backup = s.path("keys.ruled-out") }},
		{"a database by a key that was ruled out", 1, "no longer counts", func(f *files) { f.database = s.path("store.ruled-out") }},
		{"files below the least epoch", 1, "below 99", func(f *files) { f.rest = append(f.rest, "--min-epoch", "99") }},
		{"no root", 2, "no root of this appliance is named", func(f *files) { f.root = "" }},
	}
}

// flip puts a file with one bit changed in place of another; a negative position
// counts from the end.
func (s *stage) flip(path *string, at int) {
	raw := harness.Must(os.ReadFile(*path))
	if at < 0 {
		at += len(raw)
	}
	raw = bytes.Clone(raw)
	raw[at] ^= 1
	*path = s.path("damaged")
	harness.Do(os.WriteFile(*path, raw, 0o600))
}

func (s *stage) cut(path *string) {
	raw := harness.Must(os.ReadFile(*path))
	*path = s.path("damaged")
	harness.Do(os.WriteFile(*path, raw[:len(raw)-1], 0o600))
}

// strangersRoot names the root of no appliance.
func strangersRoot(ctx context.Context, f *files) {
	f.root = newForger(ctx).root.String()
}

// cutSig cuts the statement off.
func (s *stage) cutSig(f *files) {
	sig := f.database + ".sig"
	s.another(f)
	raw := harness.Must(os.ReadFile(sig))
	harness.Do(os.WriteFile(f.database+".sig", raw[:len(raw)-1], 0o600))
}

// withSig damages the database and keeps its statement beside it.
func (s *stage) withSig(f *files, damage func(*string, int)) {
	sig := harness.Must(os.ReadFile(f.database + ".sig"))
	damage(&f.database, 70_000)
	harness.Do(os.WriteFile(f.database+".sig", sig, 0o600))
}

// spoilt is an unsigned database with a sealed copy that differs from the backup.
func (s *stage) spoilt(ctx context.Context, f *files) {
	s.another(f)
	f.rest = append(f.rest, "--unsigned-database")
	s.spoil(ctx, f.database)
}

// another is a copy of the database that nothing lies beside.
func (s *stage) another(f *files) {
	raw := harness.Must(os.ReadFile(f.database))
	f.database = s.path("another")
	if err := os.Remove(f.database + ".sig"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		harness.Do(err)
	}
	harness.Do(os.WriteFile(f.database, raw, 0o600))
}

// otherSet makes another backup key and hands over n of its shares.
func (s *stage) otherSet(ctx context.Context, f *files, n int) {
	dir := s.path("other")
	harness.Do(os.RemoveAll(dir))
	args := []string{"key", "custodians", "init", "--threshold", "2", "--out", dir}
	for _, recipient := range s.custodians[:2] {
		args = append(args, "--recipient", recipient)
	}
	s.MustCtl(ctx, args...)
	f.rest = append(f.rest[:len(f.rest):len(f.rest)], "--identity", s.path("anna.key"))
	f.shares = append(f.shares[:2-n:2-n], []string{dir + "/share-1.age", dir + "/share-2.age"}[:n]...)
}

// usedToken: a token that has a key of anybody is left alone.
func (s *stage) usedToken(ctx context.Context) {
	s.tool(ctx, "pkcs11-tool", "--module", harness.SoftHSM, "--login", "--pin", pin, "--keypairgen", "--key-type", "EC:prime256v1", "--label", "kem@1", "--id", "01", "--usage-sign")
	f := s.keyed()
	r := s.countersignd(ctx, f.args()...)
	s.Check(r.Code == 1 && strings.Contains(r.Stderr, "not empty"), "onto a used token: exit code %d, want 1: %s", r.Code, r.Stderr)
	labels := s.list(ctx)
	s.Check(len(labels) == 1, "on the used token afterwards: %v", labels)
	s.emptyToken(ctx)
}
