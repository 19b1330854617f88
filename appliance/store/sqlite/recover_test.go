package sqlite

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"countersign/appliance/store"
	"countersign/appliance/store/storetest"
)

// A copy that is made while others write is of one moment: it has every record up to
// its point, opens as a store, and is nobody else's to read.
func TestCopyWhileServing(t *testing.T) {
	dir := t.TempDir()
	s := openAt(t, filepath.Join(dir, "s.db"))
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
	path := filepath.Join(dir, "copy.db")
	point, err := s.Copy(t.Context(), path)
	stop.Store(true)
	if err := errors.Join(err, <-ended); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
		t.Errorf("the copy: %v, %v", info, err)
	}
	again, err := s.Copy(t.Context(), path)
	if !errors.Is(err, fs.ErrExist) {
		t.Errorf("over a copy: %v, %v", again, err)
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

// Check tells what is damaged, and what is no store at all.
func TestCheck(t *testing.T) {
	dir := t.TempDir()
	s := openAt(t, filepath.Join(dir, "s.db"))
	if _, err := storetest.Seed(t.Context(), s, "alice"); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "copy.db")
	point, err := s.Copy(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
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
