package restore

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// TestTwoRestores: while one restore works on the database, no other begins.
func TestTwoRestores(t *testing.T) {
	h := Host{StateDir: t.TempDir()}
	h.Store = filepath.Join(h.StateDir, "countersign.db")
	turn, err := h.alone()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.alone(); !errors.Is(err, ErrRunning) {
		t.Errorf("a second restore: %v", err)
	}
	if err := turn.Close(); err != nil {
		t.Fatal(err)
	}
	if turn, err = h.alone(); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(turn.Close(), os.WriteFile(h.Store, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if _, err := h.alone(); !errors.Is(err, ErrStoreExists) {
		t.Errorf("with a store in place: %v", err)
	}
}
