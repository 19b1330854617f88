package httpapi

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/hashicorp/go-hclog"

	"countersign/appliance"
	"countersign/appliance/store"
	"countersign/protocol"
)

// Bounds of request bodies, bytes. An apply is at most two near-field messages'
// worth of M1, an order and a handle; an enrolment holds an attestation.
const (
	maxCBOR = 8 << 10
	maxJSON = 64 << 10
)

// inFlight is how many requests are worked on at once; more are answered busy
// (429), so that a flood costs memory for no more than these.
const inFlight = 256

// API serves phones and devices, PROTOCOL.md §5.
type API struct {
	Appliance *appliance.Appliance
	Devices   store.Devices
	Logger    hclog.Logger

	slots chan struct{}
}

// Handler of all routes.
func (a *API) Handler() http.Handler {
	a.slots = make(chan struct{}, inFlight)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/trust", a.json(a.trust))
	mux.HandleFunc("POST /v1/enrol", a.json(a.enrol))
	mux.HandleFunc("POST /v1/enrol/device", a.json(a.enrolDevice))
	mux.HandleFunc("POST /v1/renew", a.json(a.renew))
	mux.HandleFunc("POST /v1/apply", a.cbor(a.apply))
	mux.HandleFunc("POST /v1/countersign", a.cbor(a.countersign))
	mux.HandleFunc("POST /v1/outcome", a.cbor(a.outcome))
	return mux
}

// process is the second half of a handler: bytes in, bytes out, no HTTP.
type process func(r *http.Request, body []byte) ([]byte, error)

func (a *API) json(p process) http.HandlerFunc {
	return a.handle(endpoint{media: "application/json", limit: maxJSON, process: p})
}

func (a *API) cbor(p process) http.HandlerFunc {
	return a.handle(endpoint{media: "application/cbor", limit: maxCBOR, process: p})
}

type endpoint struct {
	media   string
	limit   int64
	process process
}

// handle is the first half of every handler.
func (a *API) handle(e endpoint) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		select {
		case a.slots <- struct{}{}:
			defer func() { <-a.slots }()
		default:
			a.fail(w, r, protocol.CodeBusy)
			return
		}
		body, err := readBody(w, r, e)
		if err != nil {
			a.fail(w, r, err)
			return
		}
		answer, err := e.process(r, body)
		if err != nil {
			a.fail(w, r, err)
			return
		}
		if answer == nil {
			w.WriteHeader(http.StatusNoContent)
			return
		}
		w.Header().Set("Content-Type", e.media)
		_, _ = w.Write(answer) // the peer is gone: nothing to do
	}
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

func (a *API) trust(*http.Request, []byte) ([]byte, error) {
	return a.Appliance.Trust().MarshalJSON()
}

func (a *API) enrol(r *http.Request, body []byte) ([]byte, error) {
	return a.Appliance.Enrol(r.Context(), body)
}

func (a *API) enrolDevice(r *http.Request, body []byte) ([]byte, error) {
	return a.Appliance.EnrolDevice(r.Context(), body)
}

func (a *API) renew(r *http.Request, body []byte) ([]byte, error) {
	device, err := a.caller(r)
	if err != nil {
		return nil, err
	}
	req, err := protocol.ParseRenewRequest(body)
	if err != nil {
		return nil, err
	}
	res, err := a.Appliance.Renew(r.Context(), device, req)
	if err != nil {
		return nil, err
	}
	return encodeJSON(res)
}

func (a *API) apply(r *http.Request, body []byte) ([]byte, error) {
	device, err := a.caller(r)
	if err != nil {
		return nil, err
	}
	req, err := protocol.ParseApplyRequest(body)
	if err != nil {
		return nil, err
	}
	res, err := a.Appliance.Apply(r.Context(), device, req)
	if err != nil {
		return nil, err
	}
	return res.Marshal(), nil
}

func (a *API) countersign(r *http.Request, body []byte) ([]byte, error) {
	device, err := a.caller(r)
	if err != nil {
		return nil, err
	}
	req, err := protocol.ParseCountersignRequest(body)
	if err != nil {
		return nil, err
	}
	res, err := a.Appliance.Countersign(r.Context(), device, req)
	if err != nil {
		return nil, err
	}
	return res.Marshal(), nil
}

func (a *API) outcome(r *http.Request, body []byte) ([]byte, error) {
	device, err := a.caller(r)
	if err != nil {
		return nil, err
	}
	req, err := protocol.ParseOutcomeRequest(body)
	if err != nil {
		return nil, err
	}
	return nil, a.Appliance.Outcome(r.Context(), device, req)
}

// caller is the enrolled, active device of the TLS certificate, or code 15. TLS
// has verified the certificate; what counts is its SPIFFE ID.
func (a *API) caller(r *http.Request) (store.Device, error) {
	if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 || len(r.TLS.PeerCertificates[0].URIs) != 1 {
		return store.Device{}, fmt.Errorf("no client certificate with one SPIFFE ID: %w", protocol.CodeDevice)
	}
	id := r.TLS.PeerCertificates[0].URIs[0].String()
	device, err := a.Devices.Device(r.Context(), protocol.DeviceIDOf(id))
	switch {
	case errors.Is(err, store.ErrNotFound), err == nil && (device.SPIFFEID != id || device.Status != store.Active):
		return store.Device{}, fmt.Errorf("%s is not an active device: %w", id, protocol.CodeDevice)
	case err != nil:
		return store.Device{}, fmt.Errorf("device %s: %w", id, err)
	}
	return device, nil
}
