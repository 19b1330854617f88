package backup

import (
	"context"
	"slices"
	"time"

	"countersign/appliance/store"
	"countersign/appliance/store/audit"
)

// endedSpan is how far before its newest record a copy is searched for what was ended,
// and endedPage how many records are read at a time.
const (
	endedSpan = 30 * 24 * time.Hour
	endedPage = 500
)

// Records are the audit records of a store.
type Records interface {
	Records(ctx context.Context, after uint64, limit int) ([]audit.Record, error)
}

// Ended lists the audit records up to a point by which clients, devices and
// administrators were revoked or suspended in the 30 days before it, the oldest first.
func Ended(ctx context.Context, from Records, point store.Point) (ended []audit.Record, err error) {
	since := point.At.Add(-endedSpan)
	for last, young := point.Sequence, true; last > 0 && young; last -= min(last, endedPage) {
		first := last - min(last, endedPage)
		page, err := from.Records(ctx, first, int(last-first))
		if err != nil {
			return nil, err
		}
		young = false
		for _, r := range slices.Backward(page) {
			recent := !r.At.Before(since)
			young = young || recent
			if recent && endsOne(r) {
				ended = append(ended, r)
			}
		}
	}
	slices.Reverse(ended)
	return ended, nil
}

func endsOne(r audit.Record) bool {
	if !slices.Contains([]string{audit.KindClients, audit.KindDevices, audit.KindAdmins}, r.Kind) {
		return false
	}
	event := r.Words()["event"]
	return event == store.Revoked.String() || event == store.Suspended.String()
}
