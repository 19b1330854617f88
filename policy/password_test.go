package policy

import (
	"strings"
	"testing"

	"countersign/protocol/password"
)

func TestPasswordLength(t *testing.T) {
	for text, want := range map[string]int{
		"": password.DefaultLength, "[password]\n": password.DefaultLength, "[password]\nmin_length = 12\n": 12, "[password]\nmin_length = 4\n": 4,
	} {
		if got := mustParse(t, quorumBase+text).PasswordLength(); got != want {
			t.Errorf("%q: %d, want %d", text, got, want)
		}
	}
	for text, want := range map[string]string{
		"[password]\nmin_length = 3\n": "4 to 64, found 3", "[password]\nmin_length = 65\n": "4 to 64", "[password]\nmin_length = \"8\"\n": "4 to 64",
		"[password]\nlength = 8\n": "password.length",
	} {
		if _, err := Parse([]byte(quorumBase + text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
	if got := new(Policy).PasswordLength(); got != password.DefaultLength {
		t.Errorf("of no policy: %d", got)
	}
}
