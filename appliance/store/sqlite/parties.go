package sqlite

import (
	"context"

	"countersign/appliance/store"
	"countersign/protocol"
)

const (
	clientColumns = `c.id, c.name, c.signing_key, c.uv_key, c.verifier, c.status, c.roles, c.version, c.cert, c.mac, c.highest, c.created_us`
	deviceColumns = `d.id, d.name, d.spiffe_id, d.display, d.floor, d.status, d.version, d.created_us`
)

// clientRow is where the clientColumns are scanned to.
type clientRow struct {
	store.Client
	uvKey []byte
}

func (r *clientRow) dest() []any {
	return []any{
		fixed(r.ID[:]), &r.Name, fixed(r.SigningKey[:]), &r.uvKey, &r.Verifier, &r.Status,
		roles{&r.Roles},
		&r.Version, &r.Cert, &r.MAC, &r.Highest,
		stamp{&r.CreatedAt},
	}
}

func (r *clientRow) client() store.Client {
	if r.uvKey != nil {
		key := protocol.PublicKey(r.uvKey) // the table checks its length
		r.UVKey = &key
	}
	return r.Client
}

func scanClient(s scanner) (store.Client, error) {
	var r clientRow
	if err := s.Scan(r.dest()...); err != nil {
		return store.Client{}, err
	}
	return r.client(), nil
}

func deviceDest(d *store.Device) []any {
	return []any{
		fixed(d.ID[:]), &d.Name, &d.SPIFFEID, &d.Display, &d.Floor, &d.Status, &d.Version, stamp{&d.CreatedAt},
	}
}

func scanDevice(s scanner) (d store.Device, err error) {
	err = s.Scan(deviceDest(&d)...)
	return d, err
}

// Client implements [store.Clients].
func (s *Store) Client(ctx context.Context, id protocol.ClientID) (store.Client, error) {
	c, err := scanClient(s.r.row(ctx, `SELECT `+clientColumns+` FROM client c WHERE c.id = ?`, id[:]))
	return c, readError(ctx, "reading client", err)
}

// ListClients implements [store.Clients].
func (s *Store) ListClients(ctx context.Context) ([]store.Client, error) {
	q := query{doing: "listing clients", sql: `SELECT ` + clientColumns + ` FROM client c ORDER BY c.name`}
	return list(ctx, s.r, q, scanClient)
}

// Device implements [store.Devices].
func (s *Store) Device(ctx context.Context, id protocol.DeviceID) (store.Device, error) {
	d, err := scanDevice(s.r.row(ctx, `SELECT `+deviceColumns+` FROM device d WHERE d.id = ?`, id[:]))
	return d, readError(ctx, "reading device", err)
}

// ListDevices implements [store.Devices].
func (s *Store) ListDevices(ctx context.Context) ([]store.Device, error) {
	q := query{doing: "listing devices", sql: `SELECT ` + deviceColumns + ` FROM device d ORDER BY d.name`}
	return list(ctx, s.r, q, scanDevice)
}

func uvKey(c store.Client) any {
	if c.UVKey == nil {
		return nil
	}
	return c.UVKey[:]
}

func (t *txn) insertClient(c store.Client) error {
	r, err := rolesText(c.Roles)
	if err != nil {
		return err
	}
	_, err = t.exec(`INSERT INTO client (id, name, signing_key, uv_key, verifier, status, roles, version, cert, mac, highest, created_us)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		c.ID[:], c.Name, c.SigningKey[:], uvKey(c), blob(c.Verifier), int64(c.Status), r,
		int64(c.Version), blob(c.Cert), blob(c.MAC), c.Highest, usec(c.CreatedAt))
	return err
}

func (t *txn) insertDevice(d store.Device) error {
	_, err := t.exec(`INSERT INTO device (id, name, spiffe_id, display, floor, status, version, created_us)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?)`,
		d.ID[:], d.Name, d.SPIFFEID, d.Display, int64(d.Floor), int64(d.Status), int64(d.Version), usec(d.CreatedAt))
	return err
}

// UpdateClient implements [store.Clients].
func (s *Store) UpdateClient(ctx context.Context, c store.Client, rec store.Record) error {
	return s.write(ctx, "updating client", func(t *txn) error {
		r, err := rolesText(c.Roles)
		if err != nil {
			return err
		}
		n, err := t.exec(`UPDATE client SET name = ?, signing_key = ?, uv_key = ?, verifier = ?, status = ?,
			roles = ?, version = ?, cert = ?, mac = ? WHERE id = ? AND version = ?`,
			c.Name, c.SigningKey[:], uvKey(c), blob(c.Verifier), int64(c.Status),
			r, int64(c.Version), blob(c.Cert), blob(c.MAC), c.ID[:], int64(c.Version-1))
		return t.updated(change{n, err, `SELECT 1 FROM client WHERE id = ?`, c.ID[:]}, rec)
	})
}

// UpdateDevice implements [store.Devices].
func (s *Store) UpdateDevice(ctx context.Context, d store.Device, rec store.Record) error {
	return s.write(ctx, "updating device", func(t *txn) error {
		n, err := t.exec(`UPDATE device SET name = ?, spiffe_id = ?, display = ?, floor = ?, status = ?, version = ?
			WHERE id = ? AND version = ?`,
			d.Name, d.SPIFFEID, d.Display, int64(d.Floor), int64(d.Status), int64(d.Version), d.ID[:], int64(d.Version-1))
		return t.updated(change{n, err, `SELECT 1 FROM device WHERE id = ?`, d.ID[:]}, rec)
	})
}

// change is what an update of one row at a known version came to, and the query
// that finds the row at any version.
type change struct {
	rows int64
	err  error
	find string
	id   []byte
}

func (t *txn) updated(c change, rec store.Record) error {
	if c.err != nil {
		return c.err
	}
	if c.rows == 1 {
		return t.append(rec)
	}
	var there int
	if err := t.row(c.find, c.id).Scan(&there); err != nil {
		return err
	}
	return store.ErrConflict
}
