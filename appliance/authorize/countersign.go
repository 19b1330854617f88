package authorize

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	"countersign/appliance/parties"
	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/protocol/deviceapi"
	"countersign/protocol/message"
)

// countersigned is an M3 that was opened with its handle.
type countersigned struct {
	device    store.Device
	m3        []byte
	handle    handle
	channel   message.Channel
	key       store.AnswerKey
	p1        message.P1
	p2        message.P2
	p3        message.P3
	statement message.Statement
	seen      examined
}

// Countersign answers a phone's M3 that a device relays, in the order of PROTOCOL.md §4: open,
// evidence, decision, one durable commit, signature, answer. An M3 that was answered before gets
// that answer again, even if it would be refused now. Errors carry a code that is answered over
// HTTP, or wrap [hsm.ErrUnavailable], [store.ErrUnavailable] or a context error; after those the
// phone may send the same M3 again.
func (a *Service) Countersign(ctx context.Context, device store.Device, req deviceapi.CountersignRequest) (deviceapi.CountersignResponse, error) {
	c, err := a.openCountersign(ctx, device, req)
	if err != nil {
		return deviceapi.CountersignResponse{}, err
	}
	if c.seen, err = a.examine(ctx, c); err != nil {
		return deviceapi.CountersignResponse{}, err
	}
	out, err := a.settle(ctx, c)
	if parties.Forged(err) {
		out, err = a.refuseForged(c), nil
	}
	if err != nil {
		return deviceapi.CountersignResponse{}, err
	}
	return a.answer(ctx, c, out)
}

// AnswerAfter returns how long after its request an answer is sent. All refusals are sent at the
// same time: an unknown client costs no durable write and no call of the token, a wrong password
// costs both, and the clock must not show the difference. Work that takes longer is not hidden.
func (a *Service) AnswerAfter(res deviceapi.CountersignResponse) time.Duration {
	if res.Decision != nil {
		return 0
	}
	return a.refusal
}

func (a *Service) openCountersign(ctx context.Context, device store.Device, req deviceapi.CountersignRequest) (countersigned, error) {
	c := countersigned{device: device, m3: req.M3}
	var err error
	if c.handle, err = a.openHandle(ctx, device.ID, req.Handle); err != nil {
		return c, err
	}
	c.channel = c.handle.channel()
	attempt, p3, err := c.channel.OpenM3(req.M3)
	if err != nil {
		return c, fmt.Errorf("opening M3: %w", err)
	}
	if c.p3, err = message.ParseP3(p3); err != nil {
		return c, err
	}
	if c.p1, err = message.ParseP1(c.handle.P1); err != nil {
		return c, fmt.Errorf("P1 of the handle: %w", err)
	}
	if c.p2, err = message.ParseP2(c.handle.P2); err != nil {
		return c, fmt.Errorf("P2 of the handle: %w", err)
	}
	c.statement = message.NewStatement(c.handle.Root, c.handle.P1, c.handle.Challenge, c.handle.P2)
	c.key = store.AnswerKey{Client: c.p1.Client, Serial: c.p1.Serial, Attempt: attempt, M3: sha256.Sum256(req.M3)}
	return c, nil
}

// Outcome stores a device's report of what it did with an approval. The first report wins; "not
// performed" gives the limits back. The error is [ErrNoTransaction] if the transaction is not
// this device's.
func (a *Service) Outcome(ctx context.Context, device store.Device, req deviceapi.OutcomeRequest) error {
	rec := audit.NewRecord(audit.KindOutcome, "device/"+device.Name, map[string]any{
		"transaction": req.Transaction[:], "performed": req.Performed, "id": device.ID[:],
	})
	report := store.Report{Device: device.ID, Transaction: req.Transaction, Performed: req.Performed, At: a.now().UTC()}
	err := a.store.Report(ctx, report, rec)
	if errors.Is(err, store.ErrNotFound) || parties.Forged(err) {
		err = ErrNoTransaction
	}
	if err != nil {
		return fmt.Errorf("outcome of transaction %s: %w", req.Transaction, err)
	}
	return nil
}

// ErrNoTransaction: this device has no such approved transaction.
var ErrNoTransaction = errors.New("no such transaction")
