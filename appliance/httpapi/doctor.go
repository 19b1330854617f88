package httpapi

import (
	"context"
	"errors"
	"net/http"

	"countersign/appliance"
	"countersign/appliance/admin"
	"countersign/appliance/store"
	"countersign/hsm"
)

// doctor examines what only this process may use: token and store.
func (a *Admin) doctor(r *http.Request) (any, error) {
	return Examinations(r.Context(), a.Appliance), nil
}

// Examinations examines an appliance, in the words of the admin API.
func Examinations(ctx context.Context, a *appliance.Appliance) []admin.Examination {
	out := []admin.Examination{}
	for _, f := range a.Examine(ctx) {
		w := admin.Examination{Check: f.Check, Status: admin.CheckOK, Detail: f.Detail}
		if f.Err != nil {
			w.Status, w.Detail, w.Advice = admin.CheckFail, f.Err.Error(), f.Advice
			w.ExitCode = exitCode(f.Err)
		}
		if f.Err != nil && f.Warn {
			w.Status, w.ExitCode = admin.CheckWarn, 0
		}
		out = append(out, w)
	}
	return out
}

// exitCode is the class of a failure: 77 PIN, 69 token or store away, else 1.
func exitCode(err error) int {
	switch {
	case errors.Is(err, hsm.ErrPIN):
		return 77
	case isAny(err, hsm.ErrUnavailable, store.ErrUnavailable, context.DeadlineExceeded):
		return 69
	}
	return 1
}
