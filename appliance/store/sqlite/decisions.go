package sqlite

import (
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"countersign/appliance/store"
	"countersign/protocol"
)

const decisionColumns = `s.counter, s.random, s.attempt, s.m3, s.result, s.reason, s.payload, s.decided_us,
	s.asked_result, s.asked_reason, s.role, s.expires_us, s.final_result, s.final_reason, s.final_us`

// spentRow is where the decisionColumns are scanned to.
type spentRow struct {
	store.Spent
	counter                  uint32
	payload                  []byte
	role                     sql.NullString
	asked, askedReason       sql.Null[uint8]
	finalResult, finalReason sql.Null[uint8]
	expires, finalAt         time.Time
}

func (r *spentRow) dest() []any {
	out := &r.Outcome
	return []any{
		&r.counter, fixed(r.Serial[4:]), &r.Attempt, fixed(r.M3[:]), &out.Result, &out.Reason, &r.payload,
		stamp{&out.At},
		&r.asked, &r.askedReason, &r.role,
		stamp{&r.expires},
		&r.finalResult, &r.finalReason,
		stamp{&r.finalAt},
	}
}

// spent is the row for a client who is known to the caller.
func (r *spentRow) spent(client protocol.ClientID) (*store.Spent, error) {
	r.Client = client
	binary.BigEndian.PutUint32(r.Serial[:4], r.counter)
	if r.role.Valid {
		r.Pending = &store.Pending{Role: r.role.String, Expires: r.expires}
	}
	if r.finalResult.Valid {
		r.Final = &store.Final{Result: protocol.Result(r.finalResult.V), Reason: protocol.Code(r.finalReason.V), At: r.finalAt}
	}
	if r.asked.Valid {
		r.Outcome.Asked = &protocol.AskedResult{Result: protocol.Result(r.asked.V), Reason: protocol.Code(r.askedReason.V)}
	}
	if r.Outcome.Result == protocol.ResultRetry {
		return &r.Spent, nil // an attempt, which has no decision
	}
	var err error
	if r.Outcome.Decision, err = protocol.ParseDecision(r.payload); err != nil {
		return nil, fmt.Errorf("stored decision of serial %v: %v", r.Serial, err)
	}
	return &r.Spent, nil
}

// spent reads the decision on a counter of a client, nil if there is none.
func (t *txn) spent(client int64, id protocol.ClientID, serial protocol.Serial) (ref int64, _ *store.Spent, err error) {
	var r spentRow
	err = t.row(`SELECT s.ref, `+decisionColumns+` FROM decision s WHERE s.client = ? AND s.counter = ?`,
		client, int64(serial.Counter())).Scan(append([]any{&ref}, r.dest()...)...)
	if err != nil {
		return 0, nil, unlessNoRow(err)
	}
	spent, err := r.spent(id)
	return ref, spent, err
}

// Answered implements [store.Decisions].
func (s *Store) Answered(ctx context.Context, key store.AnswerKey) (store.Outcome, error) {
	var r spentRow
	row := s.r.row(ctx, `SELECT `+decisionColumns+`, 0 FROM client c JOIN decision s ON s.client = c.ref
			WHERE c.id = ?1 AND s.counter = ?2 AND s.attempt = ?3 AND s.random = ?4 AND s.m3 = ?5
		UNION ALL SELECT a.counter, a.random, a.attempt, a.m3, ?6, ?7, NULL, a.begun_us,
				NULL, NULL, NULL, NULL, NULL, NULL, NULL, a.tries_left FROM client c JOIN attempt a ON a.client = c.ref
			WHERE c.id = ?1 AND a.counter = ?2 AND a.attempt = ?3 AND a.random = ?4 AND a.m3 = ?5 AND a.answered = 1`,
		key.Client[:], int64(key.Serial.Counter()), int64(key.Attempt), key.Serial[4:], key.M3[:],
		int64(protocol.ResultRetry), int64(protocol.CodePassword))
	err := row.Scan(append(r.dest(), &r.Outcome.TriesLeft)...)
	if err != nil {
		return store.Outcome{}, readError(ctx, "reading answer", err)
	}
	spent, err := r.spent(key.Client)
	if err != nil {
		return store.Outcome{}, readError(ctx, "reading answer", err)
	}
	spent.Outcome.Replayed = true
	return spent.Outcome, nil
}

// Spend implements [store.Decisions].
func (s *Store) Spend(ctx context.Context, sp store.Spend) (store.Outcome, error) {
	var done store.Conclusion
	err := s.write(ctx, "spending serial", func(t *txn) error {
		p, v, err := t.view(sp)
		if err != nil {
			return err
		}
		done = sp.Conclude(v)
		return t.conclude(spending{sp, p, done, v.Used})
	})
	if err != nil {
		return store.Outcome{}, err // done may still be written to
	}
	return done.Outcome, nil
}

// parties are the rows a countersignature is about.
type parties struct {
	client, device int64
	begun          int   // attempts under the counter
	payer          int64 // whose limits are charged: the client, or the first one
	first          int64 // decision that is approved, or 0
}

// spending is a concluded Spend on its way into the tables.
type spending struct {
	store.Spend
	parties
	done store.Conclusion
	used []store.Used
}

// view reads what Conclude needs. The transaction is the only one that writes.
func (t *txn) view(s store.Spend) (p parties, v store.View, err error) {
	if p, v, err = t.viewParties(s); err != nil {
		return p, v, err
	}
	if v.Begun, err = t.begun(p.client, s.AnswerKey, p.begun); err != nil {
		return p, v, err
	}
	if _, v.Spent, err = t.spent(p.client, s.Client, s.Serial); err != nil {
		return p, v, err
	}
	if s.Asks != nil {
		if _, v.Asked, err = t.spent(p.client, s.Client, *s.Asks); err != nil {
			return p, v, err
		}
	}
	if p.payer = p.client; s.Approves != nil {
		if p.payer, p.first, err = t.viewFirst(*s.Approves, &v); err != nil {
			return p, v, err
		}
	}
	for _, charge := range s.Charges {
		u, err := t.used(p.payer, charge)
		if err != nil {
			return p, v, err
		}
		v.Used = append(v.Used, u)
	}
	return p, v, nil
}

func (t *txn) viewParties(s store.Spend) (p parties, v store.View, err error) {
	var c clientRow
	dest := append([]any{&p.client}, c.dest()...)
	dest = append(append(dest, &p.device), deviceDest(&v.Device)...)
	err = t.row(`SELECT c.ref, `+clientColumns+`, d.ref, `+deviceColumns+`, (SELECT coalesce(max(version), 0) FROM policy),
			(SELECT count(*) FROM attempt a WHERE a.client = c.ref AND a.counter = ?)
		FROM client c, device d WHERE c.id = ? AND d.id = ?`, int64(s.Serial.Counter()), s.Client[:], s.Decision.Device[:]).
		Scan(append(dest, &v.PolicyVersion, &p.begun)...)
	v.Client = c.client()
	return p, v, err
}

// viewFirst reads the decision that is to be approved, and its client.
func (t *txn) viewFirst(a store.Approves, v *store.View) (client, first int64, err error) {
	var c clientRow
	err = t.row(`SELECT c.ref, `+clientColumns+` FROM client c WHERE c.id = ?`, a.Client[:]).
		Scan(append([]any{&client}, c.dest()...)...)
	if err != nil {
		return 0, 0, unlessNoRow(err)
	}
	one := c.client()
	v.FirstClient = &one
	first, v.First, err = t.spent(client, a.Client, a.Serial)
	return client, first, err
}

func unlessNoRow(err error) error {
	if errors.Is(err, sql.ErrNoRows) {
		return nil
	}
	return err
}

func seconds(d time.Duration) int64 { return int64(d / time.Second) }

func (t *txn) used(client int64, c store.Charge) (u store.Used, err error) {
	err = t.row(`SELECT amount, count FROM used WHERE client = ? AND service = ? AND period_s = ? AND window_us = ?`,
		client, int64(c.Service), seconds(c.Period), c.Window.UnixMicro()).Scan(&u.Amount, &u.Count)
	return u, unlessNoRow(err)
}

// conclude stores what the conclusion says.
func (t *txn) conclude(s spending) error {
	for _, step := range []func(spending) error{t.spend, t.finalize, t.settle} {
		if err := step(s); err != nil {
			return err
		}
	}
	for _, rec := range []*store.Record{s.done.Record, s.done.Further} {
		if rec == nil {
			continue
		}
		if err := t.append(*rec); err != nil {
			return err
		}
	}
	return nil
}

func (t *txn) spend(s spending) error {
	if !s.done.Spend {
		return nil
	}
	if err := t.raise(s); err != nil {
		return err
	}
	own := store.Spent{AnswerKey: s.AnswerKey, Outcome: s.done.Outcome, Pending: s.done.Waits}
	ref, err := t.insertDecision(s, own)
	if err != nil {
		return err
	}
	if err := t.dropAttempts(s); err != nil {
		return err
	}
	if s.done.ResetGuard {
		if err := t.resetGuard(s.client); err != nil {
			return err
		}
	}
	if s.first != 0 {
		ref = s.first
	}
	return t.charge(s, ref)
}

// raise holds the rule that counters only rise once more, whatever was concluded.
func (t *txn) raise(s spending) error {
	counter := int64(s.Serial.Counter())
	n, err := t.exec(`UPDATE client SET highest = ? WHERE ref = ? AND highest < ?`, counter, s.client, counter)
	if err == nil && n != 1 {
		err = fmt.Errorf("counter %d is not above the highest", counter)
	}
	return err
}

// insertDecision stores a decision that s has made: its own, or one it settles.
func (t *txn) insertDecision(s spending, d store.Spent) (ref int64, err error) {
	var role, expires, asked, askedReason, first any
	if d.Pending != nil {
		role, expires = d.Pending.Role, usec(d.Pending.Expires)
	}
	if a := d.Outcome.Asked; a != nil {
		asked, askedReason = int64(a.Result), int64(a.Reason)
	}
	if s.first != 0 {
		first = s.first
	}
	out := d.Outcome
	// what is dry is approved to the client and denied to any device
	dry := out.Result == protocol.ResultApproved && out.Decision.Result != out.Result
	return t.insert(`INSERT INTO decision (client, counter, random, attempt, m3, device, transaction_id, result, reason, payload, decided_us,
			dry, first, role, expires_us, asked_result, asked_reason)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		s.client, int64(d.Serial.Counter()), d.Serial[4:], int64(d.Attempt), d.M3[:], s.device, out.Decision.Transaction[:],
		int64(out.Result), int64(out.Reason), out.Decision.Marshal(), out.At.UnixMicro(),
		dry, first, role, expires, asked, askedReason)
}

// finalize ends a decision only if it still waits, whatever was concluded.
func (t *txn) finalize(s spending) error {
	f := s.done.Finalize
	if f == nil {
		return nil
	}
	n, err := t.exec(`UPDATE decision SET final_result = ?, final_reason = ?, final_us = ?
		WHERE client = (SELECT ref FROM client WHERE id = ?) AND counter = ? AND random = ? AND result = 3 AND final_result IS NULL`,
		int64(f.Result), int64(f.Reason), f.At.UnixMicro(), f.Client[:], int64(f.Serial.Counter()), f.Serial[4:])
	if err == nil && n != 1 {
		err = fmt.Errorf("serial %v of client %v is not pending", f.Serial, f.Client)
	}
	return err
}

func (t *txn) settle(s spending) error {
	if s.done.Settle == nil {
		return nil
	}
	_, err := t.insertDecision(s, *s.done.Settle)
	return err
}

// charge writes down the charges and adds them to their windows. Charges of the
// same window are one.
func (t *txn) charge(s spending, decision int64) error {
	if !s.done.Charge {
		return nil
	}
	for i, c := range s.Charges {
		n, err := t.exec(`INSERT INTO charge (decision, service, period_s, window_us, amount)
			VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING`,
			decision, int64(c.Service), seconds(c.Period), c.Window.UnixMicro(), saturated(c.Amount, 0))
		if err != nil {
			return err
		}
		if n == 0 {
			continue
		}
		_, err = t.exec(`INSERT OR REPLACE INTO used (client, service, period_s, window_us, amount, count) VALUES (?, ?, ?, ?, ?, ?)`,
			s.payer, int64(c.Service), seconds(c.Period), c.Window.UnixMicro(),
			saturated(s.used[i].Amount, c.Amount), saturated(s.used[i].Count, 1))
		if err != nil {
			return err
		}
	}
	return nil
}

// Report implements [store.Decisions].
func (s *Store) Report(ctx context.Context, r store.Report, rec store.Record) error {
	return s.write(ctx, "reporting outcome", func(t *txn) error {
		var ref, charged, payer int64
		var reported time.Time
		err := t.row(`SELECT s.ref, coalesce(f.ref, s.ref), coalesce(f.client, s.client), s.reported_us
			FROM decision s JOIN device d ON d.ref = s.device LEFT JOIN decision f ON f.ref = s.first
			WHERE s.transaction_id = ? AND s.result = 1 AND s.dry = 0 AND d.id = ?`, r.Transaction[:], r.Device[:]).
			Scan(&ref, &charged, &payer, stamp{&reported})
		if err != nil || !reported.IsZero() {
			return err
		}
		_, err = t.exec(`UPDATE decision SET performed = ?, reported_us = ? WHERE ref = ?`, r.Performed, r.At.UnixMicro(), ref)
		if err != nil {
			return err
		}
		if err := t.giveBack(charged, payer, r.Performed); err != nil {
			return err
		}
		return t.append(rec)
	})
}

// giveBack takes the charges off their windows, unless they were earned.
func (t *txn) giveBack(decision, client int64, performed bool) error {
	if performed {
		return nil
	}
	_, err := t.exec(`UPDATE used SET amount = max(used.amount - c.amount, 0), count = max(count - 1, 0)
		FROM charge c WHERE c.decision = ? AND used.client = ? AND used.service = c.service
			AND used.period_s = c.period_s AND used.window_us = c.window_us`, decision, client)
	return err
}
