// Package server serves the admin API of package adminapi on a Unix socket. The socket has mode 0600 and accepts only
// the daemon's own user and root, so every caller is the one identity "local".
//
// A handler decodes the request, calls the service that does the work, and translates its answer. Package server
// makes no decisions.
package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"

	"countersign/appliance"
	"countersign/appliance/adminapi"
	"countersign/appliance/adminapi/problem"
	"countersign/appliance/change"
	"countersign/appliance/change/requests"
	"countersign/appliance/keyplan"
	"countersign/appliance/keyring"
	"countersign/appliance/parties"
	"countersign/appliance/recovery"
	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/hsm"
	"countersign/internal/fault"
	"countersign/protocol/deviceapi"
)

// Bounds of request bodies, in bytes.
const (
	maxBody = 256 << 10 // a policy of 64 KiB, escaped for JSON
	maxPIN  = 255       // the longest PIN of the known tokens (CK_TOKEN_INFO.ulMaxPinLen)
)

// Server serves an appliance to administrators.
type Server struct {
	Appliance *appliance.Appliance
	HSM       HSM
	Logger    hclog.Logger
	StartedAt time.Time
}

// HSM has the endpoints that need no appliance: they are served while the token is still locked.
type HSM struct {
	Summary func() adminapi.HSM
	Status  func(context.Context) []adminapi.Token
	// Unlock tries a PIN once on the token of that name, "" for the only one. The PIN is erased after it returns.
	Unlock func(ctx context.Context, token string, pin []byte) error
	// Drain lets a token finish its calls and gives it no more; false ends that.
	Drain func(ctx context.Context, token string, drain bool) error
}

// Handler returns the handler of all routes.
func (s *Server) Handler() http.Handler {
	m := s.mux()
	r := adminapi.Routes
	bind(m, r.Status, s.status)
	bind(m, r.Doctor, func(req *http.Request, _ adminapi.None) ([]adminapi.Examination, error) {
		return append(Examinations(req.Context(), s.Appliance), ExamineTokens(s.HSM.Status(req.Context()))...), nil
	})
	bind(m, r.Audit, s.audit)
	s.bindParties(m)
	s.bindKeys(m)
	s.bindChanges(m)
	return m
}

// LockedHandler returns the handler for the time before the HSM is unlocked. It serves only the routes of the HSM.
func (s *Server) LockedHandler() http.Handler {
	m := s.mux()
	m.HandleFunc(adminapi.Prefix, func(w http.ResponseWriter, _ *http.Request) {
		writeProblem(w, adminapi.Problem{
			Type: problem.Locked, Title: "locked", Status: http.StatusServiceUnavailable, Detail: "the HSM waits for its PIN",
		})
	})
	return m
}

// mux returns a mux with the routes of the HSM.
func (s *Server) mux() *mux {
	m := &mux{log: s.Logger}
	bind(m, adminapi.Routes.HSMStatus, func(r *http.Request, _ adminapi.None) ([]adminapi.Token, error) {
		return s.HSM.Status(r.Context()), nil
	})
	bind(m, adminapi.Routes.HSMUnlock, s.unlock)
	bind(m, adminapi.Routes.HSMDrain, s.drain(true))
	bind(m, adminapi.Routes.HSMResume, s.drain(false))
	return m
}

// unlock reads the PIN itself, into one buffer that it erases.
func (s *Server) unlock(r *http.Request, _ []byte) ([]adminapi.Token, error) {
	pin, err := io.ReadAll(io.LimitReader(r.Body, maxPIN+1)) // it allocates 512 bytes at first and does not grow
	defer clear(pin)
	if err != nil || len(pin) == 0 || len(pin) > maxPIN {
		return nil, fmt.Errorf("%w: the body must be the PIN, 1 to %d bytes", parties.ErrInput, maxPIN)
	}
	if err := s.HSM.Unlock(r.Context(), r.URL.Query().Get("token"), pin); err != nil {
		return nil, err
	}
	return s.HSM.Status(r.Context()), nil
}

func (s *Server) drain(drain bool) handler[adminapi.None, []adminapi.Token] {
	return func(r *http.Request, _ adminapi.None) ([]adminapi.Token, error) {
		if err := s.HSM.Drain(r.Context(), r.PathValue("token"), drain); err != nil {
			return nil, err
		}
		return s.HSM.Status(r.Context()), nil
	}
}

// mux routes requests and answers errors.
type mux struct {
	http.ServeMux
	log hclog.Logger
}

// handler answers one endpoint.
type handler[Req, Res any] func(r *http.Request, body Req) (Res, error)

// one answers with the value of the path's name, as JSON.
func one[A, Res any](get func(context.Context, string) (A, error), toJSON func(A) Res) handler[adminapi.None, Res] {
	return func(r *http.Request, _ adminapi.None) (Res, error) {
		value, err := get(r.Context(), r.PathValue("name"))
		return toJSON(value), err
	}
}

// many answers with a list of values, as JSON.
func many[A, Res any](get func(context.Context) ([]A, error), toJSON func(A) Res) handler[adminapi.None, []Res] {
	return func(r *http.Request, _ adminapi.None) ([]Res, error) {
		values, err := get(r.Context())
		return each(values, toJSON), err
	}
}

// each applies f to every element. The result is never nil, so that its JSON is an array.
func each[A, B any](in []A, f func(A) B) []B {
	out := make([]B, len(in))
	for i, a := range in {
		out[i] = f(a)
	}
	return out
}

// bind serves a route.
func bind[Req, Res any](m *mux, route adminapi.Route[Req, Res], h handler[Req, Res]) {
	bindAny(m, route, func(r *http.Request, body Req) (any, error) { return h(r, body) })
}

// bindPreviewed serves a route that answers with a change request when the body asks for a dry run.
func bindPreviewed[Req, Res any](
	m *mux, route adminapi.Route[Req, Res], h func(r *http.Request, body Req) (*adminapi.Change, Res, error),
) {
	bindAny(m, route, func(r *http.Request, body Req) (any, error) {
		preview, value, err := h(r, body)
		if preview != nil {
			return preview, err
		}
		return value, err
	})
}

func bindAny[Req, Res any](m *mux, route adminapi.Route[Req, Res], h handler[Req, any]) {
	m.HandleFunc(route.Pattern(), func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		body, err := decode[Req](r)
		if err != nil {
			m.fail(w, r, err)
			return
		}
		value, err := h(r, body)
		if err != nil {
			m.fail(w, r, err)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(value) // an error means that the peer is gone
	})
}

// decode reads a JSON body; an empty one has no members. It leaves other bodies to the handler.
func decode[Req any](r *http.Request) (body Req, err error) {
	switch any(body).(type) {
	case adminapi.None, []byte:
		return body, nil
	}
	decoder := json.NewDecoder(r.Body)
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&body); err != nil && !errors.Is(err, io.EOF) {
		return body, fmt.Errorf("%w: %v", parties.ErrInput, err)
	}
	return body, nil
}

func (m *mux) fail(w http.ResponseWriter, r *http.Request, err error) {
	p, actor := problemOf(err), audit.ActorOf(r.Context()).String()
	if p.Change == nil {
		m.log.Info("admin request failed", "path", r.URL.Path, "actor", actor, "status", p.Status, "error", err)
	} else {
		m.log.Info("change waits for administrators", "change", p.Change.ID, "kind", p.Change.Kind, "more", p.Change.More, "actor", actor)
	}
	writeProblem(w, p)
}

func writeProblem(w http.ResponseWriter, p adminapi.Problem) {
	w.Header().Set("Content-Type", deviceapi.ProblemType)
	w.WriteHeader(p.Status)
	_ = json.NewEncoder(w).Encode(p) // an error means that the peer is gone
}

// problems is the table from errors to answers of the admin API. The first match counts.
var problems = []struct {
	err    error
	status int
	kind   string
}{
	{parties.ErrInput, http.StatusBadRequest, problem.Input},
	{keyplan.ErrKeyName, http.StatusNotFound, problem.NotFound},
	{keyplan.ErrStep, http.StatusConflict, problem.KeyStep},
	{keyplan.ErrEarly, http.StatusConflict, problem.KeyStep},
	{keyplan.ErrRootAway, http.StatusConflict, problem.KeyStep},
	{keyring.ErrNoKey, http.StatusConflict, problem.KeyStep},
	{hsm.ErrUnsupported, http.StatusNotImplemented, problem.Unsupported},
	{recovery.ErrUncovered, http.StatusConflict, problem.Uncovered},
	{requests.ErrQuorum, http.StatusForbidden, problem.Quorum},
	{requests.ErrOver, http.StatusConflict, problem.Over},
	{requests.ErrSigner, http.StatusForbidden, problem.Signer},
	{change.ErrSignature, http.StatusForbidden, problem.Signature},
	{hsm.ErrExists, http.StatusConflict, problem.Conflict},
	{store.ErrNotFound, http.StatusNotFound, problem.NotFound},
	{store.ErrExists, http.StatusConflict, problem.Exists},
	{store.ErrConflict, http.StatusConflict, problem.Conflict},
	{parties.ErrFinal, http.StatusConflict, problem.Conflict},
	{store.ErrForged, http.StatusConflict, problem.Conflict},
	{hsm.ErrPIN, http.StatusForbidden, problem.PIN},
	{hsm.ErrBusy, http.StatusServiceUnavailable, problem.Unavailable},
	{store.ErrUnavailable, http.StatusServiceUnavailable, problem.Store},
	{hsm.ErrUnavailable, http.StatusServiceUnavailable, problem.Unavailable},
	{hsm.ErrKey, http.StatusServiceUnavailable, problem.Unavailable},
}

// problemOf returns the answer to an error. Administrators see its whole text.
func problemOf(err error) adminapi.Problem {
	p := adminapi.Problem{
		Type: problem.Internal, Title: "internal error", Status: http.StatusInternalServerError,
		// Type and title say that the request is bad.
		Detail: strings.Replace(err.Error(), parties.ErrInput.Error()+": ", "", 1),
	}
	for _, row := range problems {
		if errors.Is(err, row.err) {
			p.Type, p.Title, p.Status = row.kind, row.err.Error(), row.status
			break
		}
	}
	var waiting *requests.Waiting
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

// ExamineTokens examines whether each of several tokens can take over. Another check fails if
// none can.
func ExamineTokens(tokens []adminapi.Token) (out []adminapi.Examination) {
	if len(tokens) < 2 {
		return nil
	}
	for _, t := range tokens {
		x := adminapi.Examination{Check: "token " + t.Name, Status: adminapi.CheckOK, Detail: t.State}
		if !t.Serves() {
			x.Status, x.Detail = adminapi.CheckWarn, t.State+": "+t.Reason
			x.Advice = fault.ExamineToken.Advice
		}
		if len(t.Lacks) > 0 {
			x.Status, x.Detail, x.Advice = adminapi.CheckWarn, t.State+", without "+strings.Join(t.Lacks, ", "), fault.ExamineTokenLacks.Advice
		}
		if t.State == adminapi.TokenRefused {
			x.Advice = fault.ExamineTokenRefused.Advice
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
