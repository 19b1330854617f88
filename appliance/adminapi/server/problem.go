package server

import (
	"context"
	"errors"
	"net/http"

	"countersign/appliance"
	"countersign/appliance/adminapi"
	"countersign/appliance/adminapi/problem"
	"countersign/appliance/change"
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
	{appliance.ErrInput, http.StatusBadRequest, problem.Input},
	{keyring.ErrKeyName, http.StatusNotFound, problem.NotFound},
	{keyring.ErrStep, http.StatusConflict, problem.KeyStep},
	{keyring.ErrEarly, http.StatusConflict, problem.KeyStep},
	{keyring.ErrRootAway, http.StatusConflict, problem.KeyStep},
	{keyring.ErrNoKey, http.StatusConflict, problem.KeyStep},
	{hsm.ErrUnsupported, http.StatusNotImplemented, problem.Unsupported},
	{appliance.ErrUncovered, http.StatusConflict, problem.Uncovered},
	{appliance.ErrQuorum, http.StatusForbidden, problem.Quorum},
	{appliance.ErrOver, http.StatusConflict, problem.Over},
	{appliance.ErrSigner, http.StatusForbidden, problem.Signer},
	{change.ErrSignature, http.StatusForbidden, problem.Signature},
	{hsm.ErrExists, http.StatusConflict, problem.Conflict},
	{store.ErrNotFound, http.StatusNotFound, problem.NotFound},
	{store.ErrExists, http.StatusConflict, problem.Exists},
	{store.ErrConflict, http.StatusConflict, problem.Conflict},
	{appliance.ErrFinal, http.StatusConflict, problem.Conflict},
	{appliance.ErrForged, http.StatusConflict, problem.Conflict},
	{hsm.ErrPIN, http.StatusForbidden, problem.PIN},
	{hsm.ErrBusy, http.StatusServiceUnavailable, problem.Unavailable},
	{store.ErrUnavailable, http.StatusServiceUnavailable, problem.Unavailable},
	{hsm.ErrUnavailable, http.StatusServiceUnavailable, problem.Unavailable},
	{hsm.ErrKey, http.StatusServiceUnavailable, problem.Unavailable},
}

// problemOf returns the answer to an error. Administrators see its whole text.
func problemOf(err error) adminapi.Problem {
	p := adminapi.Problem{
		Type: problem.Internal, Title: "internal error", Status: http.StatusInternalServerError, Detail: err.Error(),
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
func Examinations(ctx context.Context, a *appliance.Appliance) []adminapi.Examination {
	out := []adminapi.Examination{}
	for _, f := range a.Examine(ctx) {
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
