package sqlite

import (
	"bytes"
	"context"
	"database/sql"
	"database/sql/driver"
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"github.com/fxamacker/cbor/v2"

	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/protocol"
)

const (
	clientFields    = `id, name, signing_key, uv_key, verifier, status, roles, version, cert, created_us, seal`
	restraintFields = `highest, wrong, recent, until_us, begun, windows, seal`

	// clientColumns are both, of clientTables.
	clientColumns = `c.id, c.name, c.signing_key, c.uv_key, c.verifier, c.status, c.roles, c.version, c.cert, c.created_us, c.seal,
		r.highest, r.wrong, r.recent, r.until_us, r.begun, r.windows, r.seal, c.ref`
	clientTables = `client c LEFT JOIN restraint r ON r.client = c.ref`
)

// clientRow is a client with its restraint, as the clientColumns are scanned.
type clientRow struct {
	store.Client
	store.Restraint
	ref           int64
	uvKey         []byte
	highest       sql.Null[int64]
	wrong         sql.Null[uint32]
	clientSeal    []byte
	restraintSeal []byte
	unpacked      error // of begun and windows
}

// clientValues lists the clientFields, to be scanned or bound.
func (r *clientRow) clientValues() []any {
	return []any{
		fixed(r.ID[:]), &r.Name, fixed(r.SigningKey[:]),
		optional{&r.uvKey},
		optional{&r.Verifier},
		&r.Status,
		texts{&r.Roles},
		&r.Version,
		optional{&r.Cert},
		stamp{&r.CreatedAt},
		&r.clientSeal,
	}
}

func (r *clientRow) values() []any {
	return append(r.clientValues(), &r.highest, &r.wrong, times{&r.Guard.Recent}, stamp{&r.Guard.Until},
		lenient{packed[store.Challenge]{&r.Begun}, &r.unpacked}, lenient{charged{&r.Restraint}, &r.unpacked},
		&r.restraintSeal, &r.ref)
}

// lenient notes an error instead of failing the row, whose client has a name to be listed by.
type lenient struct {
	sql.Scanner
	err *error
}

// Scan implements [sql.Scanner].
func (l lenient) Scan(src any) error {
	*l.err = errors.Join(*l.err, l.Scanner.Scan(src))
	return nil
}

// charged is the column windows: the windows and sums of a restraint, see migrations/00009_sums.sql.
type charged struct{ *store.Restraint }

// Scan implements [sql.Scanner].
func (c charged) Scan(src any) error {
	c.Windows, c.Sums = nil, nil
	var items []cbor.RawMessage
	if err := (packed[cbor.RawMessage]{&items}).Scan(src); err != nil {
		return err
	}
	for _, item := range items {
		var err error
		if item[0] == arrayOfSix {
			c.Windows, err = unpacked(c.Windows, item)
		} else {
			c.Sums, err = unpacked(c.Sums, item)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// arrayOfSix begins a [store.Window] in CBOR; a [store.Sum] has four elements.
const arrayOfSix = 0x86

func unpacked[T any](all []T, item []byte) ([]T, error) {
	var one T
	err := cbor.Unmarshal(item, &one)
	return append(all, one), err
}

// Value implements [driver.Valuer].
func (c charged) Value() (driver.Value, error) {
	items := make([]any, 0, len(c.Windows)+len(c.Sums))
	for _, w := range c.Windows {
		items = append(items, w)
	}
	for _, s := range c.Sums {
		items = append(items, s)
	}
	return packed[any]{&items}.Value()
}

// open completes the records that were scanned, and verifies both.
func (r *clientRow) open(v *vault) error {
	if err := r.read(v); err != nil {
		return err
	}
	if err := v.check(r.Client, r.clientSeal); err != nil {
		return err
	}
	return v.check(r.Restraint, r.restraintSeal)
}

// read completes the records that were scanned.
func (r *clientRow) read(v *vault) error {
	if r.uvKey != nil {
		if len(r.uvKey) != len(protocol.PublicKey{}) {
			return v.seals.Report(fmt.Sprintf("the uv key of client %s has %d bytes", r.ID, len(r.uvKey)))
		}
		key := protocol.PublicKey(r.uvKey)
		r.UVKey = &key
	}
	r.Restraint.Client, r.Restraint.Highest, r.Guard.Wrong = r.ID, r.highest.V, r.wrong.V
	if !r.highest.Valid || r.unpacked != nil {
		return v.seals.Report(fmt.Sprintf("the restraint of client %s is missing or cannot be read", r.ID))
	}
	r.Client.Highest = r.highest.V
	return nil
}

// openClient scans and verifies a client. One whose id is not the one that was asked for is forged:
// an index may lead to another row.
func openClient(row scanner, v *vault, id []byte) (r clientRow, err error) {
	if err = row.Scan(r.values()...); err == nil {
		err = r.open(v)
	}
	if err == nil && id != nil && !bytes.Equal(id, r.ID[:]) {
		err = v.seals.Report(fmt.Sprintf("client %s was found, and another was asked for", r.ID))
	}
	if err != nil {
		return clientRow{Client: store.Client{ID: r.ID, Name: r.Name}}, err
	}
	return r, nil
}

const clientByID = `SELECT ` + clientColumns + ` FROM ` + clientTables + ` WHERE c.id = ?`

// client reads and verifies a client within the transaction.
func (t *txn) client(id protocol.ClientID) (clientRow, error) {
	return openClient(t.row(clientByID, id[:]), t.verifier(), id[:])
}

// client reads and verifies a client; with an error it is empty.
func (s *database) client(ctx context.Context, id protocol.ClientID) (clientRow, error) {
	v, err := s.unsealed()
	if err != nil {
		return clientRow{}, err
	}
	r, err := openClient(s.r.row(ctx, clientByID, id[:]), v, id[:])
	if err != nil {
		return clientRow{}, err
	}
	return r, nil
}

// deviceRow is a device with the seal of its row.
type deviceRow struct {
	store.Device
	seal []byte
}

const deviceColumns = `id, name, spiffe_id, display, floor, status, version, created_us, seal`

// values lists the deviceColumns, to be scanned or bound.
func (r *deviceRow) values() []any {
	return []any{
		fixed(r.ID[:]), &r.Name, &r.SPIFFEID, &r.Display, &r.Floor, &r.Status, &r.Version, stamp{&r.CreatedAt}, &r.seal,
	}
}

// openDevice works as openClient.
func openDevice(row scanner, v *vault, id []byte) (store.Device, error) {
	var r deviceRow
	err := row.Scan(r.values()...)
	if err == nil {
		err = v.check(r.Device, r.seal)
	}
	if err == nil && id != nil && !bytes.Equal(id, r.ID[:]) {
		err = v.seals.Report(fmt.Sprintf("device %s was found, and another was asked for", r.ID))
	}
	if err != nil {
		return store.Device{ID: r.ID, Name: r.Name}, err
	}
	return r.Device, nil
}

const deviceByID = `SELECT ` + deviceColumns + ` FROM device WHERE id = ?`

// device reads and verifies a device within the transaction.
func (t *txn) device(id protocol.DeviceID) (store.Device, error) {
	return openDevice(t.row(deviceByID, id[:]), t.verifier(), id[:])
}

// Client implements [store.Store].
func (s *database) Client(ctx context.Context, id protocol.ClientID) (store.Client, error) {
	r, err := s.client(ctx, id)
	return r.Client, readError(ctx, "reading client", err)
}

// ListClients implements [store.Store].
func (s *database) ListClients(ctx context.Context) ([]store.Client, error) {
	q := query{doing: "listing clients", sql: `SELECT ` + clientColumns + ` FROM ` + clientTables + ` ORDER BY c.name`}
	return listParties(ctx, s, q, func(row scanner, v *vault) (store.Client, error) {
		r, err := openClient(row, v, nil)
		return r.Client, err
	})
}

// Device implements [store.Store].
func (s *database) Device(ctx context.Context, id protocol.DeviceID) (d store.Device, err error) {
	v, err := s.unsealed()
	if err == nil {
		d, err = openDevice(s.r.row(ctx, deviceByID, id[:]), v, id[:])
	}
	if err != nil {
		return store.Device{}, readError(ctx, "reading device", err)
	}
	return d, nil
}

// ListDevices implements [store.Store].
func (s *database) ListDevices(ctx context.Context) ([]store.Device, error) {
	q := query{doing: "listing devices", sql: `SELECT ` + deviceColumns + ` FROM device ORDER BY name`}
	return listParties(ctx, s, q, func(row scanner, v *vault) (store.Device, error) { return openDevice(row, v, nil) })
}

// listParties lists what open returns, with forged ones by id and name.
func listParties[T any](ctx context.Context, s *database, q query, open func(scanner, *vault) (T, error)) ([]T, error) {
	v, err := s.unsealed()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", q.doing, err)
	}
	return list(ctx, s.r, q, func(row scanner) (T, error) {
		one, err := open(row, v)
		if errors.Is(err, store.ErrForged) {
			err = nil
		}
		return one, err
	})
}

func uvKey(c store.Client) (key []byte) {
	if c.UVKey != nil {
		key = c.UVKey[:]
	}
	return key
}

var insertClient = insertInto("client", clientFields)

// insertClient stores a new client with its restraint.
func (t *txn) insertClient(c store.Client) (err error) {
	c.CreatedAt = store.Stamp(c.CreatedAt)
	row := clientRow{Client: c, uvKey: uvKey(c)}
	if row.clientSeal, err = t.seal(c); err != nil {
		return err
	}
	ref, err := t.insert(insertClient, row.clientValues()...)
	if err != nil {
		return err
	}
	_, err = t.put(store.Restraint{Client: c.ID, Highest: c.Highest},
		`INSERT INTO restraint (seal, client, highest, wrong, recent) VALUES (?, ?, ?, 0, '[]')`, ref, c.Highest)
	return err
}

// updateRestraint writes the restraint of a client. The table's triggers make sure once more that
// counters only rise.
func (t *txn) updateRestraint(client int64, r store.Restraint) error {
	if err := t.upgradedFor(r); err != nil {
		return err
	}
	n, err := t.put(r, `UPDATE restraint SET seal = ?, highest = ?, wrong = ?, recent = ?, until_us = ?, begun = ?, windows = ?
		WHERE client = ?`,
		r.Highest, int64(r.Guard.Wrong), times{&r.Guard.Recent}, stamp{&r.Guard.Until},
		packed[store.Challenge]{&r.Begun}, charged{&r}, client)
	if err == nil && n != 1 {
		err = fmt.Errorf("client %s has no restraint", r.Client)
	}
	return err
}

var insertDevice = insertInto("device", deviceColumns)

func (t *txn) insertDevice(d store.Device) (err error) {
	row := deviceRow{Device: d}
	if row.seal, err = t.seal(d); err != nil {
		return err
	}
	_, err = t.exec(insertDevice, row.values()...)
	return err
}

// UpdateClient implements [store.Store].
func (s *database) UpdateClient(ctx context.Context, c store.Client, rec audit.Record) error {
	return s.change(ctx, "updating client", rec, func(t *txn) error {
		old, err := t.client(c.ID)
		switch {
		case err != nil:
			return err
		case old.Version != c.Version-1:
			return store.ErrConflict
		}
		c.CreatedAt = old.CreatedAt
		return t.putClient(old.ref, c)
	})
}

func (t *txn) putClient(ref int64, c store.Client) error {
	uv := uvKey(c)
	_, err := t.put(c, `UPDATE client SET seal = ?, name = ?, signing_key = ?, uv_key = ?, verifier = ?, status = ?,
		roles = ?, version = ?, cert = ? WHERE ref = ?`,
		c.Name, c.SigningKey[:], optional{&uv}, optional{&c.Verifier}, c.Status, texts{&c.Roles}, c.Version, optional{&c.Cert}, ref)
	return err
}

// UpdateDevice implements [store.Store].
func (s *database) UpdateDevice(ctx context.Context, d store.Device, rec audit.Record) error {
	return s.change(ctx, "updating device", rec, func(t *txn) error {
		old, err := t.device(d.ID)
		switch {
		case err != nil:
			return err
		case old.Version != d.Version-1:
			return store.ErrConflict
		}
		d.CreatedAt = old.CreatedAt
		return t.putDevice(d)
	})
}

func (t *txn) putDevice(d store.Device) error {
	_, err := t.put(d, `UPDATE device SET seal = ?, name = ?, spiffe_id = ?, display = ?, floor = ?, status = ?, version = ?,
		created_us = ? WHERE id = ?`,
		d.Name, d.SPIFFEID, d.Display, int64(d.Floor), d.Status, d.Version, stamp{&d.CreatedAt}, d.ID[:])
	return err
}

const attemptColumns = `random, m3, answered, tries_left, begun_us, seal`

// openAttempt reads and verifies an attempt, or returns [sql.ErrNoRows].
func openAttempt(row scanner, v *vault, k store.AnswerKey) (b store.Begun, err error) {
	b.AnswerKey = store.AnswerKey{Client: k.Client, Attempt: k.Attempt}
	binary.BigEndian.PutUint32(b.Serial[:4], k.Serial.Counter())
	var seal []byte
	err = row.Scan(fixed(b.Serial[4:]), fixed(b.M3[:]), &b.Answered, &b.TriesLeft, stamp{&b.At}, &seal)
	if err == nil {
		err = v.check(b, seal)
	}
	return b, err
}

func (t *txn) attempt(client int64, k store.AnswerKey) (b store.Begun, err error) {
	return openAttempt(t.row(`SELECT `+attemptColumns+` FROM attempt WHERE client = ? AND counter = ? AND attempt = ?`,
		client, int64(k.Serial.Counter()), int64(k.Attempt)), t.verifier(), k)
}

// begun reads the attempts under a counter, which are numbered from 0. The restraint of the client
// has their number: a missing one is forged.
func (t *txn) begun(client int64, k store.AnswerKey, n int) ([]store.Begun, error) {
	var all []store.Begun
	for i := range n {
		k.Attempt = uint8(i)
		b, err := t.attempt(client, k)
		if errors.Is(err, sql.ErrNoRows) {
			err = t.verifier().seals.Report(fmt.Sprintf("attempt %d under counter %d of client %s is missing", i, k.Serial.Counter(), k.Client))
		}
		if err != nil {
			return nil, err
		}
		all = append(all, b)
	}
	return all, nil
}

// answeredAttempt returns the attempt with exactly these bytes, nil if there is none.
func (t *txn) answeredAttempt(client int64, k store.AnswerKey) (*store.Begun, error) {
	b, err := t.attempt(client, k)
	if err != nil || b.AnswerKey != k {
		return nil, unlessNoRow(err)
	}
	return &b, nil
}

// Try implements [store.Store].
func (s *database) Try(ctx context.Context, a store.Attempt) (store.Tried, error) {
	var tried store.Tried
	err := s.write(ctx, "counting password attempt", func(t *txn) error {
		client, err := t.client(a.Client)
		if err != nil {
			return err
		}
		v := store.AttemptView{Client: client.Client, Guard: client.Guard}
		if v.Begun, err = t.attempts(client.ref, a.AnswerKey, client.Restraint); err != nil {
			return err
		}
		if v.Spent, err = t.spent(client.ref, a.Client, a.Serial); err != nil {
			return err
		}
		if tried = a.Conclude(v); tried.Begun == nil {
			return nil
		}
		if err := t.addAttempt(client.ref, *tried.Begun); err != nil {
			return err
		}
		client.Guard = *tried.Guard
		client.Begin(a.Serial.Counter())
		return t.updateRestraint(client.ref, client.Restraint)
	})
	if err != nil {
		return store.Tried{}, err // the writer may still set tried
	}
	return tried, nil
}

// attempts returns the attempts under the counter of a serial: all of them while the counter can be
// spent, and later the one with these bytes.
func (t *txn) attempts(client int64, k store.AnswerKey, r store.Restraint) ([]store.Begun, error) {
	if int64(k.Serial.Counter()) > r.Highest {
		return t.begun(client, k, r.Attempts(k.Serial.Counter()))
	}
	b, err := t.answeredAttempt(client, k)
	if b == nil {
		return nil, err
	}
	return []store.Begun{*b}, nil
}

func (t *txn) addAttempt(client int64, b store.Begun) error {
	_, err := t.put(b, `INSERT INTO attempt (seal, client, counter, attempt, random, m3, tries_left, begun_us) VALUES (?, ?, ?, ?, ?, ?, ?, ?)`,
		client, int64(b.Serial.Counter()), int64(b.Attempt), b.Serial[4:], b.M3[:], b.TriesLeft, b.At.UnixMicro())
	return err
}

// dropAttempts deletes the attempts that no request needs once the serial is spent: the decision
// answers the attempt that was not answered "retry".
func (t *txn) dropAttempts(s spending) error {
	if s.begun == 0 {
		return nil
	}
	_, err := t.exec(`DELETE FROM attempt WHERE client = ?1 AND (counter = ?2 AND answered = 0 OR counter <= ?2 AND begun_us < ?3)`,
		s.client, int64(s.Serial.Counter()), s.Now.Add(-store.AnswersKept).UnixMicro())
	return err
}

// Wrong implements [store.Store].
func (s *database) Wrong(ctx context.Context, key store.AnswerKey, triesLeft uint64, rec audit.Record) error {
	return s.change(ctx, "storing wrong password", rec, func(t *txn) error {
		client, err := t.client(key.Client)
		if err != nil {
			return err
		}
		b, err := t.answeredAttempt(client.ref, key)
		switch {
		case err != nil:
			return err
		case b == nil:
			return store.ErrNotFound
		case b.Answered:
			return errUnchanged
		}
		b.Answered, b.TriesLeft = true, min(triesLeft, math.MaxInt64)
		_, err = t.put(*b, `UPDATE attempt SET seal = ?, answered = 1, tries_left = ? WHERE client = ? AND counter = ? AND attempt = ?`,
			b.TriesLeft, client.ref, int64(key.Serial.Counter()), int64(key.Attempt))
		return err
	})
}

// TakeBack implements [store.Store].
func (s *database) TakeBack(ctx context.Context, key store.AnswerKey, tried store.Tried) error {
	return s.write(ctx, "taking back a password attempt", func(t *txn) error {
		client, err := t.client(key.Client)
		if err != nil {
			return err
		}
		b, err := t.answeredAttempt(client.ref, key)
		switch {
		case err != nil:
			return err
		case b == nil, b.Answered, !client.TakeBack(key, tried):
			return store.ErrNotFound
		}
		_, err = t.exec(`DELETE FROM attempt WHERE client = ? AND counter = ? AND attempt = ?`,
			client.ref, int64(key.Serial.Counter()), int64(key.Attempt))
		if err != nil {
			return err
		}
		if err := t.recount(client.ref, client.Guard.Wrong); err != nil {
			return err
		}
		return t.updateRestraint(client.ref, client.Restraint)
	})
}

// recount makes room for a count of wrong tries that is not above the stored one: it counts anew from zero, because a
// trigger refuses every other statement that lowers the count.
func (t *txn) recount(client int64, count uint32) error {
	_, err := t.exec(`UPDATE restraint SET wrong = 0 WHERE client = ?`, client)
	for n := uint32(1); n < count && err == nil; n++ {
		_, err = t.exec(`UPDATE restraint SET wrong = wrong + 1 WHERE client = ?`, client)
	}
	return err
}

// Guard implements [store.Store].
func (s *database) Guard(ctx context.Context, id protocol.ClientID) (store.Guard, error) {
	r, err := s.client(ctx, id)
	return r.Guard, readError(ctx, "reading password guard", err)
}

// Unlock implements [store.Store].
func (s *database) Unlock(ctx context.Context, id protocol.ClientID, rec audit.Record) error {
	return s.change(ctx, "unlocking password", rec, func(t *txn) error {
		client, err := t.client(id)
		if err != nil {
			return err
		}
		client.Guard = store.Guard{}
		return t.updateRestraint(client.ref, client.Restraint)
	})
}
