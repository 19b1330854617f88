package audit

import (
	"crypto/sha256"
	"reflect"
	"testing"
	"time"
)

func TestLeaf(t *testing.T) {
	rec := NewRecord(KindPolicy, "policy/1", map[string]any{"version": 1, "hash": []byte{0xAB}})
	if got := rec.Words(); !reflect.DeepEqual(got, map[string]any{"version": uint64(1), "hash": "ab"}) {
		t.Errorf("words: %v", got)
	}
	other := rec
	other.Salt[0]++
	if rec.Leaf() == other.Leaf() || rec.Leaf() != sha256.Sum256(append(rec.Salt[:], rec.Body...)) {
		t.Error("the leaf is not SHA-256(salt || body)")
	}
	if rec.Salt == NewSalt() || !rec.At.Equal(rec.At.UTC().Truncate(time.Microsecond)) {
		t.Errorf("record %+v", rec)
	}
	rec.Body = []byte{0xFF}
	if rec.Words()["error"] == nil {
		t.Error("a body that is no CBOR has words")
	}
}
