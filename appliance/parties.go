package appliance

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"sync"
	"time"

	"countersign/appliance/keyuse"
	"countersign/appliance/store"
	"countersign/protocol"
	"countersign/protocol/derive"
)

// client reads a client's record. One that does not fit its seal is reported by the
// store, and treated as unknown.
func (a *Appliance) client(ctx context.Context, id protocol.ClientID) (store.Client, error) {
	c, err := a.store.Client(ctx, id)
	if isForged(err) {
		err = fmt.Errorf("%w: %w", err, store.ErrNotFound)
	}
	if err != nil {
		return store.Client{}, fmt.Errorf("client %s: %w", id, err)
	}
	return c, nil
}

// recordsKept bounds each cache here; beyond it everything is asked for anew.
const recordsKept = 50_000

// pair is a client at a device.
type pair struct {
	client protocol.ClientID
	device protocol.DeviceID
}

// pairwiseCache remembers what the token computed for a pair; it never changes.
type pairwiseCache struct {
	mu  sync.Mutex
	ids map[pair]protocol.PairwiseID // guarded by mu
}

// pairwise is the handle by which a device knows a client, PROTOCOL.md §3.1 field 11.
func (a *Appliance) pairwise(ctx context.Context, p pair) (protocol.PairwiseID, error) {
	a.pairs.mu.Lock()
	id, known := a.pairs.ids[p]
	a.pairs.mu.Unlock()
	if known {
		return id, nil
	}
	key, err := a.keys.PairwiseKey()
	if err != nil {
		return id, err
	}
	mac, err := a.keys.MAC(ctx, key, derive.PairwiseInput(p.client, p.device))
	if err != nil {
		return id, fmt.Errorf("pairwise id: %w", err)
	}
	copy(id[:], mac)
	a.pairs.mu.Lock()
	defer a.pairs.mu.Unlock()
	if a.pairs.ids == nil || len(a.pairs.ids) >= recordsKept {
		a.pairs.ids = map[pair]protocol.PairwiseID{}
	}
	a.pairs.ids[p] = id
	return id, nil
}

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
	if keyuse.IssuedAt(cert).Before(device.CreatedAt.Truncate(time.Second)) {
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
	case errors.Is(err, store.ErrNotFound), isForged(err), err == nil && (device.SPIFFEID != spiffeID || device.Status != store.Active):
		return store.Device{}, fmt.Errorf("%s is not an active device: %w", spiffeID, protocol.CodeDevice)
	case err != nil:
		return store.Device{}, fmt.Errorf("device %s: %w", spiffeID, err)
	}
	if !known {
		a.devices.put(device, now)
	}
	return device, nil
}
