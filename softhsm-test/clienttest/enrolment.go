package clienttest

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"time"

	"countersign/protocol"
	"countersign/protocol/derive"
	"countersign/protocol/deviceapi"
	"countersign/protocol/enrol"
	"countersign/protocol/password"
	"countersign/protocol/trust"
)

// enrolled is an activation code and the request that used it.
type enrolled struct{ body, response []byte }

// Invite returns a new activation code.
func (a *Appliance) Invite() enrol.ActivationCode {
	var random [13]byte
	_, _ = rand.Read(random[:])
	code := enrol.NewActivationCode(a.Root(), random)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.codes[code.String()] = enrolled{}
	return code
}

// Serve starts the HTTPS listener and returns its address.
func (a *Appliance) Serve() string {
	a.t.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/trust", a.serveTrust)
	mux.HandleFunc("POST /v1/enrol", a.serveEnrol)
	s := httptest.NewUnstartedServer(mux)
	s.TLS = &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{a.certificate()}}
	s.EnableHTTP2 = true
	s.StartTLS()
	a.t.Cleanup(s.Close)
	return s.URL
}

func (a *Appliance) certificate() tls.Certificate {
	a.t.Helper()
	key, issuer := NewSigner(a.t), a.ca
	if a.do.OtherCA {
		issuer = a.rogue
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "appliance"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, KeyUsage: x509.KeyUsageDigitalSignature,
	}
	parent := &x509.Certificate{Subject: pkix.Name{CommonName: "ca"}}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.key.PublicKey, issuer.key)
	if err != nil {
		a.t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key.key}
}

func (a *Appliance) serveTrust(w http.ResponseWriter, _ *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	root := a.rootLocked()
	a.write(w, trust.Document{
		RootKey: root.Key, NextRootHash: root.NextHash, RootCerts: a.rootCerts, KeyCerts: a.keyCertsLocked(),
	})
}

// rootLocked returns the RootCert of the current root.
func (a *Appliance) rootLocked() trust.RootCert {
	root, err := trust.VerifyRootCert(a.rootCerts[len(a.rootCerts)-1])
	if err != nil {
		a.t.Error(err)
	}
	return root
}

func (a *Appliance) keyCertsLocked() [][]byte {
	var certs [][]byte
	for use := trust.UseKEM; use <= trust.UseClientCA; use++ {
		if cert, ok := a.certs[use]; ok {
			certs = append(certs, cert)
		}
	}
	return append(certs, a.later...)
}

func (a *Appliance) write(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(v); err != nil {
		a.t.Logf("writing an answer: %v", err)
	}
}

func (a *Appliance) problem(w http.ResponseWriter, p deviceapi.Problem) {
	w.Header().Set("Content-Type", deviceapi.ProblemType)
	w.WriteHeader(p.Status)
	a.write(w, p)
}

func (a *Appliance) serveEnrol(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	req, err := enrol.ParseRequest(body)
	if err != nil {
		a.t.Errorf("enrolment request: %v", err)
		a.problem(w, deviceapi.ProblemOf(err))
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.do.Conflict > 0 {
		a.do.Conflict--
		a.problem(w, deviceapi.Problem{Status: http.StatusConflict, Title: "client id is taken"})
		return
	}
	use, invited := a.codes[req.ActivationCode.String()]
	if !invited || use.body != nil && !bytes.Equal(use.body, body) {
		a.problem(w, deviceapi.Problem{Status: http.StatusForbidden, Title: "refused", Code: protocol.CodeRefused})
		return
	}
	if use.body == nil {
		use = enrolled{body, a.enrolLocked(r, req)}
		a.codes[req.ActivationCode.String()] = use
	}
	a.write(w, json.RawMessage(use.response))
}

func (a *Appliance) enrolLocked(r *http.Request, req enrol.Request) []byte {
	cert, err := trust.SignClientCert(r.Context(), a.clientCA, 1, trust.ClientCert{
		Client: req.ClientID(), SigningKey: req.SigningKey, UVKey: req.UVKey, NotBefore: uint64(time.Now().Add(-time.Hour).Unix()),
		NotAfter: uint64(time.Now().Add(time.Hour).Unix()),
	})
	if err != nil {
		a.t.Error(err)
	}
	a.clients[req.ClientID()] = client{key: req.SigningKey, uv: req.UVKey, verifier: a.importLocked(req)}
	root := a.rootLocked()
	answer := enrol.Response{
		Client: req.ClientID(), RootKey: root.Key, NextRootHash: root.NextHash, KeyCerts: a.keyCertsLocked(), ClientCert: cert,
		Floors: []protocol.Floor{{Service: 300, MinLevel: 3}},
	}
	if a.do.OtherRoot {
		answer.RootKey = a.rogue.Public()
	}
	body, err := json.Marshal(answer)
	if err != nil {
		a.t.Error(err)
	}
	return body
}

// importLocked unwraps the verifier of a request that sets a password.
func (a *Appliance) importLocked(req enrol.Request) *password.Verifier {
	if req.Password == nil {
		return nil
	}
	own, err := protocol.CompressPoint(a.enrol.PublicKey().Bytes())
	if err != nil {
		a.t.Error(err)
	}
	verifier, err := password.Unwrap(req.Password.Wrapped[:], a.enrol, derive.PasswordImport{
		Root: a.root.Public().RootID(), Ephemeral: req.Password.Ephemeral, Enrol: own, SigningKey: req.SigningKey,
	})
	if err != nil {
		a.t.Errorf("password of client %v: %v", req.ClientID(), err)
	}
	return &verifier
}

// Clients returns the number of enrolled clients.
func (a *Appliance) Clients() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.clients)
}
