package sqlite

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"countersign/appliance/store"
	"countersign/appliance/store/storetest"
)

// file returns the bytes of a database file that is made once: making the schema takes
// longer than most tests.
type file func() ([]byte, error)

// prepared is the file of a store after prepare.
func prepared(prepare func(context.Context, store.Store) error) file {
	return sync.OnceValues(func() ([]byte, error) {
		dir, err := os.MkdirTemp("", "countersign-store")
		if err != nil {
			return nil, err
		}
		defer func() { _ = os.RemoveAll(dir) }()
		path := filepath.Join(dir, "s.db")
		s, err := openDatabase(context.Background(), Config{Path: path})
		if err != nil {
			return nil, err
		}
		if err := errors.Join(prepare(context.Background(), s), s.Close()); err != nil {
			return nil, err
		}
		return os.ReadFile(path)
	})
}

// copied writes the file into a directory of the test.
func (f file) copied(t testing.TB) (path string) {
	t.Helper()
	raw, err := f()
	if err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(t.TempDir(), "s.db")
	if err := os.WriteFile(path, raw, fileMode); err != nil {
		t.Fatal(err)
	}
	return path
}

var emptyFile = prepared(func(context.Context, store.Store) error { return nil })

// newPath returns the path of an empty store.
func newPath(t testing.TB) string {
	t.Helper()
	return emptyFile.copied(t)
}

func openAt(t testing.TB, path string) *database {
	t.Helper()
	s, err := openDatabase(t.Context(), Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := storetest.Unseal(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func openNew(t testing.TB) *database {
	t.Helper()
	return openAt(t, newPath(t))
}

func TestContract(t *testing.T) {
	storetest.Run(t, func(prepare storetest.Prepare) storetest.Open {
		f := prepared(func(ctx context.Context, s store.Store) error {
			_, err := storetest.Unseal(ctx, s)
			return errors.Join(err, prepare(ctx, s))
		})
		return func(t *testing.T) store.Store {
			s, err := openDatabase(t.Context(), Config{Path: f.copied(t)})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := s.Close(); err != nil {
					t.Error(err)
				}
			})
			return s
		}
	})
}
