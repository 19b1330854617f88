package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"

	_ "modernc.org/sqlite" // to break the store behind the appliance's back
)

// backUp backs the keys up, rotates two more, copies the database, and goes on: what
// comes after the copy is what a disaster loses.
func (s *stage) backUp(ctx context.Context) error {
	if s.broken == "seal" {
		s.Say("(BREAK=seal: the sealed copy of wrap@1 was damaged when it was made)")
	}
	if _, err := s.must(ctx, "client", "revoke", "otto", "--yes"); err != nil {
		return err
	}
	r, err := s.must(ctx, "key", "backup", "--out", s.path("keys.backup"), "-o", "json")
	if err != nil {
		return err
	}
	var made struct{ Keys, Missing []string }
	err = json.Unmarshal([]byte(r.Stdout), &made)
	s.Check(err == nil && len(made.Keys) > 20 && len(made.Missing) == 0, "backup of %d keys, without %v: %v", len(made.Keys), made.Missing, err)
	for _, step := range [][]string{{"rotate", "mac"}, {"activate", "mac"}, {"rotate", "enrol"}, {"activate", "enrol"}} {
		if _, err := s.must(ctx, append([]string{"key"}, step...)...); err != nil {
			return err
		}
	}
	if err := s.authorize(ctx, s.door, authorization{"erin", 4, later}); err != nil { // it waits, for ever
		return err
	}
	if s.code, err = s.Invite(ctx, "client", "hugo"); err != nil {
		return err
	}
	if _, err := s.must(ctx, "store", "backup", "--out", s.path("store.backup")); err != nil {
		return err
	}
	for _, name := range []string{"keys.backup", "store.backup", "store.backup.sig"} {
		info, err := os.Stat(s.path(name))
		s.Check(err == nil && info.Mode().Perm() == 0o600, "%s: %v, %v", name, info, err)
	}
	return s.afterTheCopy(ctx)
}

// afterTheCopy is the gap between the recovery point and the disaster.
func (s *stage) afterTheCopy(ctx context.Context) error {
	for _, a := range []authorization{{"alice", 1, 0}, {"bob", 2, 0}} {
		if err := s.authorize(ctx, s.door, a); err != nil {
			return err
		}
	}
	if err := s.enrol(ctx, person{name: "gus"}); err != nil {
		return err
	}
	_, err := s.must(ctx, "client", "revoke", "mallory", "--yes")
	if err != nil {
		return err
	}
	return s.authorize(ctx, s.door, authorization{"mallory", 1, denied})
}

// spoil flips a bit of a sealed copy in a database.
func (s *stage) spoil(ctx context.Context, path string) (err error) {
	source := url.URL{Scheme: "file", Path: path, RawQuery: "_pragma=busy_timeout(5000)"}
	db, err := sql.Open("sqlite", source.String())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	var sealed []byte
	if err := db.QueryRowContext(ctx, `SELECT sealed FROM key WHERE name = 'wrap' AND version = 1`).Scan(&sealed); err != nil {
		return err
	}
	sealed[len(sealed)-1] ^= 1
	for _, statement := range []string{`DROP TRIGGER IF EXISTS key_copy_is_final`, `UPDATE key SET sealed = ? WHERE name = 'wrap' AND version = 1`} {
		var args []any
		if statement[0] == 'U' {
			args = append(args, sealed)
		}
		if _, err := db.ExecContext(ctx, statement, args...); err != nil {
			return fmt.Errorf("%s: %w", statement, err)
		}
	}
	return nil
}

// disaster destroys token and state. Phones, devices, custodians and files remain.
func (s *stage) disaster(ctx context.Context) error {
	if err := s.KillAll(ctx); err != nil {
		return err
	}
	if err := errors.Join(os.RemoveAll(s.path("state")), s.newToken(ctx)); err != nil {
		return err
	}
	r, err := s.phone(ctx, "alice", "authorize", "--link", s.door.Link, "--service", "100", "--yes")
	s.Check(err == nil && r.Code != 0, "an authorization with nobody there: exit code %d", r.Code)
	labels, err := s.objects(ctx)
	s.Check(err == nil && len(labels) == 0, "on the new token: %v, %v", labels, err)
	return err
}
