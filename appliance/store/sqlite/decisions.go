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

const decisionColumns = `s.counter, s.random, s.attempt, s.m3, s.result, s.reason, s.payload, s.decided_us`

// scanSpent reads decisionColumns; the client is known to the caller.
func scanSpent(s scanner, client protocol.ClientID) (*store.Spent, error) {
	var (
		spent   = store.Spent{AnswerKey: store.AnswerKey{Client: client}}
		counter uint32
		payload []byte
		out     = &spent.Outcome
	)
	err := s.Scan(&counter, fixed(spent.Serial[4:]), &spent.Attempt, fixed(spent.M3[:]),
		&out.Result, &out.Reason, &payload, stamp{&out.At})
	if err != nil {
		return nil, err
	}
	binary.BigEndian.PutUint32(spent.Serial[:4], counter)
	if out.Decision, err = protocol.ParseDecision(payload); err != nil {
		return nil, fmt.Errorf("stored decision of serial %v: %v", spent.Serial, err)
	}
	return &spent, nil
}

// Answered implements [store.Decisions].
func (s *Store) Answered(ctx context.Context, key store.AnswerKey) (store.Outcome, error) {
	spent, err := scanSpent(s.r.row(ctx, `SELECT `+decisionColumns+` FROM client c JOIN decision s ON s.client = c.ref
		WHERE c.id = ? AND s.counter = ?`, key.Client[:], int64(key.Serial.Counter())), key.Client)
	if err == nil && spent.AnswerKey != key {
		err = sql.ErrNoRows
	}
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
type parties struct{ client, device int64 }

// spending is a concluded Spend on its way into the tables.
type spending struct {
	store.Spend
	parties
	store.Conclusion
	used []store.Used
}

// view reads what Conclude needs. The transaction is the only one that writes.
func (t *txn) view(s store.Spend) (p parties, v store.View, err error) {
	var c clientRow
	dest := append([]any{&p.client}, c.dest()...)
	dest = append(append(dest, &p.device), deviceDest(&v.Device)...)
	err = t.row(`SELECT c.ref, `+clientColumns+`, d.ref, `+deviceColumns+`, (SELECT coalesce(max(version), 0) FROM policy)
		FROM client c, device d WHERE c.id = ? AND d.id = ?`, s.Client[:], s.Decision.Device[:]).
		Scan(append(dest, &v.PolicyVersion)...)
	if err != nil {
		return p, v, err
	}
	v.Client = c.client()
	for _, charge := range s.Charges {
		u, err := t.used(p.client, charge)
		if err != nil {
			return p, v, err
		}
		v.Used = append(v.Used, u)
	}
	v.Spent, err = scanSpent(t.row(`SELECT `+decisionColumns+` FROM decision s WHERE s.client = ? AND s.counter = ?`,
		p.client, int64(s.Serial.Counter())), s.Client)
	return p, v, unlessNoRow(err)
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
	if s.Conclusion.Spend {
		if err := t.raise(s); err != nil {
			return err
		}
		ref, err := t.insertDecision(s)
		if err != nil {
			return err
		}
		if err := t.charge(s, ref); err != nil {
			return err
		}
	}
	if s.Record == nil {
		return nil
	}
	return t.append(*s.Record)
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

func (t *txn) insertDecision(s spending) (ref int64, err error) {
	out := s.Outcome
	return t.insert(`INSERT INTO decision (client, counter, random, attempt, m3, device, transaction_id, result, reason, payload, decided_us)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		s.client, int64(s.Serial.Counter()), s.Serial[4:], int64(s.Attempt), s.M3[:], s.device, out.Decision.Transaction[:],
		int64(out.Result), int64(out.Reason), out.Decision.Marshal(), out.At.UnixMicro())
}

// charge writes down the charges and adds them to their windows. Charges of the
// same window are one.
func (t *txn) charge(s spending, decision int64) error {
	if !s.Conclusion.Charge {
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
			s.client, int64(c.Service), seconds(c.Period), c.Window.UnixMicro(),
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
		var ref, client int64
		var reported time.Time
		err := t.row(`SELECT s.ref, s.client, s.reported_us FROM decision s JOIN device d ON d.ref = s.device
			WHERE s.transaction_id = ? AND s.result = 1 AND d.id = ?`, r.Transaction[:], r.Device[:]).
			Scan(&ref, &client, stamp{&reported})
		if err != nil || !reported.IsZero() {
			return err
		}
		_, err = t.exec(`UPDATE decision SET performed = ?, reported_us = ? WHERE ref = ?`, r.Performed, r.At.UnixMicro(), ref)
		if err != nil {
			return err
		}
		if err := t.giveBack(ref, client, r.Performed); err != nil {
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
