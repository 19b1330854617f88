package relay

import (
	"context"
	"errors"
	"net/http"
	"time"

	"countersign/protocol/deviceapi"
	"countersign/relay/journal"
	"countersign/relay/uplink"
)

// The pauses between reports that fail.
const (
	firstReportPause = time.Second
	lastReportPause  = 5 * time.Minute
)

// reportOutcomes tells the appliance what became of its approvals, those of
// earlier runs first, until ctx is over. What is not acknowledged stays in the
// journal.
func (r *Relay) reportOutcomes(ctx context.Context) {
	wait := time.Duration(0)
	for ctx.Err() == nil {
		if r.reportAll(ctx) {
			wait = 0
			select {
			case <-r.unsettled:
			case <-ctx.Done():
			}
			continue
		}
		wait = min(max(2*wait, firstReportPause), lastReportPause)
		r.awaitReport(ctx, wait)
	}
}

// awaitReport waits for d, or for a new outcome: that came of a decision, so the
// appliance is there again.
func (r *Relay) awaitReport(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-r.unsettled:
	case <-ctx.Done():
	}
}

// reportAll is false if something is left to report.
func (r *Relay) reportAll(ctx context.Context) bool {
	for _, o := range r.journal.Unsettled() {
		err := r.client.Outcome(ctx, deviceapi.OutcomeRequest{Transaction: o.Transaction, Performed: o.Performed})
		if err != nil && !r.isFinal(o, err) {
			return false
		}
		if err := r.journal.Settle(o.Transaction); err != nil {
			r.fail(err)
			return false
		}
	}
	return true
}

// isFinal says whether the appliance will never hear of an outcome: asking again
// would not change a request that it refuses.
func (r *Relay) isFinal(o journal.Outcome, err error) bool {
	var answer *uplink.StatusError
	if !errors.As(err, &answer) || answer.Status < 400 || answer.Status > 499 {
		return false
	}
	switch answer.Status {
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusRequestTimeout, http.StatusTooManyRequests:
		return false // the device may be resumed
	}
	r.log.Error("outcome refused", "transaction", o.Transaction.String(), "performed", o.Performed, "status", answer.Status)
	return true
}
