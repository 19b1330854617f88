package api

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"

	"countersign/appliance/authorize"
	"countersign/appliance/enrol"
	"countersign/appliance/keyring"
	"countersign/appliance/store"
	"countersign/hsm"
	"countersign/protocol"
	"countersign/protocol/deviceapi"
	protoenrol "countersign/protocol/enrol"
	"countersign/protocol/trust"
)

// service is a fake of both services. It answers requests of the device gate only.
type service struct {
	*testing.T
	err     error         // of every call
	entered chan struct{} // not nil: Outcome reports here, and waits for release
	release chan struct{}
	body    []byte // of the last enrolment
}

var gate7 = store.Device{Name: "gate-7"}

func (s *service) DeviceOf(_ context.Context, cert *x509.Certificate) (store.Device, error) {
	if cert.URIs[0].Path != "/device/gate-7" {
		return store.Device{}, protocol.CodeDevice
	}
	return gate7, nil
}

func (s *service) check(d store.Device) {
	if d.Name != gate7.Name {
		s.Errorf("called for device %q", d.Name)
	}
}

func (s *service) Apply(_ context.Context, d store.Device, _ deviceapi.ApplyRequest) (deviceapi.ApplyResponse, error) {
	s.check(d)
	return deviceapi.ApplyResponse{}, s.err
}

func (s *service) Countersign(
	_ context.Context, d store.Device, _ deviceapi.CountersignRequest,
) (deviceapi.CountersignResponse, error) {
	s.check(d)
	return deviceapi.CountersignResponse{}, s.err
}

func (s *service) AnswerAfter(deviceapi.CountersignResponse) time.Duration { return 0 }

func (s *service) Outcome(_ context.Context, d store.Device, _ deviceapi.OutcomeRequest) error {
	s.check(d)
	if s.entered != nil {
		s.entered <- struct{}{}
		<-s.release
	}
	return s.err
}

func (s *service) Trust() trust.Document { return trust.Document{} }

func (s *service) Client(_ context.Context, body []byte) ([]byte, error) {
	s.body = body
	return []byte(`{"enrolled":1}`), s.err
}

func (s *service) Device(ctx context.Context, body []byte) ([]byte, error) {
	return s.Client(ctx, body)
}

func (s *service) Renew(_ context.Context, d store.Device, _ protoenrol.RenewRequest) (protoenrol.RenewResponse, error) {
	s.check(d)
	return protoenrol.RenewResponse{}, s.err
}

func newAPI(t *testing.T) (*service, http.Handler) {
	s := &service{T: t}
	return s, (&API{Devices: s, Authorizer: s, Enroller: s, Logger: hclog.NewNullLogger()}).Handler()
}

// from makes a request with a verified certificate of a device; "" is no certificate.
func from(device, method, path, media, body string) *http.Request {
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	r.Header.Set("Content-Type", media)
	if device != "" {
		cert := &x509.Certificate{URIs: []*url.URL{{Scheme: "spiffe", Host: "test.example", Path: "/device/" + device}}}
		r.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{cert}, VerifiedChains: [][]*x509.Certificate{{cert}}}
	}
	return r
}

func answer(t *testing.T, h http.Handler, r *http.Request) (*httptest.ResponseRecorder, deviceapi.Problem) {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	var p deviceapi.Problem
	if w.Header().Get("Content-Type") == deviceapi.ProblemType {
		if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil {
			t.Fatal(err)
		}
	}
	return w, p
}

var outcome = string(deviceapi.OutcomeRequest{Performed: true}.Marshal())

// TestRoutes: who may call an endpoint, with which body.
func TestRoutes(t *testing.T) {
	s, h := newAPI(t)
	const asJSON, asCBOR = "application/json", deviceapi.BodyType
	for _, c := range []struct {
		name, device, method, path, media, body string
		status                                  int
	}{
		{"outcome", "gate-7", "POST", "/v1/outcome", asCBOR, outcome, 204},
		{"media type with a parameter", "gate-7", "POST", "/v1/outcome", asCBOR + "; x=y", outcome, 204},
		{"no certificate", "", "POST", "/v1/outcome", asCBOR, outcome, 403},
		{"another device", "gate-8", "POST", "/v1/outcome", asCBOR, outcome, 403},
		{"wrong media type", "gate-7", "POST", "/v1/outcome", asJSON, outcome, 400},
		{"not CBOR", "gate-7", "POST", "/v1/outcome", asCBOR, "x", 400},
		{"too long", "gate-7", "POST", "/v1/outcome", asCBOR, strings.Repeat("x", maxCBOR+1), 400},
		{"apply without certificate", "", "POST", "/v1/apply", asCBOR, "x", 403},
		{"apply with garbage", "gate-7", "POST", "/v1/apply", asCBOR, "x", 400},
		{"countersign without certificate", "", "POST", "/v1/countersign", asCBOR, "x", 403},
		{"countersign with garbage", "gate-7", "POST", "/v1/countersign", asCBOR, "x", 400},
		{"renew without certificate", "", "POST", "/v1/renew", asJSON, "{}", 403},
		{"enrol", "", "POST", "/v1/enrol", asJSON, "{}", 200},
		{"longest enrolment", "", "POST", "/v1/enrol/device", asJSON, strings.Repeat("x", maxJSON), 200},
		{"enrolment too long", "", "POST", "/v1/enrol", asJSON, strings.Repeat("x", maxJSON+1), 400},
		{"trust", "", "GET", "/v1/trust", "", "", 200},
		{"unknown path", "gate-7", "POST", "/v1/other", asCBOR, "", 404},
		{"wrong method", "gate-7", "GET", "/v1/outcome", "", "", 404},
	} {
		t.Run(c.name, func(t *testing.T) {
			s.body = nil
			w, p := answer(t, h, from(c.device, c.method, c.path, c.media, c.body))
			if w.Code != c.status || p.Status != 0 && p.Status != c.status {
				t.Errorf("status %d, want %d: %s", w.Code, c.status, w.Body)
			}
			if c.status == 200 && strings.HasPrefix(c.path, "/v1/enrol") && string(s.body) != c.body {
				t.Errorf("the service got %d bytes of %d", len(s.body), len(c.body))
			}
		})
	}
}

// TestProblems: the answer to each class of error. Internal errors have no detail.
func TestProblems(t *testing.T) {
	for _, c := range []struct {
		err    error
		code   protocol.Code
		status int
		retry  string
	}{
		{protocol.CodeFormat.Errorf("field 7"), protocol.CodeFormat, 400, ""},
		{protocol.CodeDevice.Errorf("row 9"), protocol.CodeDevice, 403, ""},
		{fmt.Errorf("signing: %w", hsm.ErrUnavailable), protocol.CodeHSM, 503, "1"},
		{hsm.ErrPIN, protocol.CodeHSM, 503, "1"},
		{keyring.ErrNoKey, protocol.CodeHSM, 503, "1"},
		{store.ErrUnavailable, protocol.CodeHSM, 503, "1"},
		{context.DeadlineExceeded, protocol.CodeHSM, 503, "1"},
		{hsm.ErrBusy, protocol.CodeBusy, 429, "1"},
		{enrol.ErrTaken, protocol.CodeRefused, 409, ""},
		{authorize.ErrNoTransaction, protocol.CodeRefused, 404, ""},
		{errors.New("row 17 of table secrets"), 0, 500, ""},
	} {
		s, h := newAPI(t)
		s.err = c.err
		w, p := answer(t, h, from("gate-7", "POST", "/v1/outcome", deviceapi.BodyType, outcome))
		if w.Code != c.status || p.Code != c.code || w.Header().Get("Retry-After") != c.retry {
			t.Errorf("%v: status %d, %+v, Retry-After %q", c.err, w.Code, p, w.Header().Get("Retry-After"))
		}
		if shown := strings.Contains(w.Body.String(), c.err.Error()); shown != (c.status == 400) {
			t.Errorf("%v: answer %s", c.err, w.Body)
		}
	}
}

// TestBusy: requests beyond the limit are answered at once, and those without a certificate have a limit of their own.
func TestBusy(t *testing.T) {
	s, h := newAPI(t)
	s.entered, s.release = make(chan struct{}), make(chan struct{})
	done := make(chan int)
	for range deviceInFlight {
		go func() {
			w := httptest.NewRecorder()
			h.ServeHTTP(w, from("gate-7", "POST", "/v1/outcome", deviceapi.BodyType, outcome))
			done <- w.Code
		}()
		<-s.entered
	}
	if w, p := answer(t, h, from("gate-7", "POST", "/v1/outcome", deviceapi.BodyType, outcome)); w.Code != 429 || p.Code != protocol.CodeBusy {
		t.Errorf("status %d, %+v", w.Code, p)
	}
	if w, _ := answer(t, h, from("", "POST", "/v1/enrol", "application/json", "{}")); w.Code != 200 {
		t.Errorf("enrolment: status %d", w.Code)
	}
	close(s.release)
	for range deviceInFlight {
		if code := <-done; code != 204 {
			t.Errorf("status %d", code)
		}
	}
	s.entered = nil
	if w, _ := answer(t, h, from("gate-7", "POST", "/v1/outcome", deviceapi.BodyType, outcome)); w.Code != 204 {
		t.Errorf("afterwards: status %d", w.Code)
	}
}

// TestHold: an answer never leaves before its time, and a caller that hangs up ends the wait.
func TestHold(t *testing.T) {
	for _, wait := range []time.Duration{0, time.Millisecond, 7 * time.Millisecond} {
		until := monotonic() + wait
		if !hold(t.Context(), until) || monotonic() < until {
			t.Errorf("%v: held until %v", wait, until-monotonic())
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if hold(ctx, monotonic()+time.Hour) {
		t.Error("the wait did not end with its context")
	}
}

func TestOps(t *testing.T) {
	var down error
	metrics := prometheus.NewRegistry()
	metrics.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "countersign_test"}, func() float64 { return 7 }))
	h := (&Ops{
		Checks:   map[string]Check{"hsm": func(context.Context) error { return down }},
		Warnings: map[string]Check{"keys": func(context.Context) error { return errors.New("kem is due") }},
		Gatherer: metrics,
	}).Handler()
	get := func(path string) (int, string) {
		w, _ := answer(t, h, httptest.NewRequest(http.MethodGet, path, nil))
		return w.Code, strings.TrimSpace(w.Body.String())
	}
	if code, body := get("/readyz"); code != 200 || body != `{"hsm":"ok","keys":"warning: kem is due"}` {
		t.Errorf("%d %s", code, body)
	}
	down = hsm.ErrUnavailable
	if code, body := get("/readyz"); code != 503 || !strings.Contains(body, down.Error()) {
		t.Errorf("%d %s", code, body)
	}
	if code, body := get("/livez"); code != 200 || body != `{"status":"alive"}` {
		t.Errorf("%d %s", code, body)
	}
	if code, body := get("/metrics"); code != 200 || !strings.Contains(body, "countersign_test 7") {
		t.Errorf("%d %s", code, body)
	}
}

// TestOpsTimeout: a check that hangs makes the appliance unready.
func TestOpsTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := (&Ops{
			Checks:   map[string]Check{"store": func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }},
			Gatherer: prometheus.NewRegistry(),
		}).Handler()
		began := time.Now()
		w, _ := answer(t, h, httptest.NewRequest(http.MethodGet, "/readyz", nil))
		if w.Code != 503 || time.Since(began) != checkTimeout {
			t.Errorf("%d after %v", w.Code, time.Since(began))
		}
	})
}

// TestSwitch: a request gets the handler of the moment at which it arrives.
func TestSwitch(t *testing.T) {
	says := func(text string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, text) })
	}
	s := NewSwitch(says("locked"))
	for _, want := range []string{"locked", "open"} {
		if w, _ := answer(t, s, httptest.NewRequest(http.MethodGet, "/", nil)); w.Body.String() != want {
			t.Errorf("answer %q, want %q", w.Body, want)
		}
		s.Use(says("open"))
	}
}
