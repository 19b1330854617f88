package device

import (
	"context"
	"crypto/rand"
	"net/http"
	"time"

	"countersign/protocol"
	"countersign/protocol/deviceapi"
	"countersign/protocol/message"
	"countersign/protocol/receipt"
	"countersign/protocol/trust"
)

// NewNonce is the device's 16 bytes of an apply.
func NewNonce() (n protocol.Nonce) {
	_, _ = rand.Read(n[:]) // never fails, crypto/rand
	return n
}

// Apply is POST /v1/apply. A refusal is a [*Refusal].
func (d *Device) Apply(ctx context.Context, req deviceapi.ApplyRequest) (deviceapi.ApplyResponse, error) {
	body, err := d.call(ctx, "/v1/apply", req.Marshal())
	if err != nil {
		return deviceapi.ApplyResponse{}, err
	}
	return deviceapi.ParseApplyResponse(body)
}

// Countersign is POST /v1/countersign. A refusal is a [*Refusal].
func (d *Device) Countersign(ctx context.Context, req deviceapi.CountersignRequest) (deviceapi.CountersignResponse, error) {
	body, err := d.call(ctx, "/v1/countersign", req.Marshal())
	if err != nil {
		return deviceapi.CountersignResponse{}, err
	}
	return deviceapi.ParseCountersignResponse(body)
}

// Outcome is POST /v1/outcome. A refusal is a [*Refusal].
func (d *Device) Outcome(ctx context.Context, req deviceapi.OutcomeRequest) error {
	_, err := d.call(ctx, "/v1/outcome", req.Marshal())
	return err
}

func (d *Device) call(ctx context.Context, path string, body []byte) ([]byte, error) {
	answer, err := d.Post(ctx, Call{Path: path, Type: deviceapi.BodyType, Body: body})
	if err != nil {
		return nil, err
	}
	if answer.Status != http.StatusOK && answer.Status != http.StatusNoContent {
		return nil, answer.refusal()
	}
	return answer.Body, nil
}

// Check is what the device knows when it has a decision in hand, for
// [receipt.Check]; the caller adds services and amount of the order.
func (d *Device) Check(nonce protocol.Nonce, m2 []byte) (receipt.Check, error) {
	chal, err := message.ChallengeOf(m2)
	return receipt.Check{
		Root: d.Trust.Root, KeyCerts: d.Trust.KeyCerts(trust.UseDecision), Now: d.Trust.Time(uint64(time.Now().Unix())),
		Device: d.ID, Nonce: nonce, Challenges: []protocol.Challenge{chal},
	}, err
}
