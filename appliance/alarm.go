package appliance

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// alarms says what did not fit its seal where operators look: in the log, once a minute
// for each record, and in the metric each time.
type alarms struct {
	mu   sync.Mutex
	said map[string]time.Time // guarded by mu
}

// Bounds of what is remembered to have been said.
const (
	alarmAgain = time.Minute
	alarmsKept = 1000
)

func (a *alarms) isNew(text string, now time.Time) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if last, ok := a.said[text]; ok && now.Sub(last) < alarmAgain && !now.Before(last) {
		return false
	}
	if a.said == nil || len(a.said) >= alarmsKept {
		a.said = map[string]time.Time{}
	}
	a.said[text] = now
	return true
}

// ErrForgedRecords means that records did not fit their seals since the start.
var ErrForgedRecords = errors.New("records did not fit their seals")

// RecordsFit is [ErrForgedRecords] when any record that was read did not fit its seal.
func (a *Appliance) RecordsFit(context.Context) error {
	if n := a.seals.Forged(); n > 0 {
		return fmt.Errorf("%w, %d times since the start: countersignd doctor names them", ErrForgedRecords, n)
	}
	return nil
}

// alarm is what the seals call.
func (a *Appliance) alarm(err error) {
	a.metrics.forged.Inc()
	if a.alarms.isNew(err.Error(), time.Now()) {
		a.log.Error("record was changed outside of the appliance", "error", err)
	}
}
