package authorize

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"time"

	"countersign/appliance/store"
	"countersign/hsm"
	"countersign/policy"
	"countersign/protocol"
	"countersign/protocol/deviceapi"
	"countersign/protocol/message"
	"countersign/protocol/trust"
)

// Apply answers a phone's M1 that a device relays: with a challenge and its handle, with a key
// update, or with the error form of P2. It stores nothing. Of the client that M1 names it reads only
// the sums of approvals, if the level depends on them. Errors carry a code of PROTOCOL.md §4
// that is answered over HTTP, or wrap [hsm.ErrUnavailable].
func (a *Service) Apply(ctx context.Context, device store.Device, req deviceapi.ApplyRequest) (deviceapi.ApplyResponse, error) {
	now := a.now()
	ctx = hsm.NewWork(ctx)
	opened, err := a.open(ctx, req.M1, now)
	if errors.Is(err, protocol.CodeStaleKey) {
		return deviceapi.ApplyResponse{M2: a.keyUpdate(req.M1, now)}, nil
	}
	if err != nil {
		return deviceapi.ApplyResponse{}, err
	}
	first, err := a.pendingOf(ctx, device, req, opened.p1)
	if err != nil {
		return deviceapi.ApplyResponse{}, err
	}
	u := newNonce()
	chal := protocol.NewChallenge(req.Nonce, u)
	channel := message.NewChannel(opened.es, req.M1, chal)
	p2, err := a.challenge(ctx, device, req, applicant{opened.p1, first, now})
	if err != nil {
		return a.refuseApply(channel, chal, err)
	}
	p2.Now = uint32(now.Unix())
	raw := p2.Marshal()
	m2 := channel.SealM2(chal, raw)
	sealed, err := a.sealHandle(ctx, device.ID, handle{
		Issued: now.UnixMilli(), PRK: channel.PRK[:], TH2: channel.TH2[:], Root: opened.root, P1: opened.raw, P2: raw,
		Challenge: chal, U: u, Policy: a.rules.Active().Number, Reference: req.Order.Reference, First: first,
	})
	if err != nil {
		return deviceapi.ApplyResponse{}, err
	}
	a.metrics.applied(0)
	return deviceapi.ApplyResponse{M2: m2, Handle: sealed, Level: p2.Level, TTL: p2.TTL}, nil
}

// opened is a decrypted and parsed M1.
type opened struct {
	p1   message.P1
	raw  []byte
	es   message.Secret
	root protocol.RootID
}

// maxP1 bounds P1 in handles, bytes; the longest P1 of known keys has 117.
const maxP1 = 256

// open decrypts M1. The token does the one ECDH.
func (a *Service) open(ctx context.Context, m1 []byte, now time.Time) (opened, error) {
	msg, err := message.ParseM1(m1)
	if err != nil {
		return opened{}, err
	}
	key, held := a.keys.Recipient(ctx, msg.Epoch, now)
	if !held {
		return opened{}, fmt.Errorf("kem epoch %d modulo 64: %w", msg.Epoch, protocol.CodeStaleKey)
	}
	o := opened{root: key.Root}
	if o.raw, o.es, err = msg.Open(key, o.root); err != nil {
		return opened{}, fmt.Errorf("opening M1: %w", err)
	}
	if len(o.raw) > maxP1 {
		return opened{}, fmt.Errorf("P1 of %d bytes: %w", len(o.raw), protocol.CodeFormat)
	}
	o.p1, err = message.ParseP1(o.raw)
	return o, err
}

// keyUpdate returns an MU with every KeyCert that the phone may need to continue.
func (a *Service) keyUpdate(m1 []byte, now time.Time) []byte {
	msg, _ := message.ParseM1(m1) // Apply parsed it without an error
	return trust.KeyUpdate{Certs: a.keys.UpdateCerts(msg.Epoch, now)}.Marshal()
}

// applicant is what a phone asks for in M1.
type applicant struct {
	message.P1
	first *pending // that it may approve second
	at    time.Time
}

// challenge decides what the phone has to show and to sign.
func (a *Service) challenge(
	ctx context.Context, device store.Device, req deviceapi.ApplyRequest, by applicant,
) (message.P2, error) {
	if slow(req.Link) && by.Capabilities&message.CapabilityFullReceipt != 0 {
		return message.P2{}, fmt.Errorf("full receipt: %w", protocol.CodeFasterLink)
	}
	if by.Service == protocol.ServiceCoApproval {
		return a.coChallenge(device, req, by.P1, by.first)
	}
	if !slices.Contains(req.Order.Services, by.Service) {
		return message.P2{}, fmt.Errorf("service %d is not ordered: %w", by.Service, protocol.CodeService)
	}
	amount, text, err := agree(by.Proposal, req.Order)
	if err != nil {
		return message.P2{}, err
	}
	if _, exists := by.Level.Factors(); !exists {
		return message.P2{}, fmt.Errorf("level %d was requested: %w", by.Level, protocol.CodeLevel)
	}
	rules := a.rules.Active()
	asked := policy.Request{
		Service: by.Service, Amount: amount,
		Requested: by.Level, DeviceFloor: max(req.Floor, device.Floor), Strict: req.Strict,
	}
	if _, err := rules.Level(asked); err != nil {
		return message.P2{}, err // before anything of the client is read
	}
	if asked.Spent, err = a.spent(ctx, rules.Windows(by.Service), amount, by); err != nil {
		return message.P2{}, err
	}
	grant, err := rules.Level(asked)
	if err != nil {
		return message.P2{}, err
	}
	return message.P2{
		TTL: uint64(grant.TTL / time.Second), Level: grant.Level, Factors: grant.Factors,
		Device: device.ID.Handle(), DeviceName: device.Display, Amount: amount, Text: text,
	}, nil
}

// spent returns the sum of the client's approvals within each window. M1 is not signed: for an unknown
// client the sums are zero, after the same work. A record that does not fit its seal is denied,
// because its sums cannot be trusted. The transaction of the decision reads the sums again.
func (a *Service) spent(
	ctx context.Context, windows []time.Duration, amount *protocol.Amount, by applicant,
) (map[time.Duration]uint64, error) {
	if len(windows) == 0 {
		return nil, nil
	}
	var charges []store.Charge
	for _, window := range windows {
		charges = append(charges, charge(by.Service, amount, window, by.at))
	}
	used, err := a.store.Used(ctx, by.Client, charges)
	if errors.Is(err, store.ErrForged) {
		return nil, fmt.Errorf("%w: %w", err, protocol.CodePolicy)
	}
	if err != nil {
		return nil, fmt.Errorf("sums of client %s: %w", by.Client, err)
	}
	spent := map[time.Duration]uint64{}
	for i, window := range windows {
		spent[window] = used[i].Amount
	}
	return spent, nil
}

// slow reports whether a link is too slow for a full receipt: one QR code, one sound burst.
func slow(l deviceapi.LinkClass) bool { return l == deviceapi.LinkQR || l == deviceapi.LinkSound }

// agree merges the phone's proposal with the device's order. What both give must be equal.
func agree(proposal *message.Proposal, order deviceapi.Order) (*protocol.Amount, string, error) {
	if proposal == nil {
		return order.Amount, order.Text, nil
	}
	amount, text := order.Amount, order.Text
	if amount == nil {
		amount = proposal.Amount
	} else if proposal.Amount != nil && *proposal.Amount != *amount {
		return nil, "", fmt.Errorf("amount proposed is not the amount ordered: %w", protocol.CodeAmountDiffers)
	}
	if text == "" {
		text = proposal.Text
	} else if proposal.Text != "" && proposal.Text != text {
		return nil, "", fmt.Errorf("text proposed is not the text ordered: %w", protocol.CodeTextDiffers)
	}
	return amount, text, nil
}

// refuseApply seals the error form of P2. It returns an error without a code to the caller,
// because the phone must not learn of it.
func (a *Service) refuseApply(channel message.Channel, chal protocol.Challenge, cause error) (deviceapi.ApplyResponse, error) {
	code, ok := codeFor(cause)
	if !ok {
		return deviceapi.ApplyResponse{}, cause
	}
	a.metrics.applied(code)
	a.log.Debug("apply refused", "code", uint8(code), "error", cause)
	return deviceapi.ApplyResponse{M2: channel.SealM2(chal, message.P2{Code: code}.Marshal())}, nil
}

func newNonce() (n protocol.Nonce) {
	_, _ = rand.Read(n[:]) // never fails, crypto/rand
	return n
}

// codeFor is the only mapping from errors of the service to codes. ok is false for an error that
// is not in the table, of which the caller learns nothing.
func codeFor(err error) (code protocol.Code, ok bool) {
	if code, ok = protocol.CodeOf(err); ok {
		return code, true
	}
	for _, row := range policyCodes {
		if errors.Is(err, row.err) {
			return row.code, true
		}
	}
	return 0, false
}

var policyCodes = []struct {
	err  error
	code protocol.Code
}{
	{policy.ErrServiceUnknown, protocol.CodeService},
	{policy.ErrLevelUnavailable, protocol.CodeLevel},
	{policy.ErrAmountRequired, protocol.CodeAmountMissing},
	{policy.ErrAmountNotAllowed, protocol.CodeAmountNotAllowed},
	{policy.ErrAmountTooLarge, protocol.CodeAmountNotAllowed},
	{policy.ErrCurrency, protocol.CodeAmountNotAllowed},
}
