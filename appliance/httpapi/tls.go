package httpapi

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"countersign/appliance/keyring"
	"countersign/appliance/keyuse"
)

// Identity is the API's TLS identity: a P-256 key in memory and a certificate of
// 24 hours from the ca key, renewed at half-life. With the key in memory the
// daemon can answer 503, and does not hang, when the token is away.
type Identity struct {
	keys    *keyuse.Keys
	names   []string
	log     hclog.Logger
	current atomic.Pointer[tls.Config]
}

// errNoIdentity is told in the log of a handshake.
var errNoIdentity = errors.New("no TLS certificate: key \"ca\" has no version in use, rotate it with countersignctl key rotate ca")

// NewIdentity issues the first certificate, for these DNS names and addresses. With no
// version of ca in use there is none: every handshake fails until Renew has one, so
// that an appliance that was off for long starts, and its ca can be rotated.
func NewIdentity(ctx context.Context, keys *keyuse.Keys, names []string, log hclog.Logger) (*Identity, error) {
	i := &Identity{keys: keys, names: names, log: log}
	err := i.Renew(ctx)
	if errors.Is(err, keyring.ErrNoKey) {
		log.Error("the API answers nobody", "error", errNoIdentity)
		return i, nil
	}
	return i, err
}

// TLSConfig for a listener: TLS 1.3; a client certificate is verified if given,
// and required by route.
func (i *Identity) TLSConfig() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			config := i.current.Load()
			if config == nil {
				return nil, errNoIdentity
			}
			return config, nil
		},
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
		if i.fresh(time.Now()) {
			continue
		}
		if err := i.Renew(ctx); err != nil {
			i.log.Error("TLS certificate could not be renewed", "error", err)
		}
	}
}

// fresh: there is a certificate, in the first half of its life.
func (i *Identity) fresh(now time.Time) bool {
	config := i.current.Load()
	return config != nil && now.Before(config.Certificates[0].Leaf.NotAfter.Add(-keyuse.ServerCertLife/2))
}
