package httpapi

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"

	"countersign/appliance"
	"countersign/appliance/store"
	"countersign/protocol"
	"countersign/protocol/deviceapi"
	"countersign/protocol/enrol"
)

// Bounds of request bodies, bytes. An apply is at most two near-field messages'
// worth of M1, an order and a handle; an enrolment holds an attestation.
const (
	maxCBOR = 8 << 10
	maxJSON = 64 << 10
)

// How many requests are worked on at once; more are answered busy (429), so that a
// flood costs memory for no more than these. Strangers have a gate of their own, and
// so has what ends an authorization, that those that begin cannot keep it from its
// end. Nobody holds one while bytes are read or written or a refusal waits for its time.
const (
	beginningInFlight = 128
	devicesInFlight   = 256
	strangersInFlight = 16
)

// API serves phones and devices, PROTOCOL.md §5.
type API struct {
	Appliance *appliance.Appliance
	Logger    hclog.Logger
}

// gate lets so many in at once.
type gate chan struct{}

func (g gate) enter() bool {
	select {
	case g <- struct{}{}:
		return true
	default:
		return false
	}
}

func (g gate) leave() { <-g }

// Handler of all routes.
func (a *API) Handler() http.Handler {
	strangers, devices := make(gate, strangersInFlight), make(gate, devicesInFlight)
	mux := http.NewServeMux()
	for route, p := range map[string]process{
		"GET /v1/trust":         a.trust,
		"POST /v1/enrol":        a.enrol,
		"POST /v1/enrol/device": a.enrolDevice,
	} {
		mux.HandleFunc(route, a.handle(endpoint{media: mediaJSON, limit: maxJSON, gate: strangers, process: p}))
	}
	mux.HandleFunc("POST /v1/renew", a.handle(endpoint{media: mediaJSON, limit: maxJSON, gate: devices, device: true, process: a.renew}))
	cbor := endpoint{media: deviceapi.BodyType, limit: maxCBOR, gate: devices, device: true}
	for route, p := range map[string]process{"POST /v1/countersign": a.countersign, "POST /v1/outcome": a.outcome} {
		cbor.process = p
		mux.HandleFunc(route, a.handle(cbor))
	}
	cbor.gate, cbor.process = make(gate, beginningInFlight), a.apply
	mux.HandleFunc("POST /v1/apply", a.handle(cbor))
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		p := deviceapi.Problem{Type: "about:blank", Title: http.StatusText(http.StatusNotFound), Status: http.StatusNotFound}
		writeProblem(w, p.Status, p)
	})
	return mux
}

const mediaJSON = "application/json"

// request is what the second half of a handler sees: who and what, no HTTP.
type request struct {
	device store.Device // of device routes
	body   []byte
}

// reply is its answer; body nil is 204. after is how long after the request's
// arrival it is given.
type reply struct {
	body  []byte
	after time.Duration
}

// process is the second half of a handler.
type process func(ctx context.Context, q request) (reply, error)

type endpoint struct {
	media   string
	limit   int64
	gate    gate
	device  bool // takes the certificate of an active device
	process process
}

// handle is the first half of every handler.
func (a *API) handle(e endpoint) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		arrived := monotonic()
		answer, err := a.answer(w, r, e)
		if err != nil {
			a.fail(w, r, err)
			return
		}
		if !hold(r.Context(), arrived+answer.after) {
			return // the peer is gone
		}
		if answer.body == nil {
			w.WriteHeader(http.StatusNoContent)
			return
		}
		w.Header().Set("Content-Type", e.media)
		_, _ = w.Write(answer.body) // the peer is gone: nothing to do
	}
}

func (a *API) answer(w http.ResponseWriter, r *http.Request, e endpoint) (reply, error) {
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
	if !e.gate.enter() {
		return reply{}, protocol.CodeBusy
	}
	defer e.gate.leave()
	return e.process(r.Context(), q)
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

func (a *API) trust(context.Context, request) (reply, error) {
	body, err := a.Appliance.Trust().MarshalJSON()
	return reply{body: body}, err
}

func (a *API) enrol(ctx context.Context, q request) (reply, error) {
	body, err := a.Appliance.Enrol(ctx, q.body)
	return reply{body: body}, err
}

func (a *API) enrolDevice(ctx context.Context, q request) (reply, error) {
	body, err := a.Appliance.EnrolDevice(ctx, q.body)
	return reply{body: body}, err
}

func (a *API) renew(ctx context.Context, q request) (reply, error) {
	req, err := enrol.ParseRenewRequest(q.body)
	if err != nil {
		return reply{}, err
	}
	res, err := a.Appliance.Renew(ctx, q.device, req)
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
	res, err := a.Appliance.Apply(ctx, q.device, req)
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
	res, err := a.Appliance.Countersign(ctx, q.device, req)
	if err != nil {
		return reply{}, err
	}
	return reply{body: res.Marshal(), after: a.Appliance.AnswerAfter(res)}, nil
}

func (a *API) outcome(ctx context.Context, q request) (reply, error) {
	req, err := deviceapi.ParseOutcomeRequest(q.body)
	if err != nil {
		return reply{}, err
	}
	return reply{}, a.Appliance.Outcome(ctx, q.device, req)
}

// caller is the enrolled, active device of the TLS certificate, or code 15. TLS
// has verified the certificate; what counts is its SPIFFE ID.
func (a *API) caller(r *http.Request) (store.Device, error) {
	if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 || len(r.TLS.PeerCertificates[0].URIs) != 1 {
		return store.Device{}, fmt.Errorf("no client certificate with one SPIFFE ID: %w", protocol.CodeDevice)
	}
	return a.Appliance.DeviceOf(r.Context(), r.TLS.PeerCertificates[0])
}
