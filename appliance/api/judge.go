package api

import (
	"context"
	"crypto/x509"
	"fmt"
	"time"

	"countersign/appliance/keyring"
	"countersign/appliance/keyuse"
	"countersign/protocol"
)

// verdict is a judgement on a connection's certificate. It holds for one state of the key registry, until a time.
type verdict struct {
	ring  *keyring.Ring
	until time.Time
	err   error
}

// Judge returns nil if the certificate of a connection is in force now: its authority is an accepted version of ca,
// and no certificate of its chain has expired. TLS verified the chains, in a handshake that may be an hour ago. The
// registry itself is asked, so a key that was retired is refused from then on. An error wraps
// [protocol.CodeDevice].
func (i *Identity) Judge(ctx context.Context, chains [][]*x509.Certificate) error {
	return i.judge(connOf(ctx), chains)
}

// judge remembers its verdict with the connection, if there is one.
func (i *Identity) judge(c *conn, chains [][]*x509.Certificate) error {
	ring, now := i.keys.Ring(), i.now()
	if c != nil {
		if v := c.verdict.Load(); v != nil && v.ring == ring && !now.After(v.until) {
			return v.err
		}
	}
	v := &verdict{ring: ring}
	v.until, v.err = keyuse.InForce(ring, chains, now)
	if v.err != nil {
		v.err = fmt.Errorf("%w: %w", v.err, protocol.CodeDevice)
		v.until = now // an activation may lie ahead
	}
	if c != nil {
		c.verdict.Store(v)
	}
	return v.err
}
