package sqlite

import (
	"context"
	"errors"
	"os"
	"runtime"
	"strconv"
	"sync"
	"testing"

	"countersign/appliance/store"
	"countersign/appliance/store/storetest"
)

// hold keeps the writer busy within a transaction until release is called.
func hold(t *testing.T, s *database) (release func()) {
	t.Helper()
	started, done := make(chan struct{}), make(chan struct{})
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		_ = s.write(context.Background(), "holding", func(*txn) error { // shares the fate of its group
			close(started)
			<-done
			return nil
		})
	}()
	<-started
	return sync.OnceFunc(func() {
		close(done)
		<-finished
	})
}

func (s *database) waitQueued(n int) {
	for len(s.w.queue) != n {
		runtime.Gosched()
	}
}

func records(t *testing.T, s *database) uint64 {
	t.Helper()
	n, err := s.Tally(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return n.Records
}

func TestGroup(t *testing.T) {
	s := openNew(t)
	release := hold(t, s)
	const n = 50
	var largest int // of the writer's goroutine
	errs := make(chan error, n)
	for range n {
		go func() {
			errs <- s.write(context.Background(), "appending", func(tx *txn) error {
				largest = max(largest, len(s.w.ops))
				return tx.append(storetest.Note("x"))
			})
		}()
	}
	s.waitQueued(n)
	if got := records(t, s); got != 0 {
		t.Fatalf("%d records before the commit", got)
	}
	release()
	for range n {
		if err := <-errs; err != nil {
			t.Fatal(err)
		}
	}
	if got := records(t, s); got != n || largest != n+1 {
		t.Fatalf("%d records, the largest group was %d", got, largest)
	}
}

func TestCancelledInQueue(t *testing.T) {
	s := openNew(t)
	release := hold(t, s)
	defer release()
	ctx, cancel := context.WithCancel(t.Context())
	errs := make(chan error, 1)
	go func() { errs <- s.Append(ctx, storetest.Note("never")) }()
	s.waitQueued(1)
	cancel()
	if err := <-errs; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	release()
	if err := s.Append(t.Context(), storetest.Note("after")); err != nil {
		t.Fatal(err)
	}
	if got := records(t, s); got != 1 {
		t.Fatalf("%d records: what was cancelled in the queue was run", got)
	}
}

func TestCancelledWhenTaken(t *testing.T) {
	s := openNew(t)
	ctx, cancel := context.WithCancel(t.Context())
	started, done := make(chan struct{}), make(chan struct{})
	errs := make(chan error, 1)
	go func() {
		errs <- s.write(ctx, "appending", func(tx *txn) error {
			close(started)
			<-done
			return tx.append(storetest.Note("done"))
		})
	}()
	<-started
	cancel()
	if err := <-errs; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	close(done)
	if err := s.Append(t.Context(), storetest.Note("after")); err != nil {
		t.Fatal(err)
	}
	if got := records(t, s); got != 2 {
		t.Fatalf("%d records: what was begun was not finished", got)
	}
}

// A commit that fails takes its whole group with it, and only that.
func TestCommitFails(t *testing.T) {
	for name, poison := range map[string]func(*txn) error{
		"commit": func(tx *txn) error { // deferred to the commit, which then fails
			if _, err := tx.exec("PRAGMA defer_foreign_keys = 1"); err != nil {
				return err
			}
			_, err := tx.exec("INSERT INTO restraint (client, highest, wrong, recent) VALUES (999, -1, 0, '[]')")
			return err
		},
		"transaction lost": func(tx *txn) error {
			_, err := tx.exec("ROLLBACK")
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := openNew(t)
			release := hold(t, s)
			errs := make(chan error, 3)
			queue := func(n int, do func(*txn) error) {
				go func() { errs <- s.write(context.Background(), "writing", do) }()
				s.waitQueued(n)
			}
			note := func(tx *txn) error { return tx.append(storetest.Note("x")) }
			queue(1, note)
			queue(2, poison)
			queue(3, func(*txn) error { return store.ErrConflict })
			release()
			for range 3 {
				if err := <-errs; !errors.Is(err, store.ErrUnavailable) {
					t.Errorf("answered %v within a group that failed", err)
				}
			}
			if got := records(t, s); got != 0 {
				t.Errorf("%d records of a group that failed", got)
			}
			if err := s.Append(t.Context(), storetest.Note("y")); err != nil {
				t.Fatal(err)
			}
			if got := records(t, s); got != 1 {
				t.Errorf("%d records after the store has recovered", got)
			}
		})
	}
}

func TestCloseAnswersQueue(t *testing.T) {
	s := openNew(t)
	release := hold(t, s)
	const n = 20
	errs := make(chan error, n)
	for range n {
		go func() { errs <- s.Append(context.Background(), storetest.Note("x")) }()
	}
	s.waitQueued(n)
	closed := make(chan error, 1)
	go func() { closed <- s.Close() }()
	<-s.w.quit
	release()
	for range n {
		if err := <-errs; err != nil {
			t.Errorf("queued before Close: %v", err)
		}
	}
	if err := <-closed; err != nil {
		t.Fatal(err)
	}
}

// Checkpoints keep the log from growing with the number of operations.
func TestCheckpoint(t *testing.T) {
	path := newPath(t)
	s := openAt(t, path)
	grow := func() int64 {
		for range 2 * checkpointEvery {
			if err := s.Append(t.Context(), storetest.Note("x")); err != nil {
				t.Fatal(err)
			}
		}
		info, err := os.Stat(path + "-wal")
		if err != nil {
			t.Fatal(err)
		}
		return info.Size()
	}
	if first, second := grow(), grow(); second > first*3/2 {
		t.Fatalf("the log grew from %d to %d bytes", first, second)
	}
}

// Corruption is for good: nothing is answered any more, and the process is told.
func TestFatal(t *testing.T) {
	path := newPath(t)
	s := openAt(t, path)
	p, err := storetest.Seed(t.Context(), s, "alice")
	if err = errors.Join(err, s.Close()); err != nil {
		t.Fatal(err)
	}
	corrupt(t, path)
	s = openAt(t, path)
	for range 2 {
		if _, err := s.Spend(t.Context(), p.Spend(1)); !errors.Is(err, store.ErrUnavailable) {
			t.Fatalf("spent in a corrupt store: %v", err)
		}
	}
	select {
	case err := <-s.Fatal():
		if !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("fatal: %v", err)
		}
	default:
		t.Fatal("nobody was told of the corruption")
	}
	if err := s.Append(t.Context(), storetest.Note("x")); !errors.Is(err, store.ErrUnavailable) {
		t.Fatalf("a broken store still writes: %v", err)
	}
}

// corrupt overwrites the root of the table of clients.
func corrupt(t *testing.T, path string) {
	t.Helper()
	const pageSize = 4096
	page, err := strconv.Atoi(ask(t, path, "SELECT rootpage FROM sqlite_schema WHERE name = 'client'"))
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt(make([]byte, pageSize), int64(page-1)*pageSize)
	if err = errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}
