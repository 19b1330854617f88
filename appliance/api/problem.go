package api

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"time"

	"countersign/appliance"
	"countersign/appliance/keyring"
	"countersign/appliance/store"
	"countersign/hsm"
	"countersign/protocol"
	"countersign/protocol/deviceapi"
)

// retryAfter is the wait that a caller is asked for when token or store is unavailable or busy.
const retryAfter = time.Second

// problem is the table from errors to answers. Any other error is an internal error without detail.
func problem(err error) deviceapi.Problem {
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

// fail answers an error as problem+json and logs it, once. The caller sees its text only if the request was malformed.
func (a *API) fail(w http.ResponseWriter, r *http.Request, err error) {
	if r.Context().Err() != nil {
		a.Logger.Debug("peer is gone", "path", r.URL.Path, "error", err)
		return
	}
	p := problem(err)
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
	writeProblem(w, p)
}

func writeProblem(w http.ResponseWriter, p deviceapi.Problem) {
	w.Header().Set("Content-Type", deviceapi.ProblemType)
	w.WriteHeader(p.Status)
	_ = json.NewEncoder(w).Encode(p) // an error means that the peer is gone
}
