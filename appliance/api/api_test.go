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
	"countersign/protocol/password"
	"countersign/protocol/trust"
)

// service is a fake of both services. It answers requests of the device gate only.
type service struct {
	*testing.T
	err       error         // of every call
	judgement error         // of Judge
	entered   chan struct{} // not nil: Outcome reports here, and waits for release
	release   chan struct{}
	body      []byte // of the last enrolment
}

// DeviceOf knows gate-7 and gate-9.
func (s *service) DeviceOf(_ context.Context, cert *x509.Certificate) (store.Device, error) {
	name := strings.TrimPrefix(cert.URIs[0].Path, "/device/")
	if name != "gate-7" && name != "gate-9" {
		return store.Device{}, protocol.CodeDevice
	}
	return store.Device{Name: name, SPIFFEID: cert.URIs[0].String()}, nil
}

func (s *service) Judge(context.Context, [][]*x509.Certificate) error { return s.judgement }

func (s *service) check(d store.Device) {
	if d.Name == "" {
		s.Error("called for no device")
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

func (s *service) PasswordLength() int { return 12 }

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

// share is how many requests of one device are processed at once in tests.
const share = 8

func newAPI(t *testing.T) (*service, http.Handler) {
	s := &service{T: t}
	return s, (&API{
		Devices: s, Judge: s, Authorizer: s, Enroller: s, Logger: hclog.NewNullLogger(),
		Limits: Limits{Requests: share}, Metrics: NewMetrics(prometheus.NewRegistry()),
	}).Handler()
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
		{"is the device served", "gate-7", "GET", "/v1/device", "", "", 204},
		{"is another device served", "gate-8", "GET", "/v1/device", "", "", 403},
		{"is no device served", "", "GET", "/v1/device", "", "", 403},
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
		{fmt.Errorf("renewing: %w", protocol.Retry{Code: protocol.CodeBusy, After: 40 * time.Minute}), protocol.CodeBusy, 429, "2400"},
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

// crowded fills the gate with requests of a device, whose service does not return before release.
func (s *service) crowd(h http.Handler, device string, n int) (codes chan int) {
	codes = make(chan int)
	for range n {
		go func() {
			w := httptest.NewRecorder()
			h.ServeHTTP(w, from(device, "POST", "/v1/outcome", deviceapi.BodyType, outcome))
			codes <- w.Code
		}()
		<-s.entered
	}
	return codes
}

// TestShare: one device that fills its share is answered busy while another is served, and strangers have a limit of
// their own.
func TestShare(t *testing.T) {
	s, h := newAPI(t)
	s.entered, s.release = make(chan struct{}), make(chan struct{})
	first := s.crowd(h, "gate-7", share)
	beyond := httptest.NewRecorder()
	go func() {
		h.ServeHTTP(beyond, from("gate-7", "POST", "/v1/outcome", deviceapi.BodyType, outcome))
		first <- beyond.Code
	}()
	select {
	case code := <-first:
		if code != 429 {
			t.Errorf("beyond its share: status %d, %s", code, beyond.Body)
		}
	case <-s.entered:
		t.Fatal("beyond its share: processed")
	}
	other := s.crowd(h, "gate-9", 1)
	if w, _ := answer(t, h, from("", "POST", "/v1/enrol", "application/json", "{}")); w.Code != 200 {
		t.Errorf("enrolment: status %d", w.Code)
	}
	close(s.release)
	if code := <-other; code != 204 {
		t.Errorf("another device: status %d", code)
	}
	for range share {
		if code := <-first; code != 204 {
			t.Errorf("within its share: status %d", code)
		}
	}
	s.entered = nil
	if w, _ := answer(t, h, from("gate-7", "POST", "/v1/outcome", deviceapi.BodyType, outcome)); w.Code != 204 {
		t.Errorf("afterwards: status %d", w.Code)
	}
}

// TestGate: a gate has a limit in all and a share for each device, and forgets devices that have left.
func TestGate(t *testing.T) {
	g := newGate(3, 2)
	for i, c := range []struct{ device, bound string }{
		{"a", ""}, {"a", ""}, {"a", boundDevice}, {"b", ""}, {"b", boundAll}, {"c", boundAll},
	} {
		if bound := g.enter(c.device); bound != c.bound {
			t.Errorf("%d, device %s: bound %q, want %q", i, c.device, bound, c.bound)
		}
	}
	if bound := g.enter("a"); bound != boundAll {
		t.Errorf("both bounds: %q", bound)
	}
	g.leave("a")
	if bound := g.enter("c"); bound != "" {
		t.Errorf("in a free place: bound %q", bound)
	}
	g.leave("a")
	g.leave("b")
	g.leave("c")
	if g.inside != 0 || len(g.of) != 0 {
		t.Errorf("empty: %d inside, %v", g.inside, g.of)
	}
}

// TestPasswordLength: phones learn the floor for passwords with the trust.
func TestPasswordLength(t *testing.T) {
	_, h := newAPI(t)
	w, _ := answer(t, h, from("", http.MethodGet, "/v1/trust", "", ""))
	if got := w.Header().Get(password.HeaderLength); w.Code != http.StatusOK || got != "12" {
		t.Errorf("status %d, %q", w.Code, got)
	}
}

// TestGivenUp: a request that is given up has no answer. An empty one would be a success.
func TestGivenUp(t *testing.T) {
	a := &API{Logger: hclog.NewNullLogger()}
	for name, p := range map[string]process{
		"while its answer waits": func(context.Context, request) (reply, error) { return reply{after: time.Hour}, nil },
		"with an error":          func(ctx context.Context, _ request) (reply, error) { return reply{}, ctx.Err() },
	} {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		w := httptest.NewRecorder()
		ended := func() (with any) {
			defer func() { with = recover() }()
			a.handle(endpoint{gate: newGate(1, 1)}, p)(w, httptest.NewRequest(http.MethodGet, "/", nil).WithContext(ctx))
			return nil
		}()
		if ended != http.ErrAbortHandler || w.Body.Len() != 0 {
			t.Errorf("%s: ended with %v, status %d, %q", name, ended, w.Code, w.Body)
		}
	}
}

// TestNotInForce: a certificate that is not in force any more is refused, and its connection ends.
func TestNotInForce(t *testing.T) {
	s, h := newAPI(t)
	s.judgement = fmt.Errorf("its authority is over: %w", protocol.CodeDevice)
	w, p := answer(t, h, from("gate-7", "POST", "/v1/outcome", deviceapi.BodyType, outcome))
	if w.Code != 403 || p.Code != protocol.CodeDevice || w.Header().Get("Connection") != "close" {
		t.Errorf("status %d, %+v, Connection %q", w.Code, p, w.Header().Get("Connection"))
	}
	w, _ = answer(t, h, from("gate-8", "POST", "/v1/outcome", deviceapi.BodyType, outcome))
	if w.Code != 403 {
		t.Errorf("status %d", w.Code)
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
