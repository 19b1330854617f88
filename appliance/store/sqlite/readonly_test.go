package sqlite

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/appliance/store/storetest"
)

// fileState is what a reader must not change.
type fileState struct {
	content string
	changed time.Time
}

// stateOf returns the files of a directory.
func stateOf(t *testing.T, dir string) map[string]fileState {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]fileState{}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		info, err := e.Info()
		content, readErr := os.ReadFile(path)
		if err := errors.Join(err, readErr); err != nil {
			t.Fatal(err)
		}
		all[e.Name()] = fileState{string(content), info.ModTime()}
	}
	return all
}

// unchanged fails the test if a file of the directory was changed, made or removed.
func unchanged(t *testing.T, dir string, before map[string]fileState) {
	t.Helper()
	after := stateOf(t, dir)
	for name, was := range before {
		switch is, there := after[name]; {
		case !there:
			t.Errorf("%s is gone", name)
		case is != was:
			t.Errorf("%s was changed: %d bytes at %v, before %d bytes at %v", name, len(is.content), is.changed, len(was.content), was.changed)
		}
	}
	for name := range after {
		if _, was := before[name]; !was {
			t.Errorf("%s was made", name)
		}
	}
}

// openedReadOnly opens and unseals a store for reading.
func openedReadOnly(t *testing.T, path string) store.Store {
	t.Helper()
	s, err := Open(t.Context(), Config{Path: path, ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := storetest.Unseal(t.Context(), s); err != nil {
		t.Fatal(errors.Join(err, s.Close()))
	}
	return s
}

// TestReadOnly: reading a store changes no file, and every change is refused. The store may be of an older schema, and
// may have a log that a killed daemon left.
func TestReadOnly(t *testing.T) {
	for name, prepare := range map[string]func(t *testing.T, path string){
		"closed": func(t *testing.T, path string) {
			s := openAt(t, path)
			_, err := storetest.Seed(t.Context(), s, "alice")
			if err = errors.Join(err, s.Close()); err != nil {
				t.Fatal(err)
			}
		},
		"schema 8": func(t *testing.T, path string) { before(t, path) },
		"killed": func(t *testing.T, path string) {
			running := newPath(t)
			s := openAt(t, running)
			if _, err := storetest.Seed(t.Context(), s, "alice"); err != nil {
				t.Fatal(err)
			}
			for _, suffix := range []string{"", "-wal", "-shm", ".lock"} {
				content, err := os.ReadFile(running + suffix)
				if err = errors.Join(err, os.WriteFile(path+suffix, content, 0o600)); err != nil {
					t.Fatal(err)
				}
			}
			if info, err := os.Stat(path + "-wal"); err != nil || info.Size() == 0 {
				t.Fatalf("there is no log: %v", err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			path := newPath(t)
			prepare(t, path)
			was := stateOf(t, filepath.Dir(path))
			s := openedReadOnly(t, path)
			if all, err := s.ListClients(t.Context()); err != nil || len(all) != 1 || all[0].Name != "alice" {
				t.Errorf("%+v, %v", all, err)
			}
			if _, forged, err := s.Verify(t.Context()); err != nil || len(forged) > 0 {
				t.Errorf("%v, %v", forged, err)
			}
			for doing, do := range map[string]func(context.Context) error{
				"pulse":   func(ctx context.Context) error { return s.Pulse(ctx, storetest.Epoch) },
				"record":  func(ctx context.Context) error { return s.Append(ctx, audit.NewRecord(audit.KindStore, "x", nil)) },
				"upgrade": func(ctx context.Context) error { return s.Upgrade(ctx, audit.NewRecord(audit.KindStore, "x", nil)) },
			} {
				if err := do(t.Context()); !errors.Is(err, store.ErrReadOnly) {
					t.Errorf("%s: %v", doing, err)
				}
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			unchanged(t, filepath.Dir(path), was)
		})
	}
}

// TestReadOnlyRefused: a file that is no store of an appliance is refused, and stays as it is.
func TestReadOnlyRefused(t *testing.T) {
	for name, c := range map[string]struct {
		prepare func(path string) error
		want    error
	}{
		"absent": {func(string) error { return nil }, os.ErrNotExist},
		"empty":  {func(path string) error { return os.WriteFile(path, nil, 0o600) }, ErrEmpty},
		"no -shm": {func(path string) error {
			return errors.Join(os.WriteFile(path, nil, 0o600), os.WriteFile(path+"-wal", []byte("log"), 0o600))
		}, store.ErrUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "store.db")
			if err := c.prepare(path); err != nil {
				t.Fatal(err)
			}
			was := stateOf(t, filepath.Dir(path))
			s, err := Open(t.Context(), Config{Path: path, ReadOnly: true})
			if !errors.Is(err, c.want) || !errors.Is(err, store.ErrUnavailable) {
				t.Errorf("%v, %v", s, err)
			}
			unchanged(t, filepath.Dir(path), was)
		})
	}
}

// TestReadOnlyInUse: a store that a daemon has open is refused.
func TestReadOnlyInUse(t *testing.T) {
	path := newPath(t)
	openAt(t, path)
	if _, err := Open(t.Context(), Config{Path: path, ReadOnly: true}); !errors.Is(err, ErrLocked) {
		t.Error(err)
	}
}
