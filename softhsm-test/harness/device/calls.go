package device

import (
	"context"
	"crypto/rand"
	"net/http"
	"time"

	"countersign/protocol"
)

// NewNonce is the device's 16 bytes of an apply.
func NewNonce() (n protocol.Nonce) {
	_, _ = rand.Read(n[:]) // never fails, crypto/rand
	return n
}

// Apply is POST /v1/apply. A refusal is a [*Refusal].
func (d *Device) Apply(ctx context.Context, req protocol.ApplyRequest) (protocol.ApplyResponse, error) {
	body, err := d.call(ctx, "/v1/apply", req.Marshal())
	if err != nil {
		return protocol.ApplyResponse{}, err
	}
	return protocol.ParseApplyResponse(body)
}

// Countersign is POST /v1/countersign. A refusal is a [*Refusal].
func (d *Device) Countersign(ctx context.Context, req protocol.CountersignRequest) (protocol.CountersignResponse, error) {
	body, err := d.call(ctx, "/v1/countersign", req.Marshal())
	if err != nil {
		return protocol.CountersignResponse{}, err
	}
	return protocol.ParseCountersignResponse(body)
}

// Outcome is POST /v1/outcome. A refusal is a [*Refusal].
func (d *Device) Outcome(ctx context.Context, req protocol.OutcomeRequest) error {
	_, err := d.call(ctx, "/v1/outcome", req.Marshal())
	return err
}

func (d *Device) call(ctx context.Context, path string, body []byte) ([]byte, error) {
	answer, err := d.Post(ctx, Call{Path: path, Type: protocol.BodyType, Body: body})
	if err != nil {
		return nil, err
	}
	if answer.Status != http.StatusOK && answer.Status != http.StatusNoContent {
		return nil, answer.refusal()
	}
	return answer.Body, nil
}

// Check is what the device knows when it has a decision in hand, for
// [protocol.DecisionCheck]; the caller adds services and amount of the order.
func (d *Device) Check(nonce protocol.Nonce, m2 []byte) (protocol.DecisionCheck, error) {
	chal, err := protocol.ChallengeOf(m2)
	return protocol.DecisionCheck{
		Root: d.Trust.Root, KeyCerts: d.Trust.KeyCerts(protocol.UseDecision), Now: d.Trust.Time(uint64(time.Now().Unix())),
		Device: d.ID, Nonce: nonce, Challenges: []protocol.Challenge{chal},
	}, err
}
