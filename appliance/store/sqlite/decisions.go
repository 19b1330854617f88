package sqlite

import (
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/protocol"
	"countersign/protocol/message"
	"countersign/protocol/receipt"
)

const decisionColumns = `s.counter, s.random, s.attempt, s.m3, s.result, s.reason, s.payload, s.decided_us,
	s.dry, s.first_client, s.first_serial, s.asked_result, s.asked_reason, s.role, s.expires_us,
	s.final_result, s.final_reason, s.final_us, s.charges, coalesce(s.performed, 0), s.reported_us, s.seal`

// keptRow is a decision as the decisionColumns are scanned.
type keptRow struct {
	store.Kept
	counter                  uint32
	payload, charges, seal   []byte
	firstClient, firstSerial []byte
	role                     sql.NullString
	asked, askedReason       sql.Null[uint8]
	finalResult, finalReason sql.Null[uint8]
	expires, finalAt         time.Time
}

func (r *keptRow) dest() []any {
	out := &r.Outcome
	return []any{
		&r.counter, fixed(r.Serial[4:]), &r.Attempt, fixed(r.M3[:]), &out.Result, &out.Reason, &r.payload,
		stamp{&out.At},
		&r.Dry, &r.firstClient, &r.firstSerial, &r.asked, &r.askedReason, &r.role,
		stamp{&r.expires},
		&r.finalResult, &r.finalReason,
		stamp{&r.finalAt},
		&r.charges, &r.Performed,
		stamp{&r.ReportedAt},
		&r.seal,
	}
}

// open completes the decision of a client and verifies it. A forgotten decision is [sql.ErrNoRows].
func (r *keptRow) open(v *vault, client protocol.ClientID) error {
	if err := r.read(v, client); err != nil {
		return err
	}
	if v.seals.Forgotten(r.Kept, store.ParseSeal(r.seal)) {
		return sql.ErrNoRows
	}
	return v.check(r.Kept, r.seal)
}

// read completes the decision of a client.
func (r *keptRow) read(v *vault, client protocol.ClientID) error {
	r.Client = client
	binary.BigEndian.PutUint32(r.Serial[:4], r.counter)
	if r.finalResult.Valid != r.finalReason.Valid || r.asked.Valid != r.askedReason.Valid ||
		r.role.Valid == r.expires.IsZero() || r.finalResult.Valid == r.finalAt.IsZero() {
		return v.seals.Report(fmt.Sprintf("the decision of serial %v has half a result", r.Serial))
	}
	if r.role.Valid {
		r.Pending = &store.Pending{Role: r.role.String, Expires: r.expires}
	}
	if r.finalResult.Valid {
		r.Final = &store.Final{Result: protocol.Result(r.finalResult.V), Reason: protocol.Code(r.finalReason.V), At: r.finalAt}
	}
	if r.asked.Valid {
		r.Outcome.Asked = &message.AskedResult{Result: protocol.Result(r.asked.V), Reason: protocol.Code(r.askedReason.V)}
	}
	if r.firstClient != nil || r.firstSerial != nil {
		r.First = &store.Approves{}
		if copy(r.First.Client[:], r.firstClient) != len(r.firstClient) || copy(r.First.Serial[:], r.firstSerial) != len(r.firstSerial) {
			return v.seals.Report(fmt.Sprintf("the first approval of serial %v cannot be read", r.Serial))
		}
	}
	var err error
	if r.Outcome.Decision, err = receipt.Parse(r.payload); err != nil || r.unpackCharges() != nil {
		return v.seals.Report(fmt.Sprintf("the decision of serial %v cannot be read", r.Serial))
	}
	return nil
}

// chargeRow is a charge in the column charges.
type chargeRow struct {
	_        struct{} `cbor:",toarray"`
	Service  protocol.Service
	Period   int64 // seconds
	Start    int64 // Unix seconds, of the bucket; in releases without sums, of the window
	Currency string
	Amount   uint64
}

func packCharges(all []store.Charge) packed[chargeRow] {
	rows := make([]chargeRow, len(all))
	for i, c := range all {
		rows[i] = chargeRow{
			Service: c.Service, Period: int64(c.Period / time.Second), Start: c.At.Unix(), Currency: c.Currency, Amount: c.Amount,
		}
	}
	return packed[chargeRow]{&rows}
}

func (r *keptRow) unpackCharges() error {
	var rows []chargeRow
	if err := (packed[chargeRow]{&rows}).Scan(r.charges); err != nil {
		return err
	}
	for _, c := range rows {
		r.Charges = append(r.Charges, store.Charge{
			Service: c.Service, Period: time.Duration(c.Period) * time.Second, At: time.Unix(c.Start, 0).UTC(),
			Currency: c.Currency, Amount: c.Amount,
		})
	}
	return nil
}

// kept reads the decision on a counter of a client, or returns [sql.ErrNoRows].
func (t *txn) kept(client int64, id protocol.ClientID, counter uint32) (ref int64, r keptRow, err error) {
	err = t.row(`SELECT s.ref, `+decisionColumns+` FROM decision s WHERE s.client = ? AND s.counter = ?`,
		client, int64(counter)).Scan(append([]any{&ref}, r.dest()...)...)
	if err == nil {
		err = r.open(t.verifier(), id)
	}
	return ref, r, err
}

// spent returns that decision, nil if there is none. A decision whose seal is of a version of mac
// that was given up answers nothing: its counter is spent, and no more.
func (t *txn) spent(client int64, id protocol.ClientID, serial protocol.Serial) (*store.Spent, error) {
	_, r, err := t.kept(client, id, serial.Counter())
	if err == nil && t.verifier().pastSeal(r.seal) {
		err = sql.ErrNoRows
	}
	if err != nil {
		return nil, unlessNoRow(err)
	}
	return &r.Spent, nil
}

// asked returns the decision that a question of service 2 is about, nil if there is none. The answer grants nothing, so
// one under a version of mac that was given up has it too.
func (t *txn) asked(client int64, id protocol.ClientID, serial protocol.Serial) (*store.Spent, error) {
	_, r, err := t.kept(client, id, serial.Counter())
	if err != nil {
		return nil, unlessNoRow(err)
	}
	return &r.Spent, nil
}

// pastSeal reports whether a seal is of a version of mac that was given up.
func (v *vault) pastSeal(seal []byte) bool {
	_, past := v.seals.Holds(store.ParseSeal(seal).Version)
	return past
}

// Answered implements [store.Store].
func (s *database) Answered(ctx context.Context, key store.AnswerKey) (out store.Outcome, err error) {
	const doing = "reading answer"
	v, err := s.unsealed()
	if err != nil {
		return out, fmt.Errorf("%s: %w", doing, err)
	}
	out, err = s.decided(ctx, v, key)
	if errors.Is(err, sql.ErrNoRows) {
		out, err = s.answered(ctx, v, key)
	}
	if err != nil {
		return store.Outcome{}, readError(ctx, doing, err)
	}
	out.Replayed = true
	return out, nil
}

// decided returns the outcome of the decision that answered these bytes. It ignores a decision
// whose seal is of a version of mac that was given up.
func (s *database) decided(ctx context.Context, v *vault, key store.AnswerKey) (store.Outcome, error) {
	var r keptRow
	err := s.r.row(ctx, `SELECT `+decisionColumns+` FROM client c JOIN decision s ON s.client = c.ref
		WHERE c.id = ? AND s.counter = ? AND s.attempt = ? AND s.random = ? AND s.m3 = ?`,
		key.Client[:], int64(key.Serial.Counter()), int64(key.Attempt), key.Serial[4:], key.M3[:]).Scan(r.dest()...)
	if err == nil {
		err = r.open(v, key.Client)
	}
	if err == nil && r.AnswerKey != key {
		err = v.seals.Report("a decision was found that was not asked for")
	}
	if err == nil && v.pastSeal(r.seal) {
		err = sql.ErrNoRows
	}
	return r.Outcome, err
}

// answered returns the outcome of the attempt with these bytes that was answered "retry".
func (s *database) answered(ctx context.Context, v *vault, key store.AnswerKey) (out store.Outcome, err error) {
	b, err := openAttempt(s.r.row(ctx, `SELECT a.random, a.m3, a.answered, a.tries_left, a.begun_us, a.seal
		FROM client c JOIN attempt a ON a.client = c.ref WHERE c.id = ? AND a.counter = ? AND a.attempt = ?`,
		key.Client[:], int64(key.Serial.Counter()), int64(key.Attempt)), v, key)
	if err == nil && (!b.Answered || b.AnswerKey != key) {
		err = sql.ErrNoRows
	}
	return b.Outcome(), err
}

// Spend implements [store.Store].
func (s *database) Spend(ctx context.Context, sp store.Spend) (store.Outcome, error) {
	var done store.Conclusion
	err := s.write(ctx, "spending serial", func(t *txn) error {
		p, v, err := t.view(sp)
		if err != nil {
			return err
		}
		done = sp.Conclude(v)
		return t.conclude(&spending{Spend: sp, parties: p, done: done})
	})
	if err != nil {
		return store.Outcome{}, err // done may still be written to
	}
	return done.Outcome, nil
}

// anyClient finds the client of an id. For an unknown id it finds the next client, or the last one, so
// that every id costs the same work.
const anyClient = `SELECT ` + clientColumns + ` FROM ` + clientTables + ` WHERE c.ref = (SELECT ref FROM (
	SELECT 0 AS last, ref FROM (SELECT ref FROM client WHERE id >= ?1 ORDER BY id LIMIT 1) UNION ALL
	SELECT 1, ref FROM (SELECT ref FROM client ORDER BY id DESC LIMIT 1)) ORDER BY last LIMIT 1)`

// Used implements [store.Store].
func (s *database) Used(ctx context.Context, id protocol.ClientID, charges []store.Charge) ([]store.Used, error) {
	const doing = "reading sums"
	v, err := s.unsealed()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", doing, err)
	}
	c, err := openClient(s.r.row(ctx, anyClient, id[:]), v, nil)
	used := make([]store.Used, len(charges))
	for i, charge := range charges {
		used[i] = c.Used(charge)
	}
	if err == nil && c.Client.ID == id {
		return used, nil
	}
	if c.Client.ID != id && errors.Is(err, store.ErrForged) { // of another client
		err = nil
	}
	return make([]store.Used, len(charges)), readError(ctx, doing, unlessNoRow(err))
}

// parties holds the rows of the clients in a countersignature.
type parties struct {
	client    int64
	restraint store.Restraint
	begun     int   // attempts under the counter
	payer     int64 // whose limits are charged: the client, or the first one
	pays      store.Restraint
	first     *keptRow // decision that is approved, nil if there is none
	firstRef  int64
}

// spending is a concluded Spend that is being stored.
type spending struct {
	store.Spend
	parties
	done store.Conclusion
}

// view reads and verifies the [store.View] of a Spend. No other transaction writes meanwhile.
func (t *txn) view(s store.Spend) (p parties, v store.View, err error) {
	if v.PolicyVersion, err = t.activePolicy(); err != nil {
		return p, v, err
	}
	var c clientRow
	if c, err = t.client(s.Client); err != nil {
		return p, v, err
	}
	if v.Device, err = t.device(s.Decision.Device); err != nil {
		return p, v, err
	}
	p.client, v.Client, p.restraint = c.ref, c.Client, c.Restraint
	if v.Begun, err = t.attempts(p.client, s.AnswerKey, p.restraint); err != nil {
		return p, v, err
	}
	p.begun = len(v.Begun)
	if v.Spent, err = t.spent(p.client, s.Client, s.Serial); err != nil {
		return p, v, err
	}
	if s.Asks != nil {
		if v.Asked, err = t.asked(p.client, s.Client, *s.Asks); err != nil {
			return p, v, err
		}
	}
	if p.payer, p.pays = p.client, p.restraint; s.Approves != nil {
		if err := t.viewFirst(*s.Approves, &p, &v); err != nil {
			return p, v, err
		}
	}
	for _, charge := range s.Charges {
		v.Used = append(v.Used, p.pays.Used(charge))
	}
	return p, v, nil
}

// activePolicy returns the version of the active policy in the head, 0 for none.
func (t *txn) activePolicy() (uint64, error) {
	h, err := t.head()
	return h.Policy, unlessNoRow(err)
}

// viewFirst reads the decision to approve, and its client.
func (t *txn) viewFirst(a store.Approves, p *parties, v *store.View) error {
	c, err := t.client(a.Client)
	if err != nil {
		return unlessNoRow(err)
	}
	p.payer, p.pays, v.FirstClient = c.ref, c.Restraint, &c.Client
	firstRef, first, err := t.kept(c.ref, a.Client, a.Serial.Counter())
	if err != nil {
		return unlessNoRow(err)
	}
	p.firstRef, p.first, v.First = firstRef, &first, &first.Spent
	return nil
}

func unlessNoRow(err error) error {
	if errors.Is(err, sql.ErrNoRows) || errors.Is(err, store.ErrNotFound) {
		return nil
	}
	return err
}

// conclude stores a conclusion.
func (t *txn) conclude(s *spending) error {
	for _, step := range []func(*spending) error{t.spend, t.finalize, t.settle} {
		if err := step(s); err != nil {
			return err
		}
	}
	for _, rec := range []*audit.Record{s.done.Record, s.done.Further} {
		if rec == nil {
			continue
		}
		if err := t.append(*rec); err != nil {
			return err
		}
	}
	return nil
}

// spend raises the counter, charges the limits and stores the decision.
func (t *txn) spend(s *spending) error {
	if !s.done.Spend {
		return nil
	}
	if int64(s.Serial.Counter()) <= s.restraint.Highest { // the conclusion is not trusted on this
		return fmt.Errorf("counter %d is not above the highest", s.Serial.Counter())
	}
	own := store.Kept{Spent: store.Spent{AnswerKey: s.AnswerKey, Outcome: s.done.Outcome, Pending: s.done.Waits}, First: s.Approves}
	if own.Charges = s.charged(); s.done.ResetGuard {
		s.restraint.Guard = store.Guard{}
	}
	s.restraint.Spend(s.Serial.Counter())
	if err := t.updateRestraint(s.client, s.restraint); err != nil {
		return err
	}
	if s.payer != s.client && len(own.Charges) > 0 {
		if err := t.updateRestraint(s.payer, s.pays); err != nil {
			return err
		}
	}
	if err := t.insertDecision(s.client, own); err != nil {
		return err
	}
	return t.dropAttempts(*s)
}

// charged adds the charges to the windows of the paying client, and returns those that count.
func (s *spending) charged() []store.Charge {
	switch {
	case !s.done.Charge:
		return nil
	case s.payer == s.client:
		return s.restraint.Charge(s.Charges)
	default:
		return s.pays.Charge(s.Charges)
	}
}

// insertDecision stores a new decision of a client.
func (t *txn) insertDecision(client int64, k store.Kept) error {
	var role, expires, asked, askedReason, firstClient, firstSerial any
	if k.Pending != nil {
		role, expires = k.Pending.Role, stamp{&k.Pending.Expires}
	}
	if a := k.Outcome.Asked; a != nil {
		asked, askedReason = int64(a.Result), int64(a.Reason)
	}
	if k.First != nil {
		firstClient, firstSerial = k.First.Client[:], k.First.Serial[:]
	}
	out := k.Outcome
	// A dry run is approved for the client and denied for the device.
	k.Dry = out.Result == protocol.ResultApproved && out.Decision.Result != out.Result
	_, err := t.put(k, `INSERT INTO decision (seal, client, counter, random, attempt, m3, transaction_id, result, reason, payload, decided_us,
			dry, first_client, first_serial, role, expires_us, asked_result, asked_reason, charges)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		client, int64(k.Serial.Counter()), k.Serial[4:], int64(k.Attempt), k.M3[:], out.Decision.Transaction[:],
		int64(out.Result), int64(out.Reason), out.Decision.Marshal(), out.At.UnixMicro(),
		k.Dry, firstClient, firstSerial, role, expires, asked, askedReason, packCharges(k.Charges))
	return err
}

// finalize ends a decision, but only if it still waits.
func (t *txn) finalize(s *spending) error {
	f := s.done.Finalize
	if f == nil {
		return nil
	}
	ref, k := s.firstRef, s.first
	if k == nil { // it is of the client's own, asked about
		asked, r, err := t.kept(s.client, f.Client, f.Serial.Counter())
		if err != nil {
			return err
		}
		ref, k = asked, &r
	}
	if k.Client != f.Client || k.Serial != f.Serial || k.Outcome.Result != protocol.ResultPending || k.Final != nil {
		return fmt.Errorf("serial %v of client %v is not pending", f.Serial, f.Client)
	}
	return t.putFinal(ref, k.Kept, f.Final)
}

func (t *txn) putFinal(ref int64, k store.Kept, f store.Final) error {
	k.Final = &f
	_, err := t.put(k, `UPDATE decision SET seal = ?, final_result = ?, final_reason = ?, final_us = ? WHERE ref = ?`,
		int64(f.Result), int64(f.Reason), f.At.UnixMicro(), ref)
	return err
}

func (t *txn) settle(s *spending) error {
	if s.done.Settle == nil {
		return nil
	}
	return t.insertDecision(s.client, store.Kept{Spent: *s.done.Settle})
}
