package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/protocol"
)

// Report implements [store.Store].
func (s *database) Report(ctx context.Context, r store.Report, rec audit.Record) error {
	return s.change(ctx, "reporting outcome", rec, func(t *txn) error {
		var client int64
		var id protocol.ClientID
		var counter uint32
		err := t.row(`SELECT s.client, c.id, s.counter FROM decision s JOIN client c ON c.ref = s.client
			WHERE s.transaction_id = ? AND s.result = 1 AND s.dry = 0`, r.Transaction[:]).Scan(&client, fixed(id[:]), &counter)
		if err != nil {
			return err
		}
		ref, k, err := t.kept(client, id, counter)
		switch {
		case err != nil:
			return err
		case k.Outcome.Decision.Transaction != r.Transaction || k.Dry || k.Outcome.Result != protocol.ResultApproved:
			return t.verifier().seals.Report(fmt.Sprintf("transaction %s is found by another decision", r.Transaction))
		case k.Outcome.Decision.Device != r.Device:
			return store.ErrNotFound
		case !k.ReportedAt.IsZero():
			return errUnchanged
		}
		k.Performed, k.ReportedAt = r.Performed, store.Stamp(r.At)
		if err := t.giveBack(k); err != nil {
			return err
		}
		_, err = t.put(k.Kept, `UPDATE decision SET seal = ?, performed = ?, reported_us = ? WHERE ref = ?`,
			k.Performed, k.ReportedAt.UnixMicro(), ref)
		return err
	})
}

// giveBack takes the charges of a decision off their windows, unless the device performed it. A
// decision under a version of mac that was given up gives nothing back.
func (t *txn) giveBack(k keptRow) error {
	if t.verifier().pastSeal(k.seal) || k.Performed || len(k.Charges) == 0 {
		return nil
	}
	payer := k.Client
	if k.First != nil {
		payer = k.First.Client
	}
	c, err := t.client(payer)
	if err != nil {
		return err
	}
	c.GiveBack(k.Charges)
	return t.updateRestraint(c.ref, c.Restraint)
}

// Performed implements [store.Store].
func (s *database) Performed(ctx context.Context, id protocol.ClientID, serial protocol.Serial) (*bool, error) {
	v, err := s.unsealed()
	if err != nil {
		return nil, fmt.Errorf("reading report: %w", err)
	}
	const which = `c.id = ? AND s.counter = ? AND s.random = ?`
	r, err := s.keptWhere(ctx, v, which, id[:], int64(serial.Counter()), serial[4:])
	if err == nil && (r.Client != id || r.Serial != serial) {
		err = v.seals.Report("a decision was found that was not asked for")
	}
	if err == nil && r.Final != nil { // the second approver's decision has the report
		r, err = s.final(ctx, v, r)
	}
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return nil, nil
	case err != nil:
		return nil, readError(ctx, "reading report", err)
	case r.ReportedAt.IsZero(): // only an approval is reported
		return nil, nil
	}
	return &r.Kept.Performed, nil
}

// final returns the approval that ended a pending decision, or [sql.ErrNoRows] if it was denied.
func (s *database) final(ctx context.Context, v *vault, pending keptRow) (keptRow, error) {
	transaction := pending.Outcome.Decision.Transaction
	r, err := s.keptWhere(ctx, v, `s.transaction_id = ? AND s.result = 1 AND s.dry = 0`, transaction[:])
	if err == nil && r.Outcome.Decision.Transaction != transaction {
		err = v.seals.Report(fmt.Sprintf("transaction %s is found by another decision", transaction))
	}
	return r, err
}

// keptWhere reads and verifies one decision.
func (s *database) keptWhere(ctx context.Context, v *vault, where string, args ...any) (r keptRow, err error) {
	var client protocol.ClientID
	const from = `SELECT c.id, ` + decisionColumns + ` FROM client c JOIN decision s ON s.client = c.ref WHERE `
	err = s.r.row(ctx, from+where, args...).Scan(append([]any{fixed(client[:])}, r.dest()...)...)
	if err == nil {
		err = r.open(v, client)
	}
	return r, err
}
