// Package api serves phones and authorization devices over TLS 1.3, and health and metrics over plain HTTP. A handler
// identifies the caller, bounds and decodes the request, and encodes the answer or the error; the services behind it
// decide what a request means.
package api

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"countersign/appliance/authorize"
	"countersign/appliance/enrol"
	"countersign/appliance/keyring"
	"countersign/appliance/store"
	"countersign/hsm"
	"countersign/protocol"
	"countersign/protocol/deviceapi"
	protoenrol "countersign/protocol/enrol"
	"countersign/protocol/password"
	"countersign/protocol/trust"
)

// Bounds of request bodies, in bytes. An apply request has at most two near-field messages of M1, an order and a
// handle; an enrolment has an attestation.
const (
	maxCBOR = 8 << 10
	maxJSON = 64 << 10
)

// Authorizer processes the requests of enrolled devices.
type Authorizer interface {
	Apply(ctx context.Context, device store.Device, req deviceapi.ApplyRequest) (deviceapi.ApplyResponse, error)
	Countersign(ctx context.Context, device store.Device, req deviceapi.CountersignRequest) (deviceapi.CountersignResponse, error)
	// AnswerAfter returns how long after a request arrived its answer is sent.
	AnswerAfter(res deviceapi.CountersignResponse) time.Duration
	Outcome(ctx context.Context, device store.Device, req deviceapi.OutcomeRequest) error
}

// Devices finds devices.
type Devices interface {
	// DeviceOf returns the enrolled, active device of a verified certificate, else code 15.
	DeviceOf(ctx context.Context, cert *x509.Certificate) (store.Device, error)
}

// Judge judges certificates again that TLS has verified.
type Judge interface {
	// Judge returns nil if a chain is in force now, or else code 15. ctx is the context of a request.
	Judge(ctx context.Context, chains [][]*x509.Certificate) error
}

// Enroller enrols phones and devices.
type Enroller interface {
	Trust() trust.Document
	// PasswordLength returns the least length of a new offline password, in characters.
	PasswordLength() int
	Client(ctx context.Context, body []byte) ([]byte, error)
	Device(ctx context.Context, body []byte) ([]byte, error)
	Renew(ctx context.Context, device store.Device, req protoenrol.RenewRequest) (protoenrol.RenewResponse, error)
}

// API serves phones and devices (PROTOCOL.md §5).
type API struct {
	Devices    Devices
	Judge      Judge
	Authorizer Authorizer
	Enroller   Enroller
	Limits     Limits
	Metrics    *Metrics
	Logger     hclog.Logger

	refusals refusals
}

// Handler returns the handler of all routes.
func (a *API) Handler() http.Handler {
	unknown := endpoint{media: "application/json", limit: maxJSON, gate: newGate(unknownInFlight, unknownInFlight)}
	renew := endpoint{
		media: "application/json", limit: maxJSON, gate: newGate(deviceInFlight, a.Limits.Requests), device: true,
	}
	device := endpoint{media: deviceapi.BodyType, limit: maxCBOR, gate: renew.gate, device: true}
	apply := device
	apply.gate = newGate(applyInFlight, max(a.Limits.Requests/2, 1))
	mux := http.NewServeMux()
	trusted := a.handle(unknown, a.trust)
	mux.HandleFunc("GET /v1/trust", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set(password.HeaderLength, strconv.Itoa(a.Enroller.PasswordLength()))
		trusted(w, r)
	})
	mux.HandleFunc("POST /v1/enrol", a.handle(unknown, enrolBy(a.Enroller.Client)))
	mux.HandleFunc("POST /v1/enrol/device", a.handle(unknown, enrolBy(a.Enroller.Device)))
	mux.HandleFunc("GET /v1/device", a.handle(device, served))
	mux.HandleFunc("POST /v1/renew", a.handle(renew, a.renew))
	mux.HandleFunc("POST /v1/apply", a.handle(apply, a.apply))
	mux.HandleFunc("POST /v1/countersign", a.handle(device, a.countersign))
	mux.HandleFunc("POST /v1/outcome", a.handle(device, a.outcome))
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		writeProblem(w, deviceapi.Problem{Type: "about:blank", Title: http.StatusText(http.StatusNotFound), Status: http.StatusNotFound})
	})
	return mux
}

// endpoint has the bounds of a route.
type endpoint struct {
	media  string
	limit  int64 // of the body, bytes
	gate   *gate
	device bool // requires the certificate of an active device
}

// request is the input of a process.
type request struct {
	device store.Device // of device routes
	body   []byte
}

// reply is the answer of a process. Without a body it is 204. It is sent at least the time after since the request
// arrived.
type reply struct {
	body  []byte
	after time.Duration
}

// process answers a request, without HTTP.
type process func(ctx context.Context, q request) (reply, error)

// handle returns the HTTP handler of a process.
func (a *API) handle(e endpoint, p process) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		arrived := monotonic()
		answer, err := a.answer(w, r, e, p)
		if err != nil {
			a.fail(w, r, err)
			return
		}
		if !hold(r.Context(), arrived+answer.after) {
			giveUp()
		}
		if answer.body == nil {
			w.WriteHeader(http.StatusNoContent)
			return
		}
		w.Header().Set("Content-Type", e.media)
		_, _ = w.Write(answer.body) // an error means that the peer is gone
	}
}

func (a *API) answer(w http.ResponseWriter, r *http.Request, e endpoint, p process) (reply, error) {
	var q request
	var err error
	if e.device {
		if q.device, err = a.caller(r); err != nil {
			return reply{}, err
		}
	}
	if q.body, err = readBody(w, r, e); err != nil {
		return reply{}, err
	}
	if bound := e.gate.enter(q.device.SPIFFEID); bound != "" {
		a.Metrics.busy.WithLabelValues(bound).Inc()
		return reply{}, protocol.CodeBusy
	}
	defer e.gate.leave(q.device.SPIFFEID)
	return p(r.Context(), q)
}

// giveUp ends a request without an answer: an empty one would be a success. net/http resets the stream or closes the
// connection.
func giveUp() { panic(http.ErrAbortHandler) }

// errNotInForce means that a certificate that TLS verified is no longer in force.
var errNotInForce = errors.New("the connection's certificate is not in force")

// caller returns the device of the TLS certificate, or code 15. TLS has verified the certificate; its SPIFFE ID counts.
func (a *API) caller(r *http.Request) (store.Device, error) {
	if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 || len(r.TLS.PeerCertificates[0].URIs) != 1 {
		return store.Device{}, fmt.Errorf("no client certificate with one SPIFFE ID: %w", protocol.CodeDevice)
	}
	if err := a.Judge.Judge(r.Context(), r.TLS.VerifiedChains); err != nil {
		return store.Device{}, fmt.Errorf("%w: %w", errNotInForce, err)
	}
	return a.Devices.DeviceOf(r.Context(), r.TLS.PeerCertificates[0])
}

func readBody(w http.ResponseWriter, r *http.Request, e endpoint) ([]byte, error) {
	if r.Method == http.MethodGet {
		return nil, nil
	}
	if media, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";"); strings.TrimSpace(media) != e.media {
		return nil, fmt.Errorf("content type %q: want %s: %w", media, e.media, protocol.CodeFormat)
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, e.limit))
	if err != nil {
		return nil, fmt.Errorf("reading the request: %v: %w", err, protocol.CodeFormat)
	}
	return body, nil
}

// served answers a device that asks whether the appliance serves it: its route has found out.
func served(context.Context, request) (reply, error) { return reply{}, nil }

func (a *API) trust(context.Context, request) (reply, error) {
	body, err := a.Enroller.Trust().MarshalJSON()
	return reply{body: body}, err
}

func enrolBy(enrolKey func(context.Context, []byte) ([]byte, error)) process {
	return func(ctx context.Context, q request) (reply, error) {
		body, err := enrolKey(ctx, q.body)
		return reply{body: body}, err
	}
}

func (a *API) renew(ctx context.Context, q request) (reply, error) {
	req, err := protoenrol.ParseRenewRequest(q.body)
	if err != nil {
		return reply{}, err
	}
	res, err := a.Enroller.Renew(ctx, q.device, req)
	if err != nil {
		return reply{}, err
	}
	body, err := json.Marshal(res)
	return reply{body: body}, err
}

func (a *API) apply(ctx context.Context, q request) (reply, error) {
	req, err := deviceapi.ParseApplyRequest(q.body)
	if err != nil {
		return reply{}, err
	}
	res, err := a.Authorizer.Apply(ctx, q.device, req)
	if err != nil {
		return reply{}, err
	}
	return reply{body: res.Marshal()}, nil
}

func (a *API) countersign(ctx context.Context, q request) (reply, error) {
	req, err := deviceapi.ParseCountersignRequest(q.body)
	if err != nil {
		return reply{}, err
	}
	res, err := a.Authorizer.Countersign(ctx, q.device, req)
	if err != nil {
		return reply{}, err
	}
	return reply{body: res.Marshal(), after: a.Authorizer.AnswerAfter(res)}, nil
}

func (a *API) outcome(ctx context.Context, q request) (reply, error) {
	req, err := deviceapi.ParseOutcomeRequest(q.body)
	if err != nil {
		return reply{}, err
	}
	return reply{}, a.Authorizer.Outcome(ctx, q.device, req)
}

// coarse is the error of Go's timers. Its poller counts milliseconds, so the moment at which a timer fires shows when
// it was set. The kernel sleeps the rest of a wait, exact to the nanosecond.
const coarse = 2 * time.Millisecond

// monotonic returns the time since the machine started, on the clock of the kernel's sleep.
func monotonic() time.Duration {
	var now unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &now) // cannot fail with this clock
	return time.Duration(now.Nano())
}

// hold waits until a monotonic time. It returns false if ctx ends first.
func hold(ctx context.Context, until time.Duration) bool {
	left := until - monotonic()
	if left <= 0 {
		return true
	}
	timer := time.NewTimer(left - coarse)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
		return false
	}
	at := unix.NsecToTimespec(int64(until))
	for errors.Is(unix.ClockNanosleep(unix.CLOCK_MONOTONIC, unix.TIMER_ABSTIME, &at, nil), unix.EINTR) {
	}
	return true
}

// retryAfter is the wait that a caller is asked for when token or store is unavailable or busy.
const retryAfter = time.Second

// problem is the table from errors to answers. Any other error is an internal error without detail.
func problem(err error) deviceapi.Problem {
	retry := protocol.Retry{After: retryAfter}
	if own := (protocol.Retry{}); errors.As(err, &own) && own.After > 0 {
		retry.After = own.After
	}
	switch code, _ := protocol.CodeOf(err); {
	case isAny(err, hsm.ErrUnavailable, hsm.ErrPIN, hsm.ErrKey, keyring.ErrNoKey, store.ErrUnavailable, context.DeadlineExceeded):
		retry.Code = protocol.CodeHSM
	case code == protocol.CodeBusy, errors.Is(err, hsm.ErrBusy):
		retry.Code = protocol.CodeBusy
	case errors.Is(err, enrol.ErrTaken):
		return refused(http.StatusConflict)
	case errors.Is(err, authorize.ErrNoTransaction):
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
// A connection whose certificate is not in force ends with the answer.
func (a *API) fail(w http.ResponseWriter, r *http.Request, err error) {
	if r.Context().Err() != nil {
		a.Logger.Debug("peer is gone", "path", r.URL.Path, "error", err)
		giveUp()
	}
	if errors.Is(err, errNotInForce) {
		connOf(r.Context()).ends(closedCertificate)
		endConnection(w)
	}
	p := problem(err)
	if p.Status == http.StatusBadRequest {
		p.Detail = err.Error()
	}
	if p.Retry != 0 {
		w.Header().Set("Retry-After", strconv.FormatUint(p.Retry, 10))
	}
	switch {
	case p.Status >= http.StatusInternalServerError:
		a.Logger.Error("request failed", "path", r.URL.Path, "status", p.Status, "error", err)
	case enrols(r):
		a.logRefusal(r, p.Status, err)
	default:
		a.Logger.Debug("request refused", "path", r.URL.Path, "status", p.Status, "error", err)
	}
	writeProblem(w, p)
}

func writeProblem(w http.ResponseWriter, p deviceapi.Problem) {
	w.Header().Set("Content-Type", deviceapi.ProblemType)
	w.WriteHeader(p.Status)
	_ = json.NewEncoder(w).Encode(p) // an error means that the peer is gone
}
