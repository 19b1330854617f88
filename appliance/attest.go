package appliance

import (
	"context"
	"errors"
	"time"

	"countersign/appliance/keyring"
)

// AttestKeys compares every object on the token with the registry.
func (a *Appliance) AttestKeys(ctx context.Context) ([]keyring.Finding, error) {
	return a.keys.Attest(ctx)
}

// attestDaily compares once a day, and says what is wrong where operators look: in the
// log and in a metric.
func (a *Appliance) attestDaily(ctx context.Context) {
	if a.now().Before(a.attested.Add(keyring.AttestPeriod)) {
		return
	}
	found, err := a.keys.Attest(ctx)
	if errors.Is(err, keyring.ErrNoAttest) {
		a.attested = a.now()
		return // told whoever asks: countersignctl key attest
	}
	if err != nil {
		a.log.Warn("the keys on the token could not be compared with the registry", "error", err)
		a.attested = a.now().Add(time.Hour - keyring.AttestPeriod)
		return
	}
	a.attested = a.now()
	wrong := 0
	for _, f := range found {
		if f.Unknown || f.Drift != nil {
			wrong++
			a.log.Error("key on the token is not as the registry has it", "key", f.Name, "id", f.ID.String(), "unknown", f.Unknown, "drift", f.Drift)
		}
	}
	a.metrics.strange.Set(float64(wrong))
}
