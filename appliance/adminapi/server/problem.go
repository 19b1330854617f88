package server

import (
	"context"
	"errors"
	"net/http"

	"countersign/appliance"
	"countersign/appliance/adminapi"
	"countersign/appliance/change"
	"countersign/appliance/keyplan"
	"countersign/appliance/keyring"
	"countersign/appliance/store"
	"countersign/hsm"
)

// problems is the table from errors to answers of the admin API. The first match counts.
var problems = []struct {
	err    error
	status int
	kind   string
}{
	{appliance.ErrInput, http.StatusBadRequest, adminapi.ProblemInput},
	{keyplan.ErrKeyName, http.StatusNotFound, adminapi.ProblemNotFound},
	{keyplan.ErrStep, http.StatusConflict, adminapi.ProblemKeyStep},
	{keyplan.ErrEarly, http.StatusConflict, adminapi.ProblemKeyStep},
	{keyplan.ErrRootAway, http.StatusConflict, adminapi.ProblemKeyStep},
	{keyring.ErrNoKey, http.StatusConflict, adminapi.ProblemKeyStep},
	{hsm.ErrUnsupported, http.StatusNotImplemented, adminapi.ProblemUnsupported},
	{appliance.ErrUncovered, http.StatusConflict, adminapi.ProblemUncovered},
	{appliance.ErrQuorum, http.StatusForbidden, adminapi.ProblemQuorum},
	{appliance.ErrOver, http.StatusConflict, adminapi.ProblemOver},
	{appliance.ErrSigner, http.StatusForbidden, adminapi.ProblemSigner},
	{change.ErrSignature, http.StatusForbidden, adminapi.ProblemSignature},
	{hsm.ErrExists, http.StatusConflict, adminapi.ProblemConflict},
	{store.ErrNotFound, http.StatusNotFound, adminapi.ProblemNotFound},
	{store.ErrExists, http.StatusConflict, adminapi.ProblemExists},
	{store.ErrConflict, http.StatusConflict, adminapi.ProblemConflict},
	{appliance.ErrFinal, http.StatusConflict, adminapi.ProblemConflict},
	{appliance.ErrForged, http.StatusConflict, adminapi.ProblemConflict},
	{hsm.ErrPIN, http.StatusForbidden, adminapi.ProblemPIN},
	{hsm.ErrBusy, http.StatusServiceUnavailable, adminapi.ProblemUnavailable},
	{store.ErrUnavailable, http.StatusServiceUnavailable, adminapi.ProblemUnavailable},
	{hsm.ErrUnavailable, http.StatusServiceUnavailable, adminapi.ProblemUnavailable},
	{hsm.ErrKey, http.StatusServiceUnavailable, adminapi.ProblemUnavailable},
}

// problem returns the answer to an error. Administrators see its whole text.
func problem(err error) adminapi.Problem {
	p := adminapi.Problem{
		Type: adminapi.ProblemInternal, Title: "internal error", Status: http.StatusInternalServerError, Detail: err.Error(),
	}
	for _, row := range problems {
		if errors.Is(err, row.err) {
			p.Type, p.Title, p.Status = row.kind, row.err.Error(), row.status
			break
		}
	}
	var waiting *appliance.Waiting
	if errors.As(err, &waiting) {
		c := changeJSON(waiting.Change)
		p.Change = &c
	}
	var invited *invitedLater
	if errors.As(err, &invited) {
		p.Invited = &invited.Invited
	}
	return p
}

// Examinations examines an appliance.
func Examinations(ctx context.Context, e Examiner) []adminapi.Examination {
	out := []adminapi.Examination{}
	for _, f := range e.Examine(ctx) {
		x := adminapi.Examination{Check: f.Check, Status: adminapi.CheckOK, Detail: f.Detail}
		if f.Err != nil {
			x.Detail, x.Advice = f.Err.Error(), f.Advice
		}
		switch {
		case f.Err != nil && f.Warn:
			x.Status = adminapi.CheckWarn
		case f.Err != nil:
			x.Status, x.ExitCode = adminapi.CheckFail, exitCode(f.Err)
		}
		out = append(out, x)
	}
	return out
}

// exitCode returns the exit code for a failed check: 77 for the PIN, 69 for an unavailable token or store, else 1.
func exitCode(err error) int {
	for _, row := range []struct {
		err  error
		code int
	}{{hsm.ErrPIN, 77}, {hsm.ErrUnavailable, 69}, {store.ErrUnavailable, 69}, {context.DeadlineExceeded, 69}} {
		if errors.Is(err, row.err) {
			return row.code
		}
	}
	return 1
}
