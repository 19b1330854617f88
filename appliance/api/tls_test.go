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
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"

	"countersign/appliance/appliancetest"
	"countersign/appliance/keyuse"
)

// wide are limits that no test meets by accident.
var wide = Limits{Strangers: 64, PerAddress: 64, PerDevice: 64, Requests: 64, Devices: 64}

// TestIdentity: the listener has a certificate for its names by ca, TLS 1.3, and verifies certificates of devices.
func TestIdentity(t *testing.T) {
	keys := appliancetest.New(t).Keyring
	identity, err := NewIdentity(t.Context(), keys, []string{"localhost", "127.0.0.1"}, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	certified := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, peerOf(r)) })
	go func() {
		served <- Serve(ctx, hclog.NewNullLogger(), Server{
			Name: "api", Listener: listener, Handler: certified, Identity: identity, Limits: wide, Metrics: NewMetrics(prometheus.NewRegistry()),
		})
	}()
	roots := x509.NewCertPool()
	authorities, err := keys.Authorities(t.Context(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range authorities {
		roots.AddCert(c)
	}
	get := func(c *tls.Config) (string, error) {
		c.RootCAs = roots
		client := http.Client{Transport: &http.Transport{TLSClientConfig: c, DisableKeepAlives: true}}
		res, err := client.Get("https://" + listener.Addr().String())
		if err != nil {
			return "", err
		}
		body, err := io.ReadAll(res.Body)
		return string(body), errors.Join(err, res.Body.Close())
	}
	if who, err := get(&tls.Config{MinVersion: tls.VersionTLS12}); err != nil || who != "" {
		t.Errorf("without a certificate: %q, %v", who, err)
	}
	if _, err := get(&tls.Config{MinVersion: tls.VersionTLS12, MaxVersion: tls.VersionTLS12}); err == nil {
		t.Error("TLS 1.2 was accepted")
	}
	stranger, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	forged := *authorities[0]
	forged.PublicKey = stranger.Public()
	self, err := x509.CreateCertificate(rand.Reader, &forged, &forged, stranger.Public(), stranger)
	if err != nil {
		t.Fatal(err)
	}
	own := []tls.Certificate{{Certificate: [][]byte{self}, PrivateKey: stranger}}
	if who, err := get(&tls.Config{MinVersion: tls.VersionTLS13, Certificates: own}); err == nil {
		t.Errorf("a certificate by another key was accepted as %q", who)
	}
	stop()
	if err := <-served; err != nil {
		t.Errorf("Serve: %v", err)
	}
}

func peerOf(r *http.Request) string {
	if len(r.TLS.VerifiedChains) == 0 {
		return ""
	}
	return r.TLS.PeerCertificates[0].Subject.String()
}

// TestIdentityAges: a certificate is fresh for half of its lifetime, and without a usable ca every handshake fails.
func TestIdentityAges(t *testing.T) {
	i := &Identity{}
	if _, err := i.config(); !errors.Is(err, errNoIdentity) {
		t.Errorf("%v", err)
	}
	i, err := NewIdentity(t.Context(), appliancetest.New(t).Keyring, []string{"localhost"}, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	for age, want := range map[time.Duration]bool{
		0: true, keyuse.ServerCertLife/2 - time.Hour: true, keyuse.ServerCertLife/2 + time.Hour: false, -3 * time.Hour: false,
	} {
		if got := i.fresh(now.Add(age)); got != want {
			t.Errorf("after %v fresh is %v", age, got)
		}
	}
}
