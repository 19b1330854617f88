package authorize

import (
	"context"
	"errors"
	"testing"

	"countersign/appliance/store"
)

// TestTwoCheckOneAttempt: a second request with the same M3 is not checked beside the first,
// which could take back an attempt of which the second has learned the result.
func TestTwoCheckOneAttempt(t *testing.T) {
	var k checks
	one, other := store.AnswerKey{Attempt: 1}, store.AnswerKey{Attempt: 2}
	leave, err := k.enter(t.Context(), one)
	if err != nil {
		t.Fatal(err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := k.enter(gone, one); !errors.Is(err, context.Canceled) {
		t.Errorf("a second one: %v", err)
	}
	if leave, err := k.enter(gone, other); err != nil {
		t.Errorf("another attempt: %v", err)
	} else {
		leave()
	}
	leave()
	if leave, err = k.enter(gone, one); err != nil {
		t.Errorf("after the first: %v", err)
	}
	leave()
	if len(k.under) != 0 {
		t.Errorf("%d checks are kept", len(k.under))
	}
}
