package broken_test

import (
	"os"
	"path/filepath"
	"testing"

	"countersign/softhsm-test/rig/broken"
)

// TestEdit: a text that is not there exactly once breaks nothing.
func TestEdit(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.go")
	for text, want := range map[string]string{"a b c": "a x c", "a c": "", "b b": ""} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		err := broken.Edit{File: "x.go", Old: "b", New: "x"}.Apply(path)
		got, readErr := os.ReadFile(path)
		if readErr != nil || (err == nil) != (want != "") || err == nil && string(got) != want {
			t.Errorf("%q: %q, %v", text, got, err)
		}
	}
}
