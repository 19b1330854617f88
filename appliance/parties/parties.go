// Package parties finds the clients and devices that are enrolled and changes their
// status.
package parties

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"countersign/appliance/keyuse"
	"countersign/appliance/store"
	"countersign/internal/bounded"
	"countersign/protocol"
)

// Parties reads and changes clients and devices. It is safe for concurrent use.
type Parties struct {
	store   store.Store
	devices bounded.Map[string, cachedDevice] // by SPIFFE ID
}

// New returns the parties of a store.
func New(s store.Store) *Parties { return &Parties{store: s} }

// Client reads a client's record. The store reports a record that does not fit its seal;
// it counts as [store.ErrNotFound] here.
func (p *Parties) Client(ctx context.Context, id protocol.ClientID) (store.Client, error) {
	c, err := p.store.Client(ctx, id)
	if Forged(err) {
		err = fmt.Errorf("%w: %w", err, store.ErrNotFound)
	}
	if err != nil {
		return store.Client{}, fmt.Errorf("client %s: %w", id, err)
	}
	return c, nil
}

// Forged reports whether an error means that a record does not fit its seal, while the
// store can still be used. The alarm was raised where the record was read.
func Forged(err error) bool {
	return errors.Is(err, store.ErrForged) && !errors.Is(err, store.ErrUnavailable)
}

// cachedDevice is a device row that is kept for a moment, because a device sends two requests for each
// authorization. It may be a second old on another replica; the commit reads the row again.
type cachedDevice struct {
	store.Device
	until time.Time
}

const deviceLife = time.Second

// Forget drops a device from the cache after its row has changed.
func (p *Parties) Forget(spiffeID string) { p.devices.Delete(spiffeID) }

// DeviceOf returns the enrolled, active device of a certificate that TLS has verified. Errors
// wrap [protocol.CodeDevice]. It refuses a certificate from before the device's last
// enrolment: that key belongs to the revoked device that had this name.
func (p *Parties) DeviceOf(ctx context.Context, cert *x509.Certificate) (store.Device, error) {
	if len(cert.URIs) != 1 {
		return store.Device{}, fmt.Errorf("certificate with %d SPIFFE IDs: %w", len(cert.URIs), protocol.CodeDevice)
	}
	device, err := p.Device(ctx, cert.URIs[0].String())
	if err != nil {
		return store.Device{}, err
	}
	if keyuse.IssuedAt(cert).Before(device.CreatedAt.Truncate(time.Second)) {
		return store.Device{}, fmt.Errorf("%s was enrolled again after this certificate: %w", device.SPIFFEID, protocol.CodeDevice)
	}
	return device, nil
}

// Device returns the enrolled, active device with this SPIFFE ID. Errors wrap
// [protocol.CodeDevice].
func (p *Parties) Device(ctx context.Context, spiffeID string) (store.Device, error) {
	now := time.Now()
	cached, _ := p.devices.Get(spiffeID)
	device, known := cached.Device, now.Before(cached.until)
	var err error
	if !known {
		device, err = p.store.Device(ctx, protocol.DeviceIDOf(spiffeID))
	}
	switch {
	case errors.Is(err, store.ErrNotFound), Forged(err), err == nil && (device.SPIFFEID != spiffeID || device.Status != store.Active):
		return store.Device{}, fmt.Errorf("%s is not an active device: %w", spiffeID, protocol.CodeDevice)
	case err != nil:
		return store.Device{}, fmt.Errorf("device %s: %w", spiffeID, err)
	}
	if !known {
		p.devices.Put(spiffeID, cachedDevice{device, now.Add(deviceLife)})
	}
	return device, nil
}
