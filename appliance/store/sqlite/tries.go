package sqlite

import (
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"

	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/protocol"
)

const attemptColumns = `random, m3, answered, tries_left, begun_us, seal`

// openAttempt reads an attempt from its row and checks its seal, or returns [sql.ErrNoRows].
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
	v, err := t.unsealed()
	if err != nil {
		return b, err
	}
	return openAttempt(t.row(`SELECT `+attemptColumns+` FROM attempt WHERE client = ? AND counter = ? AND attempt = ?`,
		client, int64(k.Serial.Counter()), int64(k.Attempt)), v, k)
}

// begun reads the attempts under a counter, which are numbered from 0. How many there are
// is what restricts the client's word: one that is missing is forged.
func (t *txn) begun(client int64, k store.AnswerKey, n int) ([]store.Begun, error) {
	var all []store.Begun
	for i := range n {
		k.Attempt = uint8(i)
		b, err := t.attempt(client, k)
		if errors.Is(err, sql.ErrNoRows) {
			err = t.reportForged(fmt.Sprintf("attempt %d under counter %d of client %s is missing", i, k.Serial.Counter(), k.Client))
		}
		if err != nil {
			return nil, err
		}
		all = append(all, b)
	}
	return all, nil
}

// answeredAttempt is the attempt with exactly these bytes, nil if there is none.
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
		ref, client, err := t.client(byClientID, a.Client[:])
		if err != nil {
			return err
		}
		v := store.AttemptView{Client: client.Client, Guard: client.Guard}
		if v.Begun, err = t.attempts(ref, a.AnswerKey, client.Restraint); err != nil {
			return err
		}
		if v.Spent, err = t.spent(ref, a.Client, a.Serial); err != nil {
			return err
		}
		if tried = a.Conclude(v); tried.Begun == nil {
			return nil
		}
		if err := t.addAttempt(ref, *tried.Begun); err != nil {
			return err
		}
		client.Guard = *tried.Guard
		client.Begin(a.Serial.Counter())
		return t.updateRestraint(ref, client.Restraint)
	})
	if err != nil {
		return store.Tried{}, err // tried may still be written to
	}
	return tried, nil
}

// attempts are those under the counter of a serial: all that were begun, while it may be
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
	seal, err := t.seal(b)
	if err != nil {
		return err
	}
	_, err = t.exec(`INSERT INTO attempt (client, counter, attempt, random, m3, tries_left, begun_us, seal) VALUES (?, ?, ?, ?, ?, ?, ?, ?)`,
		client, int64(b.Serial.Counter()), int64(b.Attempt), b.Serial[4:], b.M3[:], int64(b.TriesLeft), b.At.UnixMicro(), seal)
	return err
}

// dropAttempts deletes what nobody will ask for any more, now that the serial is
// spent: its attempt that was not answered "retry" is answered by the decision.
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
	return s.write(ctx, "storing wrong password", func(t *txn) error {
		ref, _, err := t.client(byClientID, key.Client[:])
		if err != nil {
			return err
		}
		b, err := t.answeredAttempt(ref, key)
		switch {
		case err != nil:
			return err
		case b == nil:
			return store.ErrNotFound
		case b.Answered:
			return nil
		}
		b.Answered, b.TriesLeft = true, uint64(saturated(triesLeft, 0))
		seal, err := t.seal(*b)
		if err != nil {
			return err
		}
		_, err = t.exec(`UPDATE attempt SET answered = 1, tries_left = ?, seal = ? WHERE client = ? AND counter = ? AND attempt = ?`,
			int64(b.TriesLeft), seal, ref, int64(key.Serial.Counter()), int64(key.Attempt))
		if err != nil {
			return err
		}
		return t.append(rec)
	})
}

// Guard implements [store.Store].
func (s *database) Guard(ctx context.Context, id protocol.ClientID) (store.Guard, error) {
	r, err := s.client(ctx, id)
	return r.Guard, readError(ctx, "reading password guard", err)
}

// Unlock implements [store.Store].
func (s *database) Unlock(ctx context.Context, id protocol.ClientID, rec audit.Record) error {
	return s.write(ctx, "unlocking password", func(t *txn) error {
		ref, client, err := t.client(byClientID, id[:])
		if err != nil {
			return err
		}
		client.Guard = store.Guard{}
		if err := t.updateRestraint(ref, client.Restraint); err != nil {
			return err
		}
		return t.append(rec)
	})
}
