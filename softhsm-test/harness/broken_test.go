package harness_test

import (
	"testing"

	"countersign/softhsm-test/harness"
)

// TestEdit: an edit fails unless its old text occurs exactly once.
func TestEdit(t *testing.T) {
	for text, want := range map[string]string{"a b c": "a x c", "a c": "", "b b": ""} {
		got, err := harness.Edit{File: "x.go", Old: "b", New: "x"}.Apply([]byte(text))
		if (err == nil) != (want != "") || string(got) != want {
			t.Errorf("%q: %q, %v", text, got, err)
		}
	}
}
