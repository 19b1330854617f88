package sqlite

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"countersign/appliance/store"
	"countersign/appliance/store/storetest"
)

// A copy made while others write is of one moment: it has every record up to its point, opens as a
// store, and only its owner can read it.
func TestCopyWhileServing(t *testing.T) {
	s := openNew(t)
	p, err := storetest.Seed(t.Context(), s, "alice")
	if err != nil {
		t.Fatal(err)
	}
	var stop atomic.Bool
	ended := make(chan error, 1)
	go func() {
		for n := uint32(1); ; n++ {
			if _, err := s.Spend(t.Context(), p.Spend(n)); err != nil || stop.Load() {
				ended <- err
				return
			}
		}
	}()
	copied, err := s.Copy(t.Context())
	stop.Store(true)
	if err := errors.Join(err, <-ended); err != nil {
		t.Fatal(err)
	}
	point, path := copied.Point, saved(t, copied)
	if left, err := filepath.Glob(filepath.Join(filepath.Dir(s.path), "*.copy")); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	restored := openAt(t, path)
	records, err := restored.Records(t.Context(), point.Sequence-1, 2)
	if err != nil || len(records) != 1 || records[0].Leaf() != point.Leaf || !records[0].At.Equal(point.At) {
		t.Errorf("newest record of the copy: %v, %v; want %v", records, err, point)
	}
	tally, err := restored.Tally(t.Context())
	if err != nil || tally.Records != point.Sequence {
		t.Errorf("tally of the copy: %+v, %v", tally, err)
	}
}

// saved writes a copy to a file of its own.
func saved(t *testing.T, c store.Copy) string {
	t.Helper()
	raw, err := io.ReadAll(c)
	if err := errors.Join(err, c.Close()); err != nil || int64(len(raw)) != c.Size {
		t.Fatalf("%d bytes of %d: %v", len(raw), c.Size, err)
	}
	path := filepath.Join(t.TempDir(), "copy.db")
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// An interrupted copy does not prevent the next one, and only one copy is made at a time.
func TestCopyLeftBehind(t *testing.T) {
	path := newPath(t)
	if err := os.WriteFile(path+".copy", []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := openAt(t, path)
	c, err := s.Copy(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(c.Close(), os.WriteFile(path+".copy", nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Copy(t.Context()); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("while another is made: %v", err)
	}
}

// Check reports damaged stores, and files that are not stores.
func TestCheck(t *testing.T) {
	s := openNew(t)
	if _, err := storetest.Seed(t.Context(), s, "alice"); err != nil {
		t.Fatal(err)
	}
	copied, err := s.Copy(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	point, path := copied.Point, saved(t, copied)
	if got, err := Check(t.Context(), path); err != nil || got != point {
		t.Fatalf("an untouched copy: %v, %v", got, err)
	}
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	page := bytes.Clone(good)
	copy(page[4096:], bytes.Repeat([]byte{0xff}, 4096))
	for name, raw := range map[string][]byte{"cut": good[:len(good)-4096], "a page of nothing": page, "text": []byte("no database"), "empty": nil} {
		if err := os.WriteFile(path, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Check(t.Context(), path); !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
