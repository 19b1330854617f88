package sqlite

import (
	"context"
	"encoding/binary"
	"fmt"
	"time"

	"countersign/appliance/store"
	"countersign/protocol"
)

const guardColumns = `coalesce(g.wrong, 0), g.recent, g.until_us`

func guardDest(g *store.Guard) []any { return []any{&g.Wrong, times{&g.Recent}, stamp{&g.Until}} }

// begun reads the attempts under a counter, which are numbered from 0.
func (t *txn) begun(client int64, k store.AnswerKey, n int) ([]store.Begun, error) {
	var all []store.Begun
	for attempt := range n {
		b := store.Begun{AnswerKey: store.AnswerKey{Client: k.Client, Attempt: uint8(attempt)}}
		err := t.row(`SELECT random, m3, answered, tries_left, begun_us FROM attempt WHERE client = ? AND counter = ? AND attempt = ?`,
			client, int64(k.Serial.Counter()), attempt).
			Scan(fixed(b.Serial[4:]), fixed(b.M3[:]), &b.Answered, &b.TriesLeft, stamp{&b.At})
		if err != nil {
			return nil, err
		}
		binary.BigEndian.PutUint32(b.Serial[:4], k.Serial.Counter())
		all = append(all, b)
	}
	return all, nil
}

// Try implements [store.Tries].
func (s *Store) Try(ctx context.Context, a store.Attempt) (store.Tried, error) {
	var tried store.Tried
	err := s.write(ctx, "counting password attempt", func(t *txn) error {
		client, v, err := t.attemptView(a)
		if err != nil {
			return err
		}
		tried = a.Conclude(v)
		if err := t.addAttempt(client, tried.Begun); err != nil {
			return err
		}
		return t.raiseGuard(client, tried.Guard)
	})
	if err != nil {
		return store.Tried{}, err // tried may still be written to
	}
	return tried, nil
}

func (t *txn) attemptView(a store.Attempt) (client int64, v store.AttemptView, err error) {
	var (
		c     clientRow
		begun int
	)
	dest := append([]any{&client}, c.dest()...)
	dest = append(append(dest, guardDest(&v.Guard)...), &begun)
	err = t.row(`SELECT c.ref, `+clientColumns+`, `+guardColumns+`,
			(SELECT count(*) FROM attempt a WHERE a.client = c.ref AND a.counter = ?)
		FROM client c LEFT JOIN guard g ON g.client = c.ref WHERE c.id = ?`,
		int64(a.Serial.Counter()), a.Client[:]).Scan(dest...)
	if err != nil {
		return client, v, err
	}
	v.Client = c.client()
	if v.Begun, err = t.begun(client, a.AnswerKey, begun); err != nil {
		return client, v, err
	}
	_, v.Spent, err = t.spent(client, a.Client, a.Serial)
	return client, v, err
}

func (t *txn) addAttempt(client int64, b *store.Begun) error {
	if b == nil {
		return nil
	}
	_, err := t.exec(`INSERT INTO attempt (client, counter, attempt, random, m3, tries_left, begun_us) VALUES (?, ?, ?, ?, ?, ?, ?)`,
		client, int64(b.Serial.Counter()), int64(b.Attempt), b.Serial[4:], b.M3[:], int64(b.TriesLeft), b.At.UnixMicro())
	return err
}

// raiseGuard holds the rule that the count only rises once more, whatever was
// concluded; the table's triggers hold it too.
func (t *txn) raiseGuard(client int64, g *store.Guard) error {
	if g == nil {
		return nil
	}
	recent, err := timesText(g.Recent)
	if err != nil {
		return err
	}
	n, err := t.exec(`INSERT INTO guard (client, wrong, recent, until_us) VALUES (?, ?, ?, ?)
		ON CONFLICT (client) DO UPDATE SET wrong = excluded.wrong, recent = excluded.recent, until_us = excluded.until_us
			WHERE guard.wrong = excluded.wrong - 1`, client, int64(g.Wrong), recent, usec(g.Until))
	if err == nil && n != 1 {
		err = fmt.Errorf("a password guard of %d wrong tries does not follow on the stored one", g.Wrong)
	}
	return err
}

func (t *txn) resetGuard(client int64) error {
	_, err := t.exec(`UPDATE guard SET wrong = 0, recent = '[]', until_us = NULL WHERE client = ?`, client)
	return err
}

// answersKept is longer than any handle lives, so that every M3 that may still be
// repeated is answered as before.
const answersKept = 48 * time.Hour

// dropAttempts deletes what nobody will ask for any more, now that the serial is
// spent: its attempt that was not answered "retry" is answered by the decision.
func (t *txn) dropAttempts(s spending) error {
	if s.begun == 0 {
		return nil
	}
	_, err := t.exec(`DELETE FROM attempt WHERE client = ?1 AND (counter = ?2 AND answered = 0 OR counter <= ?2 AND begun_us < ?3)`,
		s.client, int64(s.Serial.Counter()), s.Now.Add(-answersKept).UnixMicro())
	return err
}

const thisAttempt = ` client = (SELECT ref FROM client WHERE id = ?1) AND counter = ?2 AND attempt = ?3 AND random = ?4 AND m3 = ?5`

// Wrong implements [store.Tries].
func (s *Store) Wrong(ctx context.Context, key store.AnswerKey, triesLeft uint64, rec store.Record) error {
	return s.write(ctx, "storing wrong password", func(t *txn) error {
		args := []any{key.Client[:], int64(key.Serial.Counter()), int64(key.Attempt), key.Serial[4:], key.M3[:]}
		n, err := t.exec(`UPDATE attempt SET answered = 1, tries_left = ?6 WHERE answered = 0 AND`+thisAttempt,
			append(args, saturated(triesLeft, 0))...)
		if err != nil {
			return err
		}
		if n == 0 {
			var there int
			return t.row(`SELECT 1 FROM attempt WHERE`+thisAttempt, args...).Scan(&there)
		}
		return t.append(rec)
	})
}

// Guard implements [store.Tries].
func (s *Store) Guard(ctx context.Context, id protocol.ClientID) (g store.Guard, err error) {
	err = s.r.row(ctx, `SELECT `+guardColumns+` FROM client c LEFT JOIN guard g ON g.client = c.ref WHERE c.id = ?`, id[:]).
		Scan(guardDest(&g)...)
	return g, readError(ctx, "reading password guard", err)
}

// Unlock implements [store.Tries].
func (s *Store) Unlock(ctx context.Context, id protocol.ClientID, rec store.Record) error {
	return s.write(ctx, "unlocking password", func(t *txn) error {
		var client int64
		if err := t.row(`SELECT ref FROM client WHERE id = ?`, id[:]).Scan(&client); err != nil {
			return err
		}
		if err := t.resetGuard(client); err != nil {
			return err
		}
		return t.append(rec)
	})
}
