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

// recordCache remembers which row versions have a good MAC, so that the token is
// asked once per version and not once per request. A row that was changed behind
// the appliance's back has another digest and is checked anew.
type recordCache struct {
	mu   sync.Mutex
	good map[protocol.ClientID]string // guarded by mu; MAC input and MAC of the row
}

// recordsKept bounds each cache here; beyond it everything is checked anew.
const recordsKept = 50_000

func (r *recordCache) has(id protocol.ClientID, row string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.good[id] == row
}

func (r *recordCache) add(id protocol.ClientID, row string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.good == nil || len(r.good) >= recordsKept {
		r.good = map[protocol.ClientID]string{}
	}
	r.good[id] = row
}

// client reads a client's row and checks its record MAC. A row whose MAC does not
// fit was not written by an appliance: it is reported and treated as unknown.
func (a *Appliance) client(ctx context.Context, id protocol.ClientID) (store.Client, error) {
	c, err := a.store.Client(ctx, id)
	if err != nil {
		return store.Client{}, fmt.Errorf("client %s: %w", id, err)
	}
	input := recordInput(c)
	row := string(input) + string(c.MAC)
	if a.records.has(id, row) {
		return c, nil
	}
	_, err = a.macOf(ctx, c)
	if errors.Is(err, store.ErrNotFound) {
		a.metrics.forged.Inc()
		a.log.Error("client record was changed outside of the appliance", "client", id.String(), "version", c.Version)
	}
	if err != nil {
		return store.Client{}, fmt.Errorf("record MAC of client %s: %w", id, err)
	}
	a.records.add(id, row)
	return c, nil
}

// macOf is the version of mac that a client's row was MACed with: the one in use, or
// an earlier one that is not retired while records are made anew. A MAC that fits none
// is [store.ErrNotFound].
func (a *Appliance) macOf(ctx context.Context, c store.Client) (keyring.Key, error) {
	return a.macFor(ctx, recordInput(c), c.MAC)
}

// recordInput is what the record MAC of a client covers, PROTOCOL.md §2.1.
func recordInput(c store.Client) []byte {
	r := protocol.Record{
		Kind: string(store.KindClient), Client: c.ID, SigningKey: c.SigningKey, UVKey: c.UVKey,
		Verifier: c.Verifier, Status: uint64(c.Status), Roles: c.Roles, Version: c.Version,
	}
	return protocol.RecordInput(r)
}

// authenticate gives a client row its MAC.
func (a *Appliance) authenticate(ctx context.Context, c store.Client) (store.Client, error) {
	key, err := a.keys.Current(keyring.MAC, a.now())
	if err != nil {
		return c, err
	}
	mac, err := a.keys.MAC(ctx, key, recordInput(c))
	if err != nil {
		return c, fmt.Errorf("record MAC of client %s: %w", c.ID, err)
	}
	c.MAC = mac
	return c, nil
}

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
	mac, err := a.keys.MAC(ctx, key, protocol.PairwiseInput(p.client, p.device))
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
