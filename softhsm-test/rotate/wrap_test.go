package rotate

import (
	"context"
	"database/sql"
	"encoding/json"

	"countersign/softhsm-test/harness"
)

// records is how far client records have come to the mac and wrap keys in use.
type records struct {
	Total   int    `json:"total"`
	Left    int    `json:"left"`
	Running bool   `json:"running"`
	Problem string `json:"problem"`
}

// renewal asks for it.
func (s *stage) renewal(ctx context.Context) records {
	var plan struct {
		Records records `json:"records"`
	}
	harness.Do(json.Unmarshal([]byte(s.MustCtl(ctx, "key", "plan", "-o", "json").Stdout), &plan))
	return plan.Records
}

// retireWrap waits until the background has wrapped every verifier anew, and checks that the store
// has none of the old ones. Then the version before can be retired at once, and every phone with a
// password continues: the load has some.
func (s *stage) retireWrap(ctx context.Context, l *load, old key) {
	var last records
	err := harness.Until(ctx, "verifiers wrapped anew", func() (done bool, err error) {
		last = s.renewal(ctx)
		return last.Total > 0 && last.Left == 0 && !last.Running, nil
	})
	if err != nil {
		harness.Fail("%w: %+v", err, last)
	}
	s.Check(last.Problem == "", "records: %+v", last)
	after := s.verifiers(ctx)
	kept := 0
	for v := range s.wrapped {
		if after[v] {
			kept++
		}
	}
	s.Check(len(s.wrapped) > 0 && kept == 0, "%d of %d verifiers are under %s as before", kept, len(s.wrapped), old.ref())
	_, r := s.keys(ctx, "retire", old.ref(), "--yes")
	s.Check(r.Code == 0, "retiring %s: exit code %d: %s", old.ref(), r.Code, r.Stderr)
	s.Say("%s: %d verifiers wrapped anew, %d of %d records left", old.ref(), len(s.wrapped), last.Left, last.Total)
	l.passes(ctx)
}

// verifiers are those in the store, behind the appliance's back.
func (s *stage) verifiers(ctx context.Context) map[string]bool {
	db := harness.Must(sql.Open("sqlite", s.database()))
	defer func() { harness.Do(db.Close()) }()
	rows := harness.Must(db.QueryContext(ctx, `SELECT verifier FROM client WHERE verifier IS NOT NULL`))
	defer rows.Close()
	all := map[string]bool{}
	for rows.Next() {
		var v []byte
		harness.Do(rows.Scan(&v))
		all[string(v)] = true
	}
	harness.Do(rows.Err())
	return all
}
