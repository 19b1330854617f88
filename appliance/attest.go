package appliance

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"countersign/appliance/keylife"
)

// ErrStrangeKeys: keys on the token are not as the registry has them, or unknown to it.
var ErrStrangeKeys = errors.New("keys on the token are not as they must be")

// strangeKeys are what the last comparison of the token with the registry found wrong.
type strangeKeys struct {
	mu    sync.Mutex
	found []keylife.Finding // guarded by mu
}

// AttestKeys compares every object on the token with the registry. What it finds stands
// in the metric and in [Appliance.KeysAttested] until the next comparison.
func (a *Appliance) AttestKeys(ctx context.Context) ([]keylife.Finding, error) {
	a.keySteps.Lock() // a key that is just made has no row yet
	defer a.keySteps.Unlock()
	found, err := keylife.Attest(ctx, a.keys)
	if err != nil {
		return nil, err
	}
	var strange []keylife.Finding
	for _, f := range found {
		if !f.Good() {
			strange = append(strange, f)
		}
	}
	a.strange.mu.Lock()
	a.strange.found = strange
	a.strange.mu.Unlock()
	a.metrics.strange.Set(float64(len(strange)))
	return found, nil
}

// KeysAttested is [ErrStrangeKeys] when the last comparison found any.
func (a *Appliance) KeysAttested(context.Context) error {
	a.strange.mu.Lock()
	defer a.strange.mu.Unlock()
	strange := a.strange.found
	if len(strange) == 0 {
		return nil
	}
	return fmt.Errorf("%w: %d, %q first; see countersignctl key attest", ErrStrangeKeys, len(strange), strange[0].Name)
}

// attestDaily compares once a day, and says what is wrong where operators look: in the
// log, in a metric and as a warning in /readyz.
func (a *Appliance) attestDaily(ctx context.Context) {
	if a.now().Before(a.attested.Add(keylife.AttestPeriod)) {
		return
	}
	found, err := a.AttestKeys(ctx)
	if err != nil {
		a.log.Warn("the keys on the token could not be compared with the registry", "error", err)
		a.attested = a.now().Add(time.Hour - keylife.AttestPeriod)
		return
	}
	a.attested = a.now()
	for _, f := range found {
		if !f.Good() {
			a.log.Error("key on the token is not as the registry has it",
				"key", f.Name, "token", f.Token, "id", fmt.Sprintf("%x", f.ID), "unknown", f.Unknown, "drift", f.Drift)
		}
	}
}
