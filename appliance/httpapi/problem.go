package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"time"

	"countersign/appliance"
	"countersign/appliance/admin"
	"countersign/appliance/store"
	"countersign/hsm"
	"countersign/protocol"
)

// retryAfter is what a caller is told to wait when the token or the store is away
// or everything is busy, seconds.
const retryAfter = 1

// answerFor is the one table from errors to OA1 answers. What is not in it is an
// internal error that tells nothing.
func answerFor(err error) (status int, code protocol.Code) {
	switch {
	case errors.Is(err, hsm.ErrUnavailable), errors.Is(err, store.ErrUnavailable), errors.Is(err, context.DeadlineExceeded):
		return http.StatusServiceUnavailable, protocol.CodeHSM
	case errors.Is(err, appliance.ErrTaken):
		return http.StatusConflict, protocol.CodeRefused
	case errors.Is(err, store.ErrNotFound):
		return http.StatusNotFound, protocol.CodeRefused
	}
	code, _ = protocol.CodeOf(err)
	switch code {
	case protocol.CodeFormat, protocol.CodeVersion, protocol.CodeSignature, protocol.CodeLevel:
		return http.StatusBadRequest, code
	case protocol.CodeRefused, protocol.CodeDevice:
		return http.StatusForbidden, code
	case protocol.CodeExpired:
		return http.StatusGone, code
	case protocol.CodeBusy:
		return http.StatusTooManyRequests, code
	default:
		return http.StatusInternalServerError, 0
	}
}

// fail answers an error as problem+json. The detail of an error stays here: it is
// logged, once, and what the caller did wrong is told only for malformed input.
func (a *API) fail(w http.ResponseWriter, r *http.Request, err error) {
	status, code := answerFor(err)
	p := protocol.Problem{Type: "about:blank", Title: http.StatusText(status), Status: status, Code: code}
	if code != 0 {
		p.Title = code.String()
	}
	if status == http.StatusBadRequest {
		p.Detail = err.Error()
	}
	if status == http.StatusServiceUnavailable || status == http.StatusTooManyRequests {
		p.Retry = retryAfter
		w.Header().Set("Retry-After", strconv.Itoa(retryAfter))
	}
	if status >= http.StatusInternalServerError {
		a.Logger.Error("request failed", "path", r.URL.Path, "status", status, "error", err)
	} else {
		a.Logger.Debug("request refused", "path", r.URL.Path, "status", status, "error", err)
	}
	writeProblem(w, status, p)
}

func writeProblem(w http.ResponseWriter, status int, p any) {
	w.Header().Set("Content-Type", protocol.ProblemType)
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(p) // the peer is gone: nothing to do
}

func encodeJSON(v any) ([]byte, error) { return json.Marshal(v) }

// adminProblem is the table of the admin API, which tells its caller everything.
func adminProblem(err error) admin.Problem {
	for _, row := range []struct {
		err    error
		status int
		kind   string
	}{
		{appliance.ErrInput, http.StatusBadRequest, admin.ProblemInput},
		{store.ErrNotFound, http.StatusNotFound, admin.ProblemNotFound},
		{store.ErrExists, http.StatusConflict, admin.ProblemExists},
		{store.ErrConflict, http.StatusConflict, admin.ProblemConflict},
		{appliance.ErrFinal, http.StatusConflict, admin.ProblemConflict},
		{store.ErrUnavailable, http.StatusServiceUnavailable, admin.ProblemUnavailable},
		{hsm.ErrUnavailable, http.StatusServiceUnavailable, admin.ProblemUnavailable},
	} {
		if errors.Is(err, row.err) {
			return admin.Problem{Type: row.kind, Title: row.err.Error(), Status: row.status, Detail: err.Error()}
		}
	}
	return admin.Problem{
		Type: admin.ProblemInternal, Title: "internal error", Status: http.StatusInternalServerError, Detail: err.Error(),
	}
}

// uptime is since this process started.
var started = time.Now()

func uptime() float64 { return time.Since(started).Seconds() }
