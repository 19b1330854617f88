package sqlite

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/fxamacker/cbor/v2"

	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/protocol"
)

const (
	clientColumns = `c.id, c.name, c.signing_key, c.uv_key, c.verifier, c.status, c.roles, c.version, c.cert, c.created_us, c.seal,
		r.highest, r.wrong, r.recent, r.until_us, r.begun, r.windows, r.seal`
	deviceColumns = `d.id, d.name, d.spiffe_id, d.display, d.floor, d.status, d.version, d.created_us, d.seal`

	clientTables = `client c LEFT JOIN restraint r ON r.client = c.ref`
)

// clientRow is a client with what restricts it, as the clientColumns are scanned.
type clientRow struct {
	store.Client
	store.Restraint
	uvKey           []byte
	highest         sql.Null[int64]
	wrong           sql.Null[uint32]
	clientSeal      []byte
	restraintSeal   []byte
	begunB, windows []byte
}

func (r *clientRow) dest() []any {
	return []any{
		fixed(r.ID[:]), &r.Name, fixed(r.SigningKey[:]), &r.uvKey, &r.Verifier, &r.Status,
		roles{&r.Roles},
		&r.Version, &r.Cert,
		stamp{&r.CreatedAt},
		&r.clientSeal,
		&r.highest, &r.wrong,
		times{&r.Guard.Recent},
		stamp{&r.Guard.Until},
		&r.begunB, &r.windows, &r.restraintSeal,
	}
}

// open turns what was scanned into the records, and verifies both.
func (r *clientRow) open(v *vault) error {
	if err := r.read(v); err != nil {
		return err
	}
	if err := v.check(r.Client, r.clientSeal); err != nil {
		return err
	}
	return v.check(r.Restraint, r.restraintSeal)
}

// read turns what was scanned into the records.
func (r *clientRow) read(v *vault) error {
	if r.uvKey != nil {
		if len(r.uvKey) != len(protocol.PublicKey{}) {
			return v.seals.Report(fmt.Sprintf("the uv key of client %s has %d bytes", r.ID, len(r.uvKey)))
		}
		key := protocol.PublicKey(r.uvKey)
		r.UVKey = &key
	}
	r.Restraint.Client, r.Restraint.Highest, r.Guard.Wrong = r.ID, r.highest.V, r.wrong.V
	if !r.highest.Valid || unpack(r.begunB, &r.Begun) != nil || unpack(r.windows, &r.Windows) != nil {
		return v.seals.Report(fmt.Sprintf("what restricts client %s is missing or cannot be read", r.ID))
	}
	r.Client.Highest = r.highest.V
	return nil
}

// pack encodes a list for a column; an empty one is NULL.
func pack[T any](list []T) any {
	if len(list) == 0 {
		return nil
	}
	b, err := cbor.Marshal(list)
	if err != nil {
		panic(err) // a type that cannot be encoded: a defect, not input
	}
	return b
}

func unpack[T any](b []byte, into *[]T) error {
	if len(b) == 0 {
		return nil
	}
	return cbor.Unmarshal(b, into)
}

// openClient reads and verifies a client by a condition on c, which has to find the one
// that is asked for.
func openClient(from source, v *vault, where string, arg any) (ref int64, r clientRow, err error) {
	err = from.row(`SELECT c.ref, `+clientColumns+` FROM `+clientTables+` WHERE `+where, arg).
		Scan(append([]any{&ref}, r.dest()...)...)
	if err == nil {
		err = r.open(v)
	}
	if id, ok := arg.([]byte); err == nil && ok && !bytes.Equal(id, r.ID[:]) {
		err = v.seals.Report(fmt.Sprintf("client %s was found, and another was asked for", r.ID))
	}
	return ref, r, err
}

// client reads and verifies a client within the transaction.
func (t *txn) client(where string, arg any) (ref int64, r clientRow, err error) {
	v, err := t.unsealed()
	if err != nil {
		return 0, r, err
	}
	return openClient(t, v, where, arg)
}

const byClientID = `c.id = ?`

// deviceRow is where the deviceColumns are scanned to.
type deviceRow struct {
	store.Device
	seal []byte
}

func (r *deviceRow) dest() []any {
	return []any{
		fixed(r.ID[:]), &r.Name, &r.SPIFFEID, &r.Display, &r.Floor, &r.Status, &r.Version, stamp{&r.CreatedAt}, &r.seal,
	}
}

func (t *txn) device(where string, arg any) (r deviceRow, err error) {
	err = t.row(`SELECT `+deviceColumns+` FROM device d WHERE `+where, arg).Scan(r.dest()...)
	if err == nil {
		err = t.check(r.Device, r.seal)
	}
	return r, err
}

const byDeviceID = `d.id = ?`

// Client implements [store.Store].
func (s *database) Client(ctx context.Context, id protocol.ClientID) (c store.Client, err error) {
	r, err := s.client(ctx, id)
	return r.Client, readError(ctx, "reading client", err)
}

func (s *database) client(ctx context.Context, id protocol.ClientID) (r clientRow, err error) {
	v, err := s.unsealed()
	if err != nil {
		return r, err
	}
	err = s.r.row(ctx, `SELECT `+clientColumns+` FROM `+clientTables+` WHERE c.id = ?`, id[:]).Scan(r.dest()...)
	if err == nil {
		err = r.open(v)
	}
	if err == nil && r.ID != id {
		err = v.seals.Report(fmt.Sprintf("client %s was found, and another was asked for", r.ID))
	}
	if err != nil {
		return clientRow{}, err // what does not fit is not given to anybody
	}
	return r, nil
}

// ListClients implements [store.Store].
func (s *database) ListClients(ctx context.Context) ([]store.Client, error) {
	v, err := s.unsealed()
	if err != nil {
		return nil, fmt.Errorf("listing clients: %w", err)
	}
	q := query{doing: "listing clients", sql: `SELECT ` + clientColumns + ` FROM ` + clientTables + ` ORDER BY c.name`}
	return list(ctx, s.r, q, func(row scanner) (store.Client, error) {
		var r clientRow
		err := row.Scan(r.dest()...)
		if err == nil {
			err = r.open(v)
		}
		if errors.Is(err, store.ErrForged) {
			return store.Client{ID: r.ID, Name: r.Name}, nil
		}
		return r.Client, err
	})
}

// Device implements [store.Store].
func (s *database) Device(ctx context.Context, id protocol.DeviceID) (store.Device, error) {
	v, err := s.unsealed()
	var r deviceRow
	if err == nil {
		err = s.r.row(ctx, `SELECT `+deviceColumns+` FROM device d WHERE d.id = ?`, id[:]).Scan(r.dest()...)
	}
	if err == nil {
		err = v.check(r.Device, r.seal)
	}
	if err == nil && r.ID != id {
		err = v.seals.Report(fmt.Sprintf("device %s was found, and another was asked for", r.ID))
	}
	if err != nil {
		return store.Device{}, readError(ctx, "reading device", err)
	}
	return r.Device, nil
}

// ListDevices implements [store.Store].
func (s *database) ListDevices(ctx context.Context) ([]store.Device, error) {
	v, err := s.unsealed()
	if err != nil {
		return nil, fmt.Errorf("listing devices: %w", err)
	}
	q := query{doing: "listing devices", sql: `SELECT ` + deviceColumns + ` FROM device d ORDER BY d.name`}
	return list(ctx, s.r, q, func(row scanner) (store.Device, error) {
		var r deviceRow
		err := row.Scan(r.dest()...)
		if err == nil {
			err = v.check(r.Device, r.seal)
		}
		if errors.Is(err, store.ErrForged) {
			return store.Device{ID: r.ID, Name: r.Name}, nil
		}
		return r.Device, err
	})
}

func uvKey(c store.Client) any {
	if c.UVKey == nil {
		return nil
	}
	return c.UVKey[:]
}

// insertClient stores a new client with what restricts it.
func (t *txn) insertClient(c store.Client) error {
	r, err := rolesText(c.Roles)
	if err != nil {
		return err
	}
	c.CreatedAt = store.Stamp(c.CreatedAt)
	seal, err := t.seal(c)
	if err != nil {
		return err
	}
	ref, err := t.insert(`INSERT INTO client (id, name, signing_key, uv_key, verifier, status, roles, version, cert, created_us, seal)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		c.ID[:], c.Name, c.SigningKey[:], uvKey(c), blob(c.Verifier), int64(c.Status), r,
		int64(c.Version), blob(c.Cert), usec(c.CreatedAt), seal)
	if err != nil {
		return err
	}
	restraint := store.Restraint{Client: c.ID, Highest: c.Highest}
	if seal, err = t.seal(restraint); err != nil {
		return err
	}
	_, err = t.exec(`INSERT INTO restraint (client, highest, wrong, recent, seal) VALUES (?, ?, 0, '[]', ?)`, ref, c.Highest, seal)
	return err
}

// updateRestraint writes what restricts a client. The table's triggers hold once more
// that counters only rise.
func (t *txn) updateRestraint(client int64, r store.Restraint) error {
	recent, err := timesText(r.Guard.Recent)
	if err != nil {
		return err
	}
	seal, err := t.seal(r)
	if err != nil {
		return err
	}
	n, err := t.exec(`UPDATE restraint SET highest = ?, wrong = ?, recent = ?, until_us = ?, begun = ?, windows = ?, seal = ? WHERE client = ?`,
		r.Highest, int64(r.Guard.Wrong), recent, usec(r.Guard.Until), pack(r.Begun), pack(r.Windows), seal, client)
	if err == nil && n != 1 {
		err = fmt.Errorf("nothing restricts client %s", r.Client)
	}
	return err
}

func (t *txn) insertDevice(d store.Device) error {
	seal, err := t.seal(d)
	if err != nil {
		return err
	}
	_, err = t.exec(`INSERT INTO device (id, name, spiffe_id, display, floor, status, version, created_us, seal)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		d.ID[:], d.Name, d.SPIFFEID, d.Display, int64(d.Floor), int64(d.Status), int64(d.Version), usec(d.CreatedAt), seal)
	return err
}

// UpdateClient implements [store.Store].
func (s *database) UpdateClient(ctx context.Context, c store.Client, rec audit.Record) error {
	return s.write(ctx, "updating client", func(t *txn) error {
		ref, old, err := t.client(byClientID, c.ID[:])
		if err != nil {
			return err
		}
		if old.Version != c.Version-1 {
			return store.ErrConflict
		}
		c.CreatedAt = old.CreatedAt
		if err := t.putClient(ref, c); err != nil {
			return err
		}
		return t.append(rec)
	})
}

func (t *txn) putClient(ref int64, c store.Client) error {
	r, err := rolesText(c.Roles)
	if err != nil {
		return err
	}
	seal, err := t.seal(c)
	if err != nil {
		return err
	}
	_, err = t.exec(`UPDATE client SET name = ?, signing_key = ?, uv_key = ?, verifier = ?, status = ?,
		roles = ?, version = ?, cert = ?, seal = ? WHERE ref = ?`,
		c.Name, c.SigningKey[:], uvKey(c), blob(c.Verifier), int64(c.Status), r, int64(c.Version), blob(c.Cert), seal, ref)
	return err
}

// UpdateDevice implements [store.Store].
func (s *database) UpdateDevice(ctx context.Context, d store.Device, rec audit.Record) error {
	return s.write(ctx, "updating device", func(t *txn) error {
		old, err := t.device(byDeviceID, d.ID[:])
		if err != nil {
			return err
		}
		if old.Version != d.Version-1 {
			return store.ErrConflict
		}
		d.CreatedAt = old.CreatedAt
		if err := t.putDevice(d); err != nil {
			return err
		}
		return t.append(rec)
	})
}

func (t *txn) putDevice(d store.Device) error {
	seal, err := t.seal(d)
	if err != nil {
		return err
	}
	_, err = t.exec(`UPDATE device SET name = ?, spiffe_id = ?, display = ?, floor = ?, status = ?, version = ?, created_us = ?, seal = ?
		WHERE id = ?`,
		d.Name, d.SPIFFEID, d.Display, int64(d.Floor), int64(d.Status), int64(d.Version), usec(d.CreatedAt), seal, d.ID[:])
	return err
}
