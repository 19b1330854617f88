package secret

import (
	"encoding/json"
	"fmt"
	"testing"
)

func TestNothingPrints(t *testing.T) {
	embedded := struct {
		Hidden
		key []byte
	}{key: []byte("canary")}
	for _, v := range []any{Bytes("canary"), &embedded, embedded, []Bytes{Bytes("canary")}[0]} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d", "%t"} {
			if got := fmt.Sprintf(verb, v); got != Redacted {
				t.Errorf("%T, %s: %q", v, verb, got)
			}
		}
	}
	if raw, err := json.Marshal(map[string]any{"pin": Bytes("canary")}); err != nil || string(raw) != `{"pin":"[redacted]"}` {
		t.Errorf("%s, %v", raw, err)
	}
	b := Bytes("canary")
	b.Zero()
	if string(b) != "\x00\x00\x00\x00\x00\x00" {
		t.Errorf("%q is left", []byte(b))
	}
}
