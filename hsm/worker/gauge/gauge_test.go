package gauge

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"countersign/hsm"
	"countersign/hsm/memory"
	"countersign/hsm/sheet"
)

func TestOperations(t *testing.T) {
	g, err := New(t.Context(), memory.New())
	if err != nil {
		t.Fatal(err)
	}
	both, check, err := g.Verified(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	calls := map[string]func(context.Context) error{"verified": both, "check": check}
	for _, op := range sheet.Operations {
		calls[op] = g.Operation(op)
	}
	for name, call := range calls {
		s, err := Measure(t.Context(), call, 3, 20*time.Millisecond)
		if err != nil || s.Rate <= 0 || s.P50 <= 0 || s.Max < s.P99 || s.P99 < s.P90 || s.P90 < s.P50 {
			t.Errorf("%s: %+v, %v", name, s, err)
		}
	}
}

// A measurement ends with the first error, whoever had it.
func TestMeasureFails(t *testing.T) {
	var n atomic.Int64
	_, err := Measure(t.Context(), func(context.Context) error {
		if n.Add(1) > 50 {
			return hsm.ErrUnavailable
		}
		return nil
	}, 4, time.Minute)
	if !errors.Is(err, hsm.ErrUnavailable) {
		t.Errorf("%v, want ErrUnavailable", err)
	}
}

// A token that signs wrongly has no speed.
func TestWrongSignature(t *testing.T) {
	g, err := New(t.Context(), liar{memory.New()})
	if err != nil {
		t.Fatal(err)
	}
	both, check, err := g.Verified(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := both(t.Context()); !errors.Is(err, errSignature) {
		t.Errorf("%v, want errSignature", err)
	}
	if err := check(t.Context()); !errors.Is(err, errSignature) {
		t.Errorf("%v, want errSignature", err)
	}
}

// liar flips a bit of each signature.
type liar struct{ hsm.Token }

func (l liar) Sign(ctx context.Context, key hsm.KeyID, digest []byte) ([]byte, error) {
	sig, err := l.Token.Sign(ctx, key, digest)
	if err == nil {
		sig[40] ^= 1
	}
	return sig, err
}
