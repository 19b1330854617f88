// Package server serves the admin API of package adminapi on a Unix socket. The socket has mode 0600 and accepts only
// the daemon's own user and root, so every caller is the one identity "local".
//
// A handler decodes the request, calls the service that does the work, and translates its answer. Package server makes
// no decisions.
package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/hashicorp/go-hclog"

	"countersign/appliance"
	"countersign/appliance/adminapi"
	"countersign/protocol/deviceapi"
)

// Bounds of request bodies, in bytes.
const (
	maxBody = 256 << 10 // a policy of 64 KiB, escaped for JSON
	maxPIN  = 255       // the longest PIN of the known tokens (CK_TOKEN_INFO.ulMaxPinLen)
)

// Server has the services behind the admin API.
type Server struct {
	Overview       Overview
	Parties        Parties
	Invites        Invites
	Keys           Keys
	Recovery       Recovery
	Requests       Requests
	Administrators Administrators
	Policies       Policies
	HSM            HSM
	Logger         hclog.Logger
	StartedAt      time.Time
}

// HSM has the endpoints that need no appliance: they are served while the token is still locked.
type HSM struct {
	Summary func() adminapi.HSM
	Status  func() []adminapi.Token
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
		return Examinations(req.Context(), s.Overview), nil
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
			Type: adminapi.ProblemLocked, Title: "locked", Status: http.StatusServiceUnavailable, Detail: "the HSM waits for its PIN",
		})
	})
	return m
}

// mux returns a mux with the routes of the HSM.
func (s *Server) mux() *mux {
	m := &mux{log: s.Logger}
	bind(m, adminapi.Routes.HSMStatus, func(*http.Request, adminapi.None) ([]adminapi.Token, error) { return s.HSM.Status(), nil })
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
		return nil, fmt.Errorf("%w: the body must be the PIN, 1 to %d bytes", appliance.ErrInput, maxPIN)
	}
	if err := s.HSM.Unlock(r.Context(), r.URL.Query().Get("token"), pin); err != nil {
		return nil, err
	}
	return s.HSM.Status(), nil
}

func (s *Server) drain(drain bool) handler[adminapi.None, []adminapi.Token] {
	return func(r *http.Request, _ adminapi.None) ([]adminapi.Token, error) {
		if err := s.HSM.Drain(r.Context(), r.PathValue("token"), drain); err != nil {
			return nil, err
		}
		return s.HSM.Status(), nil
	}
}

// mux routes requests and answers errors.
type mux struct {
	http.ServeMux
	log hclog.Logger
}

// handler answers one endpoint.
type handler[Req, Res any] func(r *http.Request, body Req) (Res, error)

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
		return body, fmt.Errorf("%w: %v", appliance.ErrInput, err)
	}
	return body, nil
}

func (m *mux) fail(w http.ResponseWriter, r *http.Request, err error) {
	p := problem(err)
	m.log.Info("admin request failed", "path", r.URL.Path, "status", p.Status, "error", err)
	writeProblem(w, p)
}

func writeProblem(w http.ResponseWriter, p adminapi.Problem) {
	w.Header().Set("Content-Type", deviceapi.ProblemType)
	w.WriteHeader(p.Status)
	_ = json.NewEncoder(w).Encode(p) // an error means that the peer is gone
}
