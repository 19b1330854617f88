package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"time"

	"countersign/appliance"
	"countersign/appliance/admin"
	"countersign/appliance/change"
	"countersign/appliance/keyring"
	"countersign/appliance/store"
	"countersign/hsm"
	"countersign/protocol"
	"countersign/protocol/deviceapi"
)

// retryAfter is what a caller is told to wait when the token or the store is away
// or everything is busy.
const retryAfter = time.Second

// problemFor is the one table from errors to OA1 answers. What is not in it is an
// internal error that tells nothing.
func problemFor(err error) deviceapi.Problem {
	retry := protocol.Retry{After: retryAfter}
	switch code, _ := protocol.CodeOf(err); {
	case isAny(err, hsm.ErrUnavailable, hsm.ErrPIN, hsm.ErrKey, keyring.ErrNoKey, store.ErrUnavailable, context.DeadlineExceeded):
		retry.Code = protocol.CodeHSM
	case code == protocol.CodeBusy, errors.Is(err, hsm.ErrBusy):
		retry.Code = protocol.CodeBusy
	case errors.Is(err, appliance.ErrTaken):
		return refused(http.StatusConflict)
	case errors.Is(err, appliance.ErrNoTransaction):
		return refused(http.StatusNotFound)
	case deviceapi.HTTPStatus(code) == http.StatusInternalServerError:
		return deviceapi.ProblemOf(nil)
	default:
		return deviceapi.ProblemOf(code)
	}
	return deviceapi.ProblemOf(retry)
}

func isAny(err error, targets ...error) bool {
	return slices.ContainsFunc(targets, func(target error) bool { return errors.Is(err, target) })
}

func refused(status int) deviceapi.Problem {
	p := deviceapi.ProblemOf(protocol.CodeRefused)
	p.Status = status
	return p
}

// fail answers an error as problem+json. The detail of an error stays here: it is
// logged, once, and what the caller did wrong is told only for malformed input.
func (a *API) fail(w http.ResponseWriter, r *http.Request, err error) {
	if r.Context().Err() != nil {
		a.Logger.Debug("peer is gone", "path", r.URL.Path, "error", err)
		return
	}
	p := problemFor(err)
	if p.Status == http.StatusBadRequest {
		p.Detail = err.Error()
	}
	if p.Retry != 0 {
		w.Header().Set("Retry-After", strconv.FormatUint(p.Retry, 10))
	}
	if p.Status >= http.StatusInternalServerError {
		a.Logger.Error("request failed", "path", r.URL.Path, "status", p.Status, "error", err)
	} else {
		a.Logger.Debug("request refused", "path", r.URL.Path, "status", p.Status, "error", err)
	}
	writeProblem(w, p.Status, p)
}

func writeProblem(w http.ResponseWriter, status int, p any) {
	w.Header().Set("Content-Type", deviceapi.ProblemType)
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(p) // the peer is gone: nothing to do
}

// adminProblem is the table of the admin API, which tells its caller everything.
func adminProblem(err error) admin.Problem {
	p := plainProblem(err)
	var waiting *appliance.Waiting
	if errors.As(err, &waiting) {
		words := changeWords(waiting.Change)
		p.Change = &words
	}
	var invited *invitedLater
	if errors.As(err, &invited) {
		p.Invited = &invited.Invited
	}
	return p
}

func plainProblem(err error) admin.Problem {
	for _, row := range []struct {
		err    error
		status int
		kind   string
	}{
		{appliance.ErrInput, http.StatusBadRequest, admin.ProblemInput},
		{keyring.ErrKeyName, http.StatusNotFound, admin.ProblemNotFound},
		{keyring.ErrStep, http.StatusConflict, admin.ProblemKeyStep},
		{keyring.ErrEarly, http.StatusConflict, admin.ProblemKeyStep},
		{keyring.ErrRootAway, http.StatusConflict, admin.ProblemKeyStep},
		{keyring.ErrNoKey, http.StatusConflict, admin.ProblemKeyStep},
		{hsm.ErrUnsupported, http.StatusNotImplemented, admin.ProblemUnsupported},
		{appliance.ErrUncovered, http.StatusConflict, admin.ProblemUncovered},
		{appliance.ErrQuorum, http.StatusForbidden, admin.ProblemQuorum},
		{appliance.ErrOver, http.StatusConflict, admin.ProblemOver},
		{appliance.ErrSigner, http.StatusForbidden, admin.ProblemSigner},
		{change.ErrSignature, http.StatusForbidden, admin.ProblemSignature},
		{hsm.ErrExists, http.StatusConflict, admin.ProblemConflict},
		{store.ErrNotFound, http.StatusNotFound, admin.ProblemNotFound},
		{store.ErrExists, http.StatusConflict, admin.ProblemExists},
		{store.ErrConflict, http.StatusConflict, admin.ProblemConflict},
		{appliance.ErrFinal, http.StatusConflict, admin.ProblemConflict},
		{appliance.ErrForged, http.StatusConflict, admin.ProblemConflict},
		{hsm.ErrPIN, http.StatusForbidden, admin.ProblemPIN},
		{hsm.ErrBusy, http.StatusServiceUnavailable, admin.ProblemUnavailable},
		{store.ErrUnavailable, http.StatusServiceUnavailable, admin.ProblemUnavailable},
		{hsm.ErrUnavailable, http.StatusServiceUnavailable, admin.ProblemUnavailable},
		{hsm.ErrKey, http.StatusServiceUnavailable, admin.ProblemUnavailable},
	} {
		if errors.Is(err, row.err) {
			return admin.Problem{Type: row.kind, Title: row.err.Error(), Status: row.status, Detail: err.Error()}
		}
	}
	return admin.Problem{
		Type: admin.ProblemInternal, Title: "internal error", Status: http.StatusInternalServerError, Detail: err.Error(),
	}
}

var started = time.Now()

// uptime is how long this process has been running, seconds.
func uptime() float64 { return time.Since(started).Seconds() }
