package enrol_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"countersign/appliance"
	"countersign/appliance/appliancetest"
	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/protocol"
	protocolenrol "countersign/protocol/enrol"
)

// TestRenewalsAreLimited: a device gets four certificates an hour by one authority, and the time to wait
// for the next. Other devices get theirs, and so does this one after a rotation of ca.
func TestRenewalsAreLimited(t *testing.T) {
	b := appliancetest.New(t)
	other := b.EnrolDevice("other")
	csr := protocolenrol.RenewRequest{CSR: appliancetest.NewCSR(t)}
	renews := func(times int) {
		t.Helper()
		for range times {
			if answer, err := b.Enrol.Renew(t.Context(), b.Gate, csr); err != nil || len(answer.Certificates) != 2 {
				t.Fatal(err)
			}
		}
	}
	waits := func(want time.Duration) {
		t.Helper()
		before := b.Tally()
		var retry protocol.Retry
		for range 10 {
			if _, err := b.Enrol.Renew(t.Context(), b.Gate, csr); !errors.As(err, &retry) || retry != (protocol.Retry{Code: protocol.CodeBusy, After: want}) {
				t.Fatalf("renewed, or %v", err)
			}
		}
		if after := b.Tally(); after != before {
			t.Errorf("the store went from %+v to %+v", before, after)
		}
	}
	renews(1)
	b.Clock.Advance(20 * time.Minute)
	renews(3)
	waits(40 * time.Minute)
	if _, err := b.Enrol.Renew(t.Context(), other, csr); err != nil {
		t.Errorf("another device: %v", err)
	}
	b.Clock.Advance(40 * time.Minute)
	renews(1)
	waits(20 * time.Minute)
	b.Clock.Advance(-10 * time.Minute) // a clock that was set back
	waits(30 * time.Minute)
	b.Clock.Advance(30 * time.Minute)
	renews(3)
	waits(30 * time.Minute)
	b.Step("rotate", "ca")
	b.Step("activate", "ca")
	renews(4)
	waits(time.Hour)
}

// full is a store that takes no audit records.
type full struct {
	store.Store
	is bool
}

func (f *full) Append(ctx context.Context, rec audit.Record) error {
	if f.is {
		return store.ErrUnavailable
	}
	return f.Store.Append(ctx, rec)
}

// TestFailedRenewals: renewals that fail do not count.
func TestFailedRenewals(t *testing.T) {
	b := appliancetest.New(t)
	s := &full{Store: b.Store}
	b.Restart(func(c *appliance.Config) { c.Store = s })
	csr := protocolenrol.RenewRequest{CSR: appliancetest.NewCSR(t)}
	for n := range 4 {
		s.is = true
		for range 10 {
			if _, err := b.Enrol.Renew(t.Context(), b.Gate, csr); !errors.Is(err, store.ErrUnavailable) {
				t.Fatal(err)
			}
		}
		s.is = false
		if _, err := b.Enrol.Renew(t.Context(), b.Gate, csr); err != nil {
			t.Errorf("after %d failures and %d renewals: %v", 10*n+10, n, err)
		}
	}
}
