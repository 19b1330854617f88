package appliance

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"countersign/appliance/store"
	"countersign/protocol"
)

// pending names an approval that waits for a second approver, and holds what the
// second one is shown and the device needs in the end. It travels sealed as the
// next handle of a countersign answer, and inside the second session's handle.
type pending struct {
	_           struct{} `cbor:",toarray"`
	Client      protocol.ClientID
	Serial      protocol.Serial
	Statement   protocol.Statement
	Slot        uint64
	Proof       []byte
	Signature   [protocol.SignatureSize]byte
	Transaction protocol.TransactionID
	Pairwise    protocol.PairwiseID
	Factors     protocol.Factors
}

func (a *Appliance) sealPending(ctx context.Context, c countersigned, d protocol.Decision) ([]byte, error) {
	return a.seal(ctx, sealing{device: c.device.ID, hour: hourOf(a.now()), kind: kindPending}, pending{
		Client: c.p1.Client, Serial: c.p1.Serial, Statement: c.statement, Slot: c.p3.Slot, Proof: c.p3.Proof,
		Signature: c.p3.Signature, Transaction: d.Transaction, Pairwise: d.Pairwise, Factors: d.Factors,
	})
}

// pendingOf opens the handle of a co-approval. With other services it is ignored,
// and none or a dead one is no error here: the phone is told 6.
func (a *Appliance) pendingOf(ctx context.Context, device store.Device, req protocol.ApplyRequest, p1 protocol.P1) (*pending, error) {
	if p1.Service != protocol.ServiceCoApproval || req.Handle == nil {
		return nil, nil
	}
	var first pending
	err := a.unseal(ctx, sealing{device: device.ID, kind: kindPending}, req.Handle, &first)
	if errors.Is(err, protocol.CodeExpired) {
		return nil, nil
	}
	return &first, err
}

// coChallenge repeats to the second approver what the first one signed.
func (a *Appliance) coChallenge(device store.Device, req protocol.ApplyRequest, p1 protocol.P1, first *pending) (protocol.P2, error) {
	if first == nil {
		return protocol.P2{}, fmt.Errorf("no handle of a pending approval: %w", protocol.CodeService)
	}
	signed, err := protocol.ParseStatement(first.Statement)
	if err != nil {
		return protocol.P2{}, fmt.Errorf("first statement: %w", err)
	}
	if !slices.Contains(req.Order.Services, signed.P1.Service) {
		return protocol.P2{}, fmt.Errorf("service %d is not ordered: %w", signed.P1.Service, protocol.CodeService)
	}
	if p1.Level > signed.P2.Level {
		return protocol.P2{}, fmt.Errorf("level %d for a second approval at %d: %w", p1.Level, signed.P2.Level, protocol.CodeLevel)
	}
	amount, text, err := agree(p1.Proposal, req.Order)
	if err != nil {
		return protocol.P2{}, err
	}
	if amount != nil && (signed.P2.Amount == nil || *amount != *signed.P2.Amount) || text != "" && text != signed.P2.Text {
		return protocol.P2{}, fmt.Errorf("what is ordered is not what was signed first: %w", protocol.CodePolicy)
	}
	hash := first.Statement.Hash()
	return protocol.P2{
		TTL: signed.P2.TTL, Level: signed.P2.Level, Factors: signed.P2.Factors,
		Device: device.ID.Handle(), DeviceName: signed.P2.DeviceName, Amount: signed.P2.Amount, Text: signed.P2.Text,
		FirstStatement: &hash, FirstService: &signed.P1.Service,
	}, nil
}
