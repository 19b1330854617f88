package appliance_test

import (
	"strings"
	"testing"
	"time"

	"countersign/appliance"
	"countersign/appliance/appliancetest"
)

// TestExamineClock: a clock behind the newest record is found, and no other examination advises to act on dates then.
func TestExamineClock(t *testing.T) {
	b := appliancetest.New(t)
	found := func() map[string]appliance.Finding {
		all := map[string]appliance.Finding{}
		for _, f := range b.Examine(t.Context()) {
			all[f.Check] = f
		}
		return all
	}
	if f := found(); f["clock"].Err != nil || f["dates"].Err != nil {
		t.Fatalf("at first: %+v, %+v", f["clock"], f["dates"])
	}
	b.Clock.Advance(-3 * time.Hour)
	for range 2 { // the first examination must not write a record that hides the clock from the second
		f := found()
		if f["clock"].Err == nil || !strings.Contains(f["clock"].Err.Error(), "3h0m") {
			t.Errorf("clock: %+v", f["clock"])
		}
		if f["dates"].Err == nil || strings.Contains(f["dates"].Advice, "key rotate") {
			t.Errorf("dates: %+v", f["dates"])
		}
	}
}
