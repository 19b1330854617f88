package disaster

import (
	"context"
	"database/sql"
	"encoding/json"
	"net/url"
	"os"

	"countersign/softhsm-test/harness"

	_ "modernc.org/sqlite" // to break the store behind the appliance's back
)

// backUp backs up the keys, rotates two more, copies the database, and continues. A disaster loses
// everything after the copy.
func (s *stage) backUp(ctx context.Context) {
	if harness.Break() == breakSeal {
		s.Say("(BREAK=seal: the sealed copy of wrap@1 was damaged when it was made)")
	}
	s.MustCtl(ctx, "client", "revoke", "otto", "--yes")
	r := s.MustCtl(ctx, "key", "backup", "--out", s.path("keys.backup"), "-o", "json")
	var made struct{ Keys, Missing []string }
	err := json.Unmarshal([]byte(r.Stdout), &made)
	s.Check(err == nil && len(made.Keys) > 20 && len(made.Missing) == 0, "backup of %d keys, without %v: %v", len(made.Keys), made.Missing, err)
	for _, step := range [][]string{{"rotate", "mac"}, {"activate", "mac"}, {"rotate", "enrol"}, {"activate", "enrol"}} {
		s.MustCtl(ctx, append([]string{"key"}, step...)...)
	}
	s.authorize(ctx, s.door, authorization{"erin", 4, later})
	s.code = harness.Must(s.Invite(ctx, "client", "hugo"))
	s.MustCtl(ctx, "store", "backup", "--out", s.path("store.backup"))
	for _, name := range []string{"keys.backup", "store.backup", "store.backup.sig"} {
		info := harness.Must(os.Stat(s.path(name)))
		s.Check(info.Mode().Perm() == 0o600, "%s: %v", name, info)
	}
	s.afterTheCopy(ctx)
}

// afterTheCopy is the gap between the recovery point and the disaster.
func (s *stage) afterTheCopy(ctx context.Context) {
	for _, a := range []authorization{{"alice", 1, 0}, {"bob", 2, 0}} {
		s.authorize(ctx, s.door, a)
	}
	s.enrol(ctx, person{name: "gus"})
	s.MustCtl(ctx, "client", "revoke", "mallory", "--yes")
	s.authorize(ctx, s.door, authorization{"mallory", 1, denied})
}

// spoil flips a bit of a sealed copy in a database.
func (s *stage) spoil(ctx context.Context, path string) {
	source := url.URL{Scheme: "file", Path: path, RawQuery: "_pragma=busy_timeout(5000)"}
	db := harness.Must(sql.Open("sqlite", source.String()))
	defer func() { harness.Do(db.Close()) }()
	var sealed []byte
	harness.Do(db.QueryRowContext(ctx, `SELECT sealed FROM key WHERE name = 'wrap' AND version = 1`).Scan(&sealed))
	sealed[len(sealed)-1] ^= 1
	for _, statement := range []string{`DROP TRIGGER IF EXISTS key_copy_is_final`, `UPDATE key SET sealed = ? WHERE name = 'wrap' AND version = 1`} {
		var args []any
		if statement[0] == 'U' {
			args = append(args, sealed)
		}
		harness.Must(db.ExecContext(ctx, statement, args...))
	}
}

// disaster destroys token and state. Phones, devices, custodians and files remain.
func (s *stage) disaster(ctx context.Context) {
	harness.Do(s.KillAll(ctx))
	s.emptyToken(ctx)
	r := s.phone(ctx, "alice", "authorize", "--link", s.door.Link, "--service", "100", "--yes")
	s.Check(r.Code != 0, "an authorization with nobody there: exit code %d", r.Code)
	labels := s.list(ctx)
	s.Check(len(labels) == 0, "on the new token: %v", labels)
}
