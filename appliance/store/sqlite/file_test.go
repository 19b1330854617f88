package sqlite

import (
	"bytes"
	"database/sql"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"countersign/appliance/store"
	"countersign/appliance/store/storetest"
)

func TestModes(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	path := filepath.Join(dir, "odd ?#%name.db")
	s := openAt(t, path)
	if err := s.Append(t.Context(), storetest.Note("x")); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]fs.FileMode{
		dir: fs.ModeDir | 0o700, path: 0o600, path + "-wal": 0o600, path + "-shm": 0o600, path + ".lock": 0o600,
	} {
		if info, err := os.Stat(file); err != nil || info.Mode() != want {
			t.Errorf("%s: %v, %v; want %v", file, info, err, want)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	openAt(t, path)
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
		t.Errorf("a readable store stayed so: %v, %v", info, err)
	}
}

func TestReopen(t *testing.T) {
	path := newPath(t)
	s := openAt(t, path)
	p, err := storetest.Seed(t.Context(), s, "alice")
	if err != nil {
		t.Fatal(err)
	}
	spend := p.Spend(1)
	if _, err := s.Spend(t.Context(), spend); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path + "-wal"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the log is left after Close: %v", err)
	}
	s = openAt(t, path)
	if out, err := s.Answered(t.Context(), spend.AnswerKey); err != nil || out.Reason != 0 {
		t.Fatalf("answered %+v, %v", out, err)
	}
}

func TestInUse(t *testing.T) {
	path := newPath(t)
	s := openAt(t, path)
	for range 2 { // the refusal must not loosen the lock
		_, err := openDatabase(t.Context(), Config{Path: path})
		if !errors.Is(err, store.ErrUnavailable) || !strings.Contains(err.Error(), "in use by another process") {
			t.Fatalf("a second store opened the file: %v", err)
		}
	}
	out, err := child(t, spenderEnv, path).CombinedOutput()
	if err == nil || !bytes.Contains(out, []byte("in use by another process")) {
		t.Fatalf("a second process opened the file: %v, %s", err, out)
	}
	if err := s.Append(t.Context(), storetest.Note("still")); err != nil {
		t.Fatal(err)
	}
}

func TestRefused(t *testing.T) {
	for name, c := range map[string]struct {
		statements string
		want       string
	}{
		"foreign":       {"CREATE TABLE x (y); PRAGMA user_version = 1", "not a Countersign store"},
		"other program": {"PRAGMA application_id = 42", "not a Countersign store"},
		"newer":         {"PRAGMA application_id = 1329672526; PRAGMA user_version = 9999", "newer than this program"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "s.db")
			raw(t, path, c.statements)
			refuses(t, path, c.want)
		})
	}
	t.Run("no database", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "s.db")
		if err := os.WriteFile(path, bytes.Repeat([]byte("text\n"), 1000), 0o600); err != nil {
			t.Fatal(err)
		}
		refuses(t, path, "not a database")
	})
	t.Run("directory is a file", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "d")
		if err := os.WriteFile(dir, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := openDatabase(t.Context(), Config{Path: filepath.Join(dir, "s.db")})
		if !errors.Is(err, store.ErrUnavailable) {
			t.Fatalf("opened: %v", err)
		}
	})
}

// raw runs statements on the file as another program would.
func raw(t *testing.T, path, statements string) {
	t.Helper()
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	_, err = db.Exec(statements)
	if err = errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
}

// refuses requires that the file is refused for this reason and left as it was.
func refuses(t *testing.T, path, want string) {
	t.Helper()
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	_, err = openDatabase(t.Context(), Config{Path: path})
	if !errors.Is(err, store.ErrUnavailable) || !strings.Contains(err.Error(), want) {
		t.Fatalf("error %v, want %q", err, want)
	}
	after, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(before, after) {
		t.Fatalf("the refused file was changed (%v)", err)
	}
}

func TestRecordsAreNotChanged(t *testing.T) {
	path := newPath(t)
	s := openAt(t, path)
	if err := s.Append(t.Context(), storetest.Note("x")); err != nil {
		t.Fatal(err)
	}
	for _, statement := range []string{"DELETE FROM record", "UPDATE record SET kind = 'x'"} {
		err := s.write(t.Context(), "tampering", func(t *txn) error {
			_, err := t.exec(statement)
			return err
		})
		if err == nil || errors.Is(err, store.ErrUnavailable) {
			t.Errorf("%s: %v", statement, err)
		}
	}
}
