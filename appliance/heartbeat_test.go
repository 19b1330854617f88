package appliance

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"countersign/hsm"
)

// TestHeartbeat: the last result of a use decides, and so does the age of the last good one.
func TestHeartbeat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &Appliance{}
		var part half
		var failure error
		hangs := false
		use := func(ctx context.Context) error {
			if hangs {
				<-ctx.Done()
				return ctx.Err()
			}
			return failure
		}
		is := func(what string, want error) {
			t.Helper()
			if _, err := part.state(); !errors.Is(err, want) || want != nil && !errors.Is(err, ErrHeartbeat) {
				t.Errorf("%s: %v, want %v", what, err, want)
			}
		}
		is("before the first", ErrHeartbeat)
		failure = hsm.ErrBusy
		a.beat(t.Context(), &part, use)
		is("a token that is busy from the start", ErrHeartbeat)
		failure = nil
		a.beat(t.Context(), &part, use)
		is("good", nil)
		failure = hsm.ErrBusy
		a.beat(t.Context(), &part, use)
		is("busy", nil)
		time.Sleep(beatStale)
		a.beat(t.Context(), &part, use)
		is("just not too old", nil)
		time.Sleep(time.Millisecond)
		is("busy for too long", ErrHeartbeat)
		failure = errors.New("gone")
		a.beat(t.Context(), &part, use)
		is("failed", failure)
		failure = nil
		a.beat(t.Context(), &part, use)
		is("good again", nil)
		hangs = true
		start := time.Now()
		a.beat(t.Context(), &part, use)
		is("hung", context.DeadlineExceeded)
		if took := time.Since(start); took != beatLimit {
			t.Errorf("a use that hangs took %v", took)
		}
	})
}
