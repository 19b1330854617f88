package httpapi

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"countersign/appliance/keyring"
)

// Identity is the API's TLS identity: a P-256 key in memory and a certificate of
// 24 hours from the ca key, renewed at half-life. With the key in memory the
// daemon can answer 503, and does not hang, when the token is away.
type Identity struct {
	keys    *keyring.Keyring
	names   []string
	log     hclog.Logger
	current atomic.Pointer[tls.Config]
}

// NewIdentity issues the first certificate, for these DNS names and addresses.
func NewIdentity(ctx context.Context, keys *keyring.Keyring, names []string, log hclog.Logger) (*Identity, error) {
	i := &Identity{keys: keys, names: names, log: log}
	return i, i.Renew(ctx)
}

// TLSConfig for a listener: TLS 1.3; a client certificate is verified if given,
// and required by route.
func (i *Identity) TLSConfig() *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return i.current.Load(), nil },
	}
}

// Renew issues a new certificate by the ca key in use now, and takes the authorities of
// now for callers. Connections that are there go on with the old ones.
func (i *Identity) Renew(ctx context.Context) error {
	now := time.Now()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	cert, err := i.keys.ServerCert(ctx, key.Public(), i.names, now)
	if err != nil {
		return fmt.Errorf("TLS certificate of the API: %w", err)
	}
	authorities, err := i.keys.Authorities(ctx, now)
	if err != nil {
		return fmt.Errorf("authorities of the API: %w", err)
	}
	pool := x509.NewCertPool()
	for _, authority := range authorities {
		pool.AddCert(authority)
	}
	i.current.Store(&tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{{Certificate: [][]byte{cert.Raw}, PrivateKey: key, Leaf: cert}},
		ClientAuth:   tls.VerifyClientCertIfGiven,
		ClientCAs:    pool,
		NextProtos:   []string{"h2", "http/1.1"},
	})
	return nil
}

// look is how often the certificate's dates are compared with the clock on the
// wall, which goes on while a suspended machine's timers do not.
const look = time.Minute

// Run renews the certificate at half of its life, until ctx ends.
func (i *Identity) Run(ctx context.Context) {
	ticker := time.NewTicker(look)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		leaf := i.current.Load().Certificates[0].Leaf
		if time.Now().Before(leaf.NotAfter.Add(-keyring.ServerCertLife / 2)) {
			continue
		}
		if err := i.Renew(ctx); err != nil {
			i.log.Error("TLS certificate could not be renewed", "error", err)
		}
	}
}
