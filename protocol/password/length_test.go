package password

import (
	"errors"
	"testing"
)

func TestLengthOf(t *testing.T) {
	for field, want := range map[string]int{
		"4": 4, "12": 12, "64": 64, "": DefaultLength, "3": DefaultLength, "65": DefaultLength, "012": DefaultLength, "+12": DefaultLength,
		"1e1": DefaultLength, "260": DefaultLength, "-1": DefaultLength,
	} {
		if got := LengthOf(field); got != want {
			t.Errorf("%q: %d, want %d", field, got, want)
		}
	}
}

// TestCheckLength: what counts are characters of the form that is stretched, not bytes and not what was typed.
func TestCheckLength(t *testing.T) {
	for text, want := range map[string]int{
		"x": 1, "abcdef": 6, "äöüäöü": 6, "e\u0301e\u0301e\u0301": 3, "\uFB01\uFB01\uFB01": 6, "": 0,
	} {
		var short *ShortError
		typed := []byte(text)
		if err := CheckLength(typed, want); err != nil || string(typed) != text {
			t.Errorf("%q: %v, and then it is %q", text, err, typed)
		}
		if err := CheckLength([]byte(text), want+1); !errors.As(err, &short) || short.Length != want || short.Least != want+1 {
			t.Errorf("%q: %v", text, err)
		}
	}
}
