package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"

	"countersign/softhsm-test/rig"
)

// records is how far client records have come to the mac and wrap keys in use.
type records struct {
	Total   int    `json:"total"`
	Left    int    `json:"left"`
	Running bool   `json:"running"`
	Problem string `json:"problem"`
}

// renewal asks for it.
func (s *stage) renewal(ctx context.Context) (records, error) {
	var plan struct {
		Records records `json:"records"`
	}
	r, err := s.Ctl(ctx, "key", "plan", "-o", "json")
	if err != nil || r.Code != 0 {
		return plan.Records, fmt.Errorf("key plan: exit code %d: %s: %w", r.Code, r.Stderr, err)
	}
	return plan.Records, json.Unmarshal([]byte(r.Stdout), &plan)
}

// retireWrap waits until the background has wrapped every verifier anew, and holds the
// store to it: none is what it was. Then the version before can go at once, and whoever
// has a password goes on with it: the load has.
func (s *stage) retireWrap(ctx context.Context, l *load, old key) error {
	var last records
	err := rig.Until(ctx, "verifiers wrapped anew", func() (done bool, err error) {
		last, err = s.renewal(ctx)
		return last.Total > 0 && last.Left == 0 && !last.Running, err
	})
	if err != nil {
		return fmt.Errorf("%w: %+v", err, last)
	}
	s.Check(last.Problem == "", "records: %+v", last)
	after, err := s.verifiers(ctx)
	if err != nil {
		return err
	}
	kept := 0
	for v := range s.wrapped {
		if after[v] {
			kept++
		}
	}
	s.Check(len(s.wrapped) > 0 && kept == 0, "%d of %d verifiers are under %s as before", kept, len(s.wrapped), old.ref())
	_, r, err := s.keys(ctx, "retire", old.ref(), "--yes")
	s.Check(err == nil && r.Code == 0, "retiring %s: exit code %d: %v %s", old.ref(), r.Code, err, r.Stderr)
	s.Say("%s: %d verifiers wrapped anew, %d of %d records left", old.ref(), len(s.wrapped), last.Left, last.Total)
	if err != nil {
		return err
	}
	return l.passes(ctx)
}

// verifiers are those in the store, behind the appliance's back.
func (s *stage) verifiers(ctx context.Context) (all map[string]bool, err error) {
	db, err := sql.Open("sqlite", s.database())
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	rows, err := db.QueryContext(ctx, `SELECT verifier FROM client WHERE verifier IS NOT NULL`)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	all = map[string]bool{}
	for rows.Next() {
		var v []byte
		if err := rows.Scan(&v); err != nil {
			return nil, err
		}
		all[string(v)] = true
	}
	return all, rows.Err()
}
