package relay

import (
	"context"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"countersign/protocol"
	"countersign/protocol/deviceapi"
	"countersign/protocol/enrol"
	"countersign/protocol/message"
	"countersign/protocol/receipt"
	"countersign/protocol/trust"
)

// signingKey is a P-256 key in software.
type signingKey struct{ *ecdsa.PrivateKey }

func newSigningKey(t testing.TB) signingKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	return signingKey{key}
}

func (k signingKey) SignDigest(_ context.Context, digest []byte) ([]byte, error) {
	r, s, err := ecdsa.Sign(rand.Reader, k.PrivateKey, digest)
	if err != nil {
		return nil, err
	}
	sig := make([]byte, protocol.SignatureSize)
	r.FillBytes(sig[:32])
	s.FillBytes(sig[32:])
	return sig, nil
}

func (k signingKey) public(t testing.TB) protocol.PublicKey {
	t.Helper()
	p, err := protocol.CompressKey(&k.PublicKey)
	must(t, err)
	return p
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

const deviceName = "front-door"

// opened is a challenge of the fake.
type opened struct {
	request deviceapi.ApplyRequest
	p1      []byte
	p2      []byte
	u       protocol.Nonce
	chal    protocol.Challenge
	channel message.Channel
	tx      protocol.TransactionID
	first   *approval // approval that this one completes; nil: none
}

// fake is an appliance with the real protocol and TLS, and keys in software. By default it
// approves everything that is countersigned.
type fake struct {
	t        testing.TB
	root     signingKey
	decision signingKey
	ca       signingKey
	kem      *ecdh.PrivateKey
	caCert   *x509.Certificate
	server   *httptest.Server
	caFile   string

	mu       sync.Mutex // guards the following fields
	keyCerts [][]byte
	epoch    uint64 // of decision
	ttl      uint64
	life     time.Duration // of device certificates
	ahead    time.Duration // of the appliance's clock when it gets its server certificate
	opened   map[string]*opened
	calls    map[string]int
	bodies   map[string][][]byte
	outcomes map[protocol.TransactionID]bool
	fail     map[string]http.HandlerFunc // by path, instead of the answer
	mutate   func(*receipt.Decision)
	sign     func(receipt.Decision) []byte // instead of the decision key
	answer   func(*deviceapi.CountersignResponse)
	mu2      []byte // an MU instead of M2
	levels
}

func newFake(t testing.TB) *fake {
	t.Helper()
	kem, err := ecdh.P256().GenerateKey(rand.Reader)
	must(t, err)
	f := &fake{
		t: t, root: newSigningKey(t), decision: newSigningKey(t), ca: newSigningKey(t), kem: kem, epoch: 1, ttl: 60, life: time.Hour,
		opened: map[string]*opened{}, calls: map[string]int{}, bodies: map[string][][]byte{},
		outcomes: map[protocol.TransactionID]bool{}, fail: map[string]http.HandlerFunc{},
	}
	f.keyCerts = [][]byte{f.keyCert(trust.UseKEM, 1, f.kemKey()), f.keyCert(trust.UseDecision, 1, f.decision.public(t)), f.keyCert(trust.UseCA, 1, f.ca.public(t))}
	f.levels = newLevels(t)
	f.keyCerts = append(f.keyCerts, f.keyCert(trust.UseClientCA, 1, f.clientCA.public(t)))
	f.caCert = f.certificate(&x509.Certificate{
		Subject: pkix.Name{CommonName: "ca"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}, &f.ca.PublicKey)
	f.caFile = filepath.Join(t.TempDir(), "ca.pem")
	must(t, os.WriteFile(f.caFile, []byte(pemOf(f.caCert)), 0o600))
	f.start("127.0.0.1:0")
	return f
}

// start serves on an address. A stopped fake can start again on the same one.
func (f *fake) start(addr string) {
	key := newSigningKey(f.t)
	leaf := f.certificate(&x509.Certificate{
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		NotBefore: time.Now().Add(f.ahead - time.Minute), NotAfter: time.Now().Add(f.ahead + time.Hour),
	}, &key.PublicKey)
	clients := x509.NewCertPool()
	clients.AddCert(f.caCert)
	for _, old := range f.oldCAs {
		clients.AddCert(old)
	}
	f.server = httptest.NewUnstartedServer(http.HandlerFunc(f.serve))
	f.server.EnableHTTP2 = true
	f.server.Config.ErrorLog = log.New(io.Discard, "", 0)
	f.server.TLS = &tls.Config{
		MinVersion: tls.VersionTLS13, ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: clients,
		Certificates: []tls.Certificate{{Certificate: [][]byte{leaf.Raw}, PrivateKey: key.PrivateKey}},
	}
	if addr != "127.0.0.1:0" {
		must(f.t, f.server.Listener.Close())
		listener, err := net.Listen("tcp", addr)
		must(f.t, err)
		f.server.Listener = listener
	}
	f.server.StartTLS()
	f.t.Cleanup(f.stop)
}

func (f *fake) stop() { f.server.CloseClientConnections(); f.server.Close() }

func pemOf(c *x509.Certificate) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
}

func (f *fake) certificate(c *x509.Certificate, key *ecdsa.PublicKey) *x509.Certificate {
	parent := f.caCert
	if parent == nil {
		parent = c
	}
	c.SerialNumber = big.NewInt(time.Now().UnixNano())
	if c.NotBefore.IsZero() {
		c.NotBefore, c.NotAfter = time.Now().Add(-time.Minute), time.Now().Add(time.Hour)
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key, f.ca.PrivateKey)
	must(f.t, err)
	parsed, err := x509.ParseCertificate(der)
	must(f.t, err)
	return parsed
}

func (f *fake) kemKey() protocol.PublicKey {
	key, err := protocol.CompressPoint(f.kem.PublicKey().Bytes())
	must(f.t, err)
	return key
}

func (f *fake) keyCert(use trust.Use, epoch uint64, key protocol.PublicKey) []byte {
	now := uint64(time.Now().Unix())
	raw, err := trust.SignKeyCert(f.t.Context(), f.root, trust.KeyCert{Epoch: epoch, Use: use, Key: key, NotBefore: now - 60, NotAfter: now + 3600})
	must(f.t, err)
	return raw
}

func (f *fake) trust() trust.Document {
	next := sha256.Sum256([]byte("the next root"))
	first, err := trust.SignRootCert(f.t.Context(), f.root, trust.RootCert{Number: 1, Key: f.root.public(f.t), NextHash: next})
	must(f.t, err)
	return trust.Document{RootKey: f.root.public(f.t), NextRootHash: next, RootCerts: [][]byte{first}, KeyCerts: f.keyCerts}
}

func (f *fake) code() enrol.ActivationCode {
	return enrol.NewActivationCode(f.root.public(f.t).RootHash(), [13]byte{1, 2, 3})
}

func (f *fake) count(path string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls[path]
}

// set changes the fake while it runs.
func (f *fake) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

func (f *fake) serve(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil || r.ProtoMajor != 2 {
		w.WriteHeader(http.StatusHTTPVersionNotSupported)
		return
	}
	f.mu.Lock()
	f.calls[r.URL.Path]++
	f.bodies[r.URL.Path] = append(f.bodies[r.URL.Path], body)
	fail := f.fail[r.URL.Path]
	f.mu.Unlock()
	if fail != nil {
		fail(w, r)
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	isOpen := r.URL.Path == "/v1/trust" || r.URL.Path == "/v1/enrol/device"
	if !isOpen && len(r.TLS.PeerCertificates) == 0 {
		refuse(w, protocol.CodeDevice)
		return
	}
	switch r.URL.Path {
	case "/v1/trust":
		writeJSON(w, f.trust())
	case "/v1/enrol/device":
		f.enrol(w, body)
	case "/v1/device":
		w.WriteHeader(http.StatusNoContent)
	case "/v1/renew":
		request, err := enrol.ParseRenewRequest(body)
		if err != nil {
			refuse(w, err)
			return
		}
		writeJSON(w, enrol.RenewResponse{Certificates: f.deviceChain(request.CSR)})
	case "/v1/apply":
		f.apply(w, body)
	case "/v1/countersign":
		f.countersign(w, body)
	case "/v1/outcome":
		outcome, err := deviceapi.ParseOutcomeRequest(body)
		if err != nil {
			refuse(w, err)
			return
		}
		f.giveBack(outcome)
		f.outcomes[outcome.Transaction] = outcome.Performed
		w.WriteHeader(http.StatusNoContent)
	}
}

func writeJSON(w http.ResponseWriter, v any) {
	if w.Header().Get("Content-Type") == "" {
		w.Header().Set("Content-Type", "application/json")
	}
	_ = json.NewEncoder(w).Encode(v)
}

func writeCBOR(w http.ResponseWriter, body []byte) {
	w.Header().Set("Content-Type", deviceapi.BodyType)
	_, _ = w.Write(body)
}

func refuse(w http.ResponseWriter, err error) {
	p := deviceapi.ProblemOf(err)
	w.Header().Set("Content-Type", deviceapi.ProblemType)
	if p.Retry != 0 {
		w.Header().Set("Retry-After", strconv.FormatUint(p.Retry, 10))
	}
	w.WriteHeader(p.Status)
	writeJSON(w, p)
}

func (f *fake) enrol(w http.ResponseWriter, body []byte) {
	request, err := enrol.ParseDeviceRequest(body)
	if err != nil || request.ActivationCode.Secret != f.code().Secret {
		refuse(w, protocol.CodeDevice)
		return
	}
	writeJSON(w, enrol.DeviceResponse{Certificates: f.deviceChain(request.CSR), Trust: f.trust()})
}

func (f *fake) deviceChain(csr string) []string {
	block, _ := pem.Decode([]byte(csr))
	request, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil || request.CheckSignature() != nil {
		f.t.Errorf("certificate request: %v, or its signature is bad", err)
		return nil
	}
	key, isECDSA := request.PublicKey.(*ecdsa.PublicKey)
	if !isECDSA {
		f.t.Errorf("certificate request is for a %T", request.PublicKey)
		return nil
	}
	leaf := f.certificate(&x509.Certificate{
		URIs:      []*url.URL{{Scheme: "spiffe", Host: "example.org", Path: "/device/" + deviceName}},
		NotBefore: time.Now().Add(-f.life / 4), NotAfter: time.Now().Add(f.life), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, key)
	return []string{pemOf(leaf), pemOf(f.caCert)}
}

func (f *fake) deviceID() protocol.DeviceID {
	return protocol.DeviceIDOf("spiffe://example.org/device/" + deviceName)
}

func (f *fake) apply(w http.ResponseWriter, body []byte) {
	request, err := deviceapi.ParseApplyRequest(body)
	if err != nil {
		refuse(w, err)
		return
	}
	if f.mu2 != nil {
		writeCBOR(w, deviceapi.ApplyResponse{M2: f.mu2}.Marshal())
		return
	}
	m1, err := message.ParseM1(request.M1)
	if err != nil {
		refuse(w, err)
		return
	}
	p1, es, err := m1.Open(message.NewKEM(message.Suite1, f.kem), f.root.public(f.t).RootID())
	if err != nil {
		refuse(w, err)
		return
	}
	o := &opened{request: request, p1: p1}
	_, _ = rand.Read(o.u[:])
	_, _ = rand.Read(o.tx[:])
	o.chal = protocol.NewChallenge(request.Nonce, o.u)
	o.channel = message.NewChannel(es, request.M1, o.chal)
	p2 := f.challenge(o)
	o.p2 = p2.Marshal()
	m2 := o.channel.SealM2(o.chal, o.p2)
	if p2.Code != 0 {
		writeCBOR(w, deviceapi.ApplyResponse{M2: m2}.Marshal())
		return
	}
	handle := rand.Text()
	f.opened[handle] = o
	writeCBOR(w, deviceapi.ApplyResponse{M2: m2, Handle: []byte(handle), Level: 1, TTL: f.ttl}.Marshal())
}

func (f *fake) countersign(w http.ResponseWriter, body []byte) {
	request, err := deviceapi.ParseCountersignRequest(body)
	if err != nil {
		refuse(w, err)
		return
	}
	o := f.opened[string(request.Handle)]
	if o == nil {
		refuse(w, protocol.CodeExpired)
		return
	}
	_, raw, err := o.channel.OpenM3(request.M3)
	if err != nil {
		refuse(w, err)
		return
	}
	p3, err := message.ParseP3(raw)
	if err != nil {
		refuse(w, err)
		return
	}
	writeCBOR(w, f.decide(o, request.M3, p3).Marshal())
}
