package authorize

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"

	"countersign/appliance/store"
	"countersign/internal/clock"
	"countersign/protocol"
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

// TestHandleOfBefore: a handle that the release before sealed opens, and its time goes by the
// clock alone.
func TestHandleOfBefore(t *testing.T) {
	type before struct {
		_         struct{} `cbor:",toarray"`
		Issued    int64
		PRK, TH2  []byte
		Root      protocol.RootID
		P1, P2    []byte
		Challenge protocol.Challenge
		U         protocol.Nonce
		Policy    uint64
		Reference string
		First     *pending
	}
	issued := time.Now().Truncate(time.Millisecond)
	raw, err := cbor.Marshal(before{Issued: issued.UnixMilli(), PRK: []byte{1}, P2: []byte{2}, Policy: 3, First: &pending{Slot: 4}})
	if err != nil {
		t.Fatal(err)
	}
	h, err := parseHandle(raw)
	if err != nil || h.Issued != issued.UnixMilli() || h.Policy != 3 || h.First == nil || h.First.Slot != 4 || h.Boot.ID != [4]byte{} {
		t.Fatalf("%+v, %v", h, err)
	}
	host := clock.Boot{ID: [4]byte{1}, At: 100 * time.Hour}
	if h.expired(issued.Add(time.Minute), host, time.Minute) || !h.expired(issued.Add(time.Minute+1), host, time.Minute) {
		t.Error("its time does not go by the clock")
	}
	for _, bad := range [][]byte{nil, {0x80}, {0xa0}, append(raw, 0)} {
		if h, err := parseHandle(bad); err == nil {
			t.Errorf("%x: %+v", bad, h)
		}
	}
}
