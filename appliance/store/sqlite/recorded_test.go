package sqlite

import (
	"context"
	"errors"
	"path/filepath"
	"sync"
	"testing"

	"countersign/appliance/store"
	"countersign/appliance/store/audit"
)

// TestRecorded: the caller sees each record that became durable, in the order of the log, and none of a change that
// was rolled back.
func TestRecorded(t *testing.T) {
	var mu sync.Mutex
	var seen []string
	path := filepath.Join(t.TempDir(), "store.db")
	s, err := openDatabase(t.Context(), Config{Path: path, Recorded: func(r audit.Record) {
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, r.Subject)
	}})
	if err != nil {
		t.Fatal(err)
	}
	note := func(subject string) audit.Record { return audit.NewRecord(audit.KindStore, subject, nil) }
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() {
			if err := s.Append(t.Context(), note("kept")); err != nil {
				t.Error(err)
			}
			err := s.submit(t.Context(), "testing", func(tx *txn) error {
				return errors.Join(tx.append(note("rolled back")), store.ErrExists)
			})
			if !errors.Is(err, store.ErrExists) {
				t.Error(err)
			}
		})
	}
	all.Wait()
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	_ = s.Append(ended, note("too late")) // its error is that of the context
	if err := s.Append(t.Context(), note("last")); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil { // the writer has ended, and passed on everything
		t.Fatal(err)
	}
	if len(seen) != 51 || seen[50] != "last" {
		t.Errorf("seen %d records: %q", len(seen), seen)
	}
	for _, subject := range seen[:50] {
		if subject != "kept" {
			t.Errorf("seen %q", subject)
		}
	}
}
