package appliance

import (
	"context"
	"errors"
	"fmt"

	"countersign/appliance/store"
	"countersign/protocol"
)

// Outcome stores a device's word on what it did with an approval. The first report
// wins; one that says "not performed" gives the limits back. A transaction that is
// not this device's is [ErrNoTransaction].
func (a *Appliance) Outcome(ctx context.Context, device store.Device, req protocol.OutcomeRequest) error {
	rec := store.NewRecord(store.KindOutcome, "device/"+device.Name, map[string]any{
		"transaction": req.Transaction[:], "performed": req.Performed,
	})
	report := store.Report{Device: device.ID, Transaction: req.Transaction, Performed: req.Performed, At: a.now().UTC()}
	err := a.store.Report(ctx, report, rec)
	if errors.Is(err, store.ErrNotFound) {
		err = ErrNoTransaction
	}
	if err != nil {
		return fmt.Errorf("outcome of transaction %s: %w", req.Transaction, err)
	}
	return nil
}

// ErrNoTransaction: this device has no such approved transaction.
var ErrNoTransaction = errors.New("no such transaction")
