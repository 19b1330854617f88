package api

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"

	"countersign/appliance/appliancetest"
	"countersign/appliance/keyplan"
	"countersign/appliance/keyuse"
	"countersign/appliance/store"
	"countersign/protocol"
)

// long is a time that no test waits for.
const long = time.Hour

// site is a server with the key ring of a real appliance. Its handler answers with the caller of the device routes.
type site struct {
	*testing.T
	*appliancetest.Bench
	registry *prometheus.Registry
	metrics  *Metrics
	identity *Identity
	later    atomic.Int64 // of the clock of judgements, nanoseconds
	address  string
	stop     context.CancelFunc
	entered  chan struct{} // POST /wait reports here, and waits for release
	release  chan struct{}
}

func newSite(t *testing.T, l Limits, times times) *site {
	t.Helper()
	return newSiteAt(t, "127.0.0.1:0", l, times)
}

func newSiteAt(t *testing.T, address string, l Limits, times times) *site {
	t.Helper()
	s := &site{
		T: t, Bench: appliancetest.New(t), registry: prometheus.NewRegistry(),
		entered: make(chan struct{}), release: make(chan struct{}),
	}
	s.metrics = NewMetrics(s.registry)
	var err error
	if s.identity, err = NewIdentity(t.Context(), s.Keyring, []string{"127.0.0.1"}, hclog.NewNullLogger()); err != nil {
		t.Fatal(err)
	}
	s.identity.now = func() time.Time { return time.Now().Add(time.Duration(s.later.Load())) }
	listener, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	s.address = listener.Addr().String()
	ctx, stop := context.WithCancel(context.Background())
	s.stop = stop
	served := make(chan error, 1)
	go func() {
		served <- Serve(ctx, hclog.NewNullLogger(), Server{
			Name: "api", Listener: listener, Handler: s, Identity: s.identity, Limits: l, Metrics: s.metrics, times: times,
		})
	}()
	t.Cleanup(func() {
		stop()
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return s
}

// DeviceOf implements [Devices].
func (s *site) DeviceOf(_ context.Context, cert *x509.Certificate) (store.Device, error) {
	return store.Device{Name: cert.URIs[0].Path}, nil
}

// ServeHTTP answers GET / with the caller's name, and POST /wait after release.
func (s *site) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a := &API{Devices: s, Judge: s.identity, Metrics: s.metrics, Logger: hclog.NewNullLogger()}
	if r.URL.Path == "/wait" {
		s.entered <- struct{}{}
		<-s.release
	}
	device, err := a.caller(r)
	if err != nil && len(r.TLS.PeerCertificates) != 0 {
		a.fail(w, r, err)
		return
	}
	_, _ = io.WriteString(w, device.Name)
}

// peer is a client with connections of its own.
type peer struct {
	*http.Client
	dialled chan struct{} // has a value for each connection
	address string
}

// certificate issues the certificate of a device as of a time.
func (s *site) certificate(name string, now time.Time) tls.Certificate {
	s.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		s.Fatal(err)
	}
	cert, err := s.Keyring.DeviceCert(s.T.Context(), key.Public(), s.Keyring.SPIFFEID("device", name), now)
	if err != nil {
		s.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key}
}

func clientConfig(certs ...tls.Certificate) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: certs, NextProtos: []string{"http/1.1"},
		InsecureSkipVerify: true, //nolint:gosec // the server is not what is tested
	}
}

// client returns a client, of HTTP/2 or 1.1, with one connection at a time.
func (s *site) client(http2 bool, certs ...tls.Certificate) *peer {
	p := &peer{dialled: make(chan struct{}, 100), address: s.address}
	config := clientConfig(certs...)
	config.NextProtos = nil
	protocols := new(http.Protocols)
	protocols.SetHTTP1(!http2)
	protocols.SetHTTP2(http2)
	transport := &http.Transport{TLSClientConfig: config, Protocols: protocols, DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
		p.dialled <- struct{}{}
		return new(net.Dialer).DialContext(ctx, network, address)
	}}
	p.Client = &http.Client{Transport: transport}
	s.T.Cleanup(transport.CloseIdleConnections)
	return p
}

func (p *peer) call(method, path string) (status int, body string, err error) {
	req, err := http.NewRequest(method, "https://"+p.address+path, nil)
	if err != nil {
		return 0, "", err
	}
	res, err := p.Do(req)
	if err != nil {
		return 0, "", err
	}
	raw, err := io.ReadAll(res.Body)
	return res.StatusCode, string(raw), errors.Join(err, res.Body.Close())
}

// is checks who the server sees.
func (s *site) is(p *peer, want string) {
	s.Helper()
	if status, body, err := p.call("GET", "/"); status != 200 || body != want || err != nil {
		s.Errorf("%d %q, %v: want %q", status, body, err, want)
	}
}

// stranger opens a TLS connection, with or without certificates.
func (s *site) stranger(certs ...tls.Certificate) *tls.Conn {
	s.Helper()
	c, err := tls.Dial("tcp", s.address, clientConfig(certs...))
	if err != nil {
		s.Fatal(err)
	}
	s.T.Cleanup(func() { _ = c.Close() })
	return c
}

// until waits for a condition.
func (s *site) until(what string, ok func() bool) {
	s.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			s.Fatalf("waited for %s in vain", what)
		}
	}
}

func (s *site) open(kind string) int { return s.metric("countersign_api_connections", kind) }

func (s *site) closed(reason string) int {
	return s.metric("countersign_api_connections_closed_total", reason)
}

// metric returns the value of a time series with one label.
func (s *site) metric(name, label string) int {
	s.Helper()
	families, err := s.registry.Gather()
	if err != nil {
		s.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == name && m.GetLabel()[0].GetValue() == label {
				return int(m.GetGauge().GetValue() + m.GetCounter().GetValue())
			}
		}
	}
	s.Fatalf("no metric %s of %s", name, label)
	return 0
}

// isCut waits until a connection has ended.
func isCut(t *testing.T, c net.Conn) {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	var timeout net.Error
	if _, err := io.Copy(io.Discard, c); errors.As(err, &timeout) && timeout.Timeout() {
		t.Error("the connection stays open")
	}
}

// TestStrangers: the oldest connection without a certificate is closed for a new one. A connection with a certificate
// does not count against its address.
func TestStrangers(t *testing.T) {
	s := newSite(t, Limits{Strangers: 9, PerAddress: 3, PerDevice: 4, Devices: 9}, usual)
	gate := s.client(true, s.certificate("gate", time.Now()))
	s.is(gate, "/device/gate")
	first, second, third := s.stranger(), s.stranger(), s.stranger()
	s.until("three strangers", func() bool { return s.open("stranger") == 3 && s.open("device") == 1 })
	fourth := s.stranger()
	isCut(t, first)
	for range 3 {
		s.is(s.client(false, s.certificate("pos", time.Now())), "/device/pos")
	}
	s.until("each in its place", func() bool { return s.open("stranger") <= 3 && s.open("device") == 4 })
	s.is(gate, "/device/gate")
	if n := len(gate.dialled); n != 1 {
		t.Errorf("the device connected %d times", n)
	}
	for _, c := range []net.Conn{second, third, fourth} {
		_ = c.Close()
	}
	s.until("no stranger", func() bool { return s.open("stranger") == 0 })
}

// TestStrangersIPv6: on a socket of both families, IPv4 and IPv6 peers count against their own addresses.
func TestStrangersIPv6(t *testing.T) {
	probe, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		t.Skip("no IPv6: ", err)
	}
	_ = probe.Close()
	s := newSiteAt(t, "[::]:0", Limits{Strangers: 9, PerAddress: 2, PerDevice: 4, Devices: 9}, usual)
	_, port, err := net.SplitHostPort(s.address)
	if err != nil {
		t.Fatal(err)
	}
	s.address = net.JoinHostPort("::1", port)
	first, second := s.stranger(), s.stranger()
	s.address = net.JoinHostPort("127.0.0.1", port)
	s.stranger()
	s.stranger()
	s.until("two of each", func() bool { return s.open("stranger") == 4 })
	s.address = net.JoinHostPort("::1", port)
	s.stranger()
	isCut(t, first)
	s.until("two of each", func() bool { return s.open("stranger") == 4 })
	if err := second.SetReadDeadline(time.Now().Add(time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	var timeout net.Error
	if _, err := second.Read(make([]byte, 1)); !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("the second one: %v", err)
	}
}

// TestSilent: a peer that does not make the handshake holds a place for a short time, and gives it up first to a
// peer that does.
func TestSilent(t *testing.T) {
	times := usual
	times.shake = 100 * time.Millisecond
	s := newSite(t, wide, times)
	c, err := net.Dial("tcp", s.address)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	s.until("a stranger", func() bool { return s.open("stranger") == 1 })
	isCut(t, c)
	s.until("no stranger", func() bool { return s.open("stranger") == 0 })
	if n := s.closed(closedHandshake); n != 1 {
		t.Errorf("%d handshakes failed", n)
	}
}

// TestStop: the end of the server ends the connections whose handshake is not done.
func TestStop(t *testing.T) {
	times := usual
	times.shake = long
	s := newSite(t, wide, times)
	c, err := net.Dial("tcp", s.address)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	s.until("a stranger", func() bool { return s.open("stranger") == 1 })
	s.stop()
	isCut(t, c)
}

// TestPlainHTTP: a peer without TLS learns what is wrong.
func TestPlainHTTP(t *testing.T) {
	s := newSite(t, wide, usual)
	res, err := http.Get("http://" + s.address)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != 400 || !strings.Contains(string(body), "https://") {
		t.Errorf("%d %q, %v", res.StatusCode, body, err)
	}
	_ = res.Body.Close()
}

// TestOneDevice: the oldest idle connection of a device is closed for a new one, never one within a request, and
// never one of another device.
func TestOneDevice(t *testing.T) {
	s := newSite(t, Limits{Strangers: 9, PerAddress: 9, PerDevice: 2, Devices: 9}, usual)
	pos, gate := s.certificate("pos", time.Now()), s.client(true, s.certificate("gate", time.Now()))
	s.is(gate, "/device/gate")
	busy := s.client(true, pos)
	answered := make(chan string)
	wait := func(p *peer) {
		_, body, err := p.call("POST", "/wait")
		answered <- body + because(err)
	}
	go wait(busy)
	<-s.entered
	idle := s.stranger(pos)
	s.until("an idle one", func() bool { return s.open("device") == 3 })
	another := s.client(true, pos)
	go wait(another)
	<-s.entered
	isCut(t, idle)
	if _, _, err := s.client(true, pos).call("GET", "/"); err == nil {
		t.Error("a third connection was served while two had requests in progress")
	}
	close(s.release)
	for range 2 {
		if a := <-answered; a != "/device/pos" {
			t.Errorf("within a request: %q", a)
		}
	}
	s.is(gate, "/device/gate")
	if n := len(gate.dialled); n != 1 {
		t.Errorf("another device connected %d times", n)
	}
}

func because(err error) string {
	if err == nil {
		return ""
	}
	return ": " + err.Error()
}

// TestImpostor: a peer that shows a device's certificate without its key never counts as that device.
func TestImpostor(t *testing.T) {
	s := newSite(t, Limits{Strangers: 9, PerAddress: 9, PerDevice: 2, Devices: 9}, usual)
	cert := s.certificate("gate", time.Now())
	gate := s.client(true, cert)
	s.is(gate, "/device/gate")
	false1 := s.certificate("gate", time.Now())
	false1.Certificate = cert.Certificate
	for i := range 4 {
		config := clientConfig(false1)
		config.Certificates = nil // crypto/tls compares certificate and key of these
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &false1, nil }
		c, err := tls.Dial("tcp", s.address, config)
		if err != nil {
			t.Fatal(err)
		}
		isCut(t, c) // in TLS 1.3 the server verifies after the client has finished
		_ = c.Close()
		s.until("its end", func() bool { return s.closed(closedHandshake) == i+1 })
	}
	s.is(gate, "/device/gate")
	if n := len(gate.dialled); n != 1 {
		t.Errorf("the device connected %d times", n)
	}
}

// TestStrangersRequests: a connection without a certificate has few requests in progress, so that its streams do not
// hold memory. Others have their own even when those beyond are used up.
func TestStrangersRequests(t *testing.T) {
	s := newSite(t, wide, usual)
	answered := make(chan int)
	waiting := 0
	fill := func(p *peer, n int) {
		t.Helper()
		s.is(p, "") // one connection from now on
		for range n {
			go func() {
				status, _, _ := p.call("POST", "/wait")
				answered <- status
			}()
			<-s.entered
			waiting++
		}
		if status, _, err := p.call("GET", "/"); status != 429 || err != nil {
			t.Errorf("beyond %d: %d, %v", n, status, err)
		}
		if n := len(p.dialled); n != 1 {
			t.Errorf("%d connections", n)
		}
	}
	for stock := strangerStock; stock > 0; {
		n := min(strangerMost, strangerRequests+stock)
		fill(s.client(true), n)
		stock -= n - strangerRequests
	}
	fill(s.client(true), strangerRequests)
	close(s.release)
	for range waiting {
		if status := <-answered; status != 200 {
			t.Errorf("%d", status)
		}
	}
}

// TestStrangerStock: each connection has its own requests, whatever the others took, and what is given back can be taken
// again.
func TestStrangerStock(t *testing.T) {
	d := &door{times: usual}
	connection := func() *conn { return &conn{door: d, accepted: time.Now()} }
	begin := func(c *conn, n int, then bool) {
		t.Helper()
		for range n {
			if ok, _ := c.begin(); !ok {
				t.Fatalf("request %d of %d", c.requests+1, n)
			}
		}
		if ok, _ := c.begin(); ok != then {
			t.Fatalf("beyond %d requests: %t", n, ok)
		} else if ok {
			c.end()
		}
	}
	var all []*conn
	for range strangerStock / (strangerMost - strangerRequests) {
		all = append(all, connection())
		begin(all[len(all)-1], strangerMost, false)
	}
	last := connection()
	begin(last, strangerRequests+strangerStock%(strangerMost-strangerRequests), false)
	all = append(all, last)
	for range 3 {
		all = append(all, connection())
		begin(all[len(all)-1], strangerRequests, false)
	}
	begin(&conn{door: d, accepted: time.Now(), device: true}, 2*strangerMost, true)
	all[0].end()
	begin(all[len(all)-1], 1, false)
	for _, c := range all {
		for c.requests > 0 {
			c.end()
		}
	}
	if d.stock != 0 {
		t.Errorf("%d are left of the stock's", d.stock)
	}
}

// TestLife: after its life a connection ends with an answer. The peer makes another and loses no request.
func TestLife(t *testing.T) {
	for name, http2 := range map[string]bool{"HTTP/2": true, "HTTP/1.1": false} {
		t.Run(name, func(t *testing.T) {
			times := usual
			times.life = 300 * time.Millisecond
			s := newSite(t, wide, times)
			p := s.client(http2, s.certificate("gate", time.Now()))
			waited := make(chan string)
			go func() { // begins before the end, and ends after it
				_, body, err := s.wait(p)
				waited <- body + because(err)
			}()
			<-s.entered
			calls := 0
			s.until("three lives", func() bool {
				calls++
				s.is(p, "/device/gate")
				return len(p.dialled) >= 4
			})
			if calls < 8 {
				t.Errorf("%d calls on %d connections", calls, len(p.dialled))
			}
			close(s.release)
			if a := <-waited; a != "/device/gate" {
				t.Errorf("within a request: %q", a)
			}
			s.until("the end of two", func() bool { return s.closed(closedAge) >= 2 })
		})
	}
}

func (s *site) wait(p *peer) (int, string, error) { return p.call("POST", "/wait") }

// TestIdle: a connection without requests ends, and one that the peer keeps busy without answers is cut.
func TestIdle(t *testing.T) {
	times := usual
	times.idle = 100 * time.Millisecond
	s := newSite(t, wide, times)
	p := s.client(true, s.certificate("gate", time.Now()))
	s.is(p, "/device/gate")
	s.until("its end", func() bool { return s.open("device") == 0 })
	if n := s.closed(closedEnd); n != 1 {
		t.Errorf("%d connections ended", n)
	}

	s = newSite(t, wide, cutSoon())
	go func() { _, _, _ = s.wait(s.client(true, s.certificate("gate", time.Now()))) }() // gets no answer
	<-s.entered
	s.until("its end", func() bool { return s.open("device") == 0 && s.closed(closedAge) == 1 })
	close(s.release)
}

func cutSoon() times {
	t := usual
	t.life, t.idle, t.grace = 100*time.Millisecond, 100*time.Millisecond, 100*time.Millisecond
	return t
}

// TestRetiredAuthority: a device that has a certificate by a compromised and retired ca is refused on the connection
// that it has, and the connection ends. One with a certificate by the next ca is not.
func TestRetiredAuthority(t *testing.T) {
	for name, http2 := range map[string]bool{"HTTP/2": true, "HTTP/1.1": false} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, wide, usual)
			old := s.client(http2, s.certificate("old", time.Now()))
			s.is(old, "/device/old")
			s.Step(keyplan.Rotate, "ca")
			s.Step(keyplan.Activate, "ca")
			s.is(old, "/device/old")
			if err := s.identity.Renew(t.Context()); err != nil {
				t.Fatal(err)
			}
			next := s.client(http2, s.certificate("next", time.Now()))
			s.is(next, "/device/next")
			if _, err := s.TryStep(keyplan.Step{Verb: keyplan.Retire, Compromised: true, Early: true}, "ca@1"); err != nil {
				t.Fatal(err)
			}
			status, body, err := old.call("GET", "/") // without Renew
			if status != 403 || !strings.Contains(body, `"code":15`) || err != nil {
				t.Errorf("by the retired ca: %d %s, %v", status, body, err)
			}
			s.until("the end of its connection", func() bool { return s.closed(closedCertificate) == 1 })
			s.is(next, "/device/next")
			if n := len(next.dialled); n != 1 {
				t.Errorf("by the next ca: %d connections", n)
			}
			// A new handshake verifies until Renew. The certificate counts for nothing.
			waited := make(chan int)
			go func() {
				status, _, _ := s.wait(old)
				waited <- status
			}()
			<-s.entered
			if strangers, devices := s.open("stranger"), s.open("device"); strangers != 1 || devices != 1 {
				t.Errorf("on a new connection: %d strangers, %d devices", strangers, devices)
			}
			close(s.release)
			if status := <-waited; status != 403 {
				t.Errorf("on a new connection: %d", status)
			}
		})
	}
}

// TestExpired: a certificate that expires on an open connection is refused from then on.
func TestExpired(t *testing.T) {
	s := newSite(t, wide, usual)
	p := s.client(true, s.certificate("gate", time.Now()))
	for _, c := range []struct {
		later  time.Duration
		status int
	}{{0, 200}, {keyuse.DeviceCertLife - time.Minute, 200}, {keyuse.DeviceCertLife + time.Minute, 403}} {
		s.later.Store(int64(c.later))
		if status, _, err := p.call("GET", "/"); status != c.status || err != nil {
			t.Errorf("after %v: %d, %v; want %d", c.later, status, err, c.status)
		}
	}
	if n := len(p.dialled); n != 1 {
		t.Errorf("%d connections", n)
	}
	s.until("the end of its connection", func() bool { return s.closed(closedCertificate) == 1 })
	err := s.identity.Judge(t.Context(), nil)
	if code, _ := protocol.CodeOf(err); code != protocol.CodeDevice {
		t.Errorf("no chain: %v", err)
	}
}
