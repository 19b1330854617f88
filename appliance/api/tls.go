package api

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

// Identity is the API's TLS identity: a P-256 key in memory and a certificate by the ca key, which is valid for 24
// hours and renewed after 12. With the key in memory the daemon can answer 503 instead of hanging when the token is
// unavailable.
type Identity struct {
	keys    *keyuse.Keys
	names   []string
	log     hclog.Logger
	now     func() time.Time // of judgements
	current atomic.Pointer[tls.Config]
}

// errNoIdentity is the error of a handshake without a certificate. Its text is logged.
var errNoIdentity = errors.New("no TLS certificate: key \"ca\" has no version in use, rotate it with countersignctl key rotate ca")

// NewIdentity issues the first certificate, for these DNS names and addresses. If no version of ca is in use it
// issues none: every handshake fails until Renew succeeds. So an appliance that was off for a long time starts, and
// an administrator can rotate its ca.
func NewIdentity(ctx context.Context, keys *keyuse.Keys, names []string, log hclog.Logger) (*Identity, error) {
	i := &Identity{keys: keys, names: names, log: log, now: time.Now}
	err := i.Renew(ctx)
	if errors.Is(err, keyring.ErrNoKey) {
		log.Error("the API refuses every connection", "error", errNoIdentity)
		return i, nil
	}
	return i, err
}

// config returns the configuration of a handshake: TLS 1.3, without tickets, because a ticket would bring back an
// earlier chain. A client certificate is verified if there is one; some routes require one.
func (i *Identity) config() (*tls.Config, error) {
	config := i.current.Load()
	if config == nil {
		return nil, errNoIdentity
	}
	return config, nil
}

// Renew issues a new certificate by the ca key in use now, and reads the authorities of client certificates again.
// Open connections keep the old ones, and judge compares them with the registry.
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

		SessionTicketsDisabled: true,
	})
	return nil
}

// renewPoll is how often the certificate's dates are compared with the wall clock, which, unlike timers, advances
// while the machine is suspended.
const renewPoll = time.Minute

// Run renews the certificate after half of its lifetime, until ctx ends.
func (i *Identity) Run(ctx context.Context) {
	ticker := time.NewTicker(renewPoll)
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
			i.log.Error("TLS certificate was not renewed", "error", err)
		}
	}
}

// fresh reports whether there is a certificate in the first half of its lifetime. A certificate that was made while the
// clock was ahead is not yet valid once the clock is right.
func (i *Identity) fresh(now time.Time) bool {
	config := i.current.Load()
	if config == nil {
		return false
	}
	leaf := config.Certificates[0].Leaf
	return !now.Before(leaf.NotBefore) && now.Before(leaf.NotAfter.Add(-keyuse.ServerCertLife/2))
}
