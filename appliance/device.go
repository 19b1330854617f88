package appliance

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"sync"
	"time"

	"countersign/appliance/keyring"
	"countersign/appliance/store"
	"countersign/protocol"
)

// deviceCache keeps device rows for a moment: a device asks twice for each
// authorization. What it keeps may be a second old on another replica; the commit
// reads the row again.
type deviceCache struct {
	mu   sync.Mutex
	rows map[string]cachedDevice // by SPIFFE ID; guarded by mu
}

type cachedDevice struct {
	store.Device
	until time.Time
}

const deviceLife = time.Second

func (d *deviceCache) get(id string, now time.Time) (store.Device, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	row, ok := d.rows[id]
	return row.Device, ok && now.Before(row.until)
}

func (d *deviceCache) put(row store.Device, now time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.rows == nil || len(d.rows) >= recordsKept {
		d.rows = map[string]cachedDevice{}
	}
	d.rows[row.SPIFFEID] = cachedDevice{row, now.Add(deviceLife)}
}

func (d *deviceCache) forget(id string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.rows, id)
}

// DeviceOf is the enrolled, active device of a certificate that TLS has verified,
// or an error that wraps [protocol.CodeDevice]. A certificate from before the
// device's last enrolment is refused: its key is that of the revoked device which
// had this name.
func (a *Appliance) DeviceOf(ctx context.Context, cert *x509.Certificate) (store.Device, error) {
	if len(cert.URIs) != 1 {
		return store.Device{}, fmt.Errorf("certificate with %d SPIFFE IDs: %w", len(cert.URIs), protocol.CodeDevice)
	}
	device, err := a.Device(ctx, cert.URIs[0].String())
	if err != nil {
		return store.Device{}, err
	}
	if keyring.IssuedAt(cert).Before(device.CreatedAt.Truncate(time.Second)) {
		return store.Device{}, fmt.Errorf("%s was enrolled anew after this certificate: %w", device.SPIFFEID, protocol.CodeDevice)
	}
	return device, nil
}

// Device is the enrolled, active device with this SPIFFE ID, or an error that wraps
// [protocol.CodeDevice].
func (a *Appliance) Device(ctx context.Context, spiffeID string) (store.Device, error) {
	now := time.Now()
	device, known := a.devices.get(spiffeID, now)
	var err error
	if !known {
		device, err = a.store.Device(ctx, protocol.DeviceIDOf(spiffeID))
	}
	switch {
	case errors.Is(err, store.ErrNotFound), err == nil && (device.SPIFFEID != spiffeID || device.Status != store.Active):
		return store.Device{}, fmt.Errorf("%s is not an active device: %w", spiffeID, protocol.CodeDevice)
	case err != nil:
		return store.Device{}, fmt.Errorf("device %s: %w", spiffeID, err)
	}
	if !known {
		a.devices.put(device, now)
	}
	return device, nil
}
