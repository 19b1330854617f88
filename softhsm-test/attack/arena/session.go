package arena

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"

	"countersign/protocol"
	"countersign/protocol/deviceapi"
	"countersign/protocol/message"
	"countersign/protocol/receipt"
	"countersign/protocol/trust"
	"countersign/softhsm-test/rig/device"
)

// The services of the default policy.
const (
	Door    protocol.Service = 100
	Payment protocol.Service = 200
	Vault   protocol.Service = 300
)

// Euros is an amount in cents.
func Euros(cents uint64) *protocol.Amount { return &protocol.Amount{Minor: cents, Currency: "EUR"} }

// Ask is an application about to be relayed.
type Ask struct {
	Phone *Phone
	At    *device.Device
	P1    message.P1
	Req   deviceapi.ApplyRequest // M1 and Nonce are made if they are not there
}

// AskFor is an application that is honest: what the phone asks is what the till sells.
func (a *Arena) AskFor(p *Phone, service protocol.Service, level protocol.Level) Ask {
	return Ask{Phone: p, At: a.till, P1: p.Next(service, level), Req: deviceapi.ApplyRequest{
		Order: deviceapi.Order{Services: []protocol.Service{service}}, Link: deviceapi.LinkWire,
	}}
}

// Pay is an honest application for a payment, with a text of 21 bytes.
func (a *Arena) Pay(p *Phone, cents uint64) Ask {
	ask := a.AskFor(p, Payment, 1)
	ask.Req.Order.Amount, ask.Req.Order.Text = Euros(cents), "Coffee and croissants"
	return ask
}

// Second is an honest application of an approver for what a handle names.
func (a *Arena) Second(p *Phone, first *Session, handle []byte) Ask {
	ask := a.AskFor(p, protocol.ServiceCoApproval, 1)
	ask.At, ask.Req.Order, ask.Req.Handle = first.At, first.Req.Order, handle
	return ask
}

// Session is one authorization as phone, relay and device see it together.
type Session struct {
	Ask
	M1, M2  []byte
	ES      message.Secret
	Channel message.Channel
	P2      message.P2
	Handle  []byte
	Stmt    message.Statement
	Applied Sent // the apply, and what came back
	Level   protocol.Level
}

// Seal makes M1.
func (k Ask) Seal() (m1 []byte, es message.Secret, err error) {
	kem, ok := k.Phone.Trust.Key(trust.UseKEM)
	if !ok {
		return nil, es, errors.New("phone: no kem key")
	}
	return message.SealM1(k.Phone.Trust.Root.RootID(), kem.Epoch, kem.KeyCert.Key, k.P1.Marshal())
}

// Apply relays the application. A refusal is no error.
func (k Ask) Apply(ctx context.Context) (*Session, error) {
	s := &Session{Ask: k}
	var err error
	if s.M1, s.ES, err = k.Seal(); err != nil {
		return nil, err
	}
	s.Req.M1 = s.M1
	if s.Req.Nonce == (protocol.Nonce{}) {
		_, _ = rand.Read(s.Req.Nonce[:]) // never fails, crypto/rand
	}
	return s, s.Relay(ctx)
}

// Relay posts the apply of a session whose M1 is made, and opens what comes back.
func (s *Session) Relay(ctx context.Context) error {
	s.Applied = Sent{What: "apply", Message: s.Req.M1}
	answer, err := s.At.Post(ctx, device.Call{Path: "/v1/apply", Type: deviceapi.BodyType, Body: s.Req.Marshal()})
	if err != nil {
		return err
	}
	s.Applied.Answer = answer.Body
	if answer.Status != http.StatusOK {
		s.Applied.Verdict = HTTP(answer.Status, answer.Code)
		return nil
	}
	res, err := deviceapi.ParseApplyResponse(answer.Body)
	if err != nil {
		return err
	}
	s.M2, s.Handle, s.Level = res.M2, res.Handle, res.Level
	if kind, err := message.Kind(res.M2); err != nil || kind == message.KindKeyUpdate {
		s.Applied.Verdict = KeyUpdate
		return err
	}
	if err := s.Open(res.M2); err != nil {
		return err
	}
	s.Applied.Verdict = Challenged
	if s.P2.Code != 0 {
		s.Applied.Verdict = InM2(s.P2.Code)
	}
	return nil
}

// Open opens M2 as the phone does.
func (s *Session) Open(m2 []byte) error {
	chal, err := message.ChallengeOf(m2)
	if err != nil {
		return err
	}
	channel := message.NewChannel(s.ES, s.M1, chal)
	raw, err := channel.OpenM2(m2)
	if err != nil {
		return err
	}
	p2, err := message.ParseP2(raw)
	if err != nil {
		return err
	}
	s.Channel, s.P2 = channel, p2
	s.Stmt = message.NewStatement(s.Phone.Trust.Root.RootID(), s.P1.Marshal(), chal, raw)
	return nil
}

// Must is Apply that must bring a challenge.
func (k Ask) Must(ctx context.Context) (*Session, error) {
	s, err := k.Apply(ctx)
	if err == nil && s.Applied.Verdict != Challenged {
		err = fmt.Errorf("apply of %s for service %d: %s", k.Phone.Name, k.P1.Service, s.Applied.Verdict)
	}
	return s, err
}

// Sign is what goes into an M3.
type Sign struct {
	Attempt uint8
	Verdict protocol.Verdict
	Slot    uint64
	Proof   []byte
	Key     Key
}

// Honest is an approval with all that the challenge asks for.
func (s *Session) Honest() Sign {
	sign := Sign{Verdict: protocol.Approve, Slot: protocol.SlotSigning, Key: s.Phone.Key}
	if s.P2.Factors.Has(protocol.FactorUV) && s.Phone.UV != nil {
		sign.Slot, sign.Key = protocol.SlotUV, *s.Phone.UV
	}
	if s.P2.Factors.Has(protocol.FactorPassword) {
		proof := s.Phone.K.Proof(s.Stmt.Hash())
		sign.Proof = proof[:]
	}
	return sign
}

// Guess is an honest approval with a wrong password.
func (s *Session) Guess(attempt uint8) Sign {
	sign := s.Honest()
	sign.Attempt, sign.Proof = attempt, make([]byte, message.ProofSize)
	_, _ = rand.Read(sign.Proof) // never fails, crypto/rand
	return sign
}

// M3 makes a message.
func (s *Session) M3(ctx context.Context, sign Sign) ([]byte, error) {
	approval := message.Approval{Verdict: sign.Verdict, Slot: sign.Slot, Proof: sign.Proof}
	sig, err := message.Countersign(ctx, sign.Key, s.Stmt, approval)
	if err != nil {
		return nil, err
	}
	p3 := message.P3{Verdict: sign.Verdict, Signature: sig, Slot: sign.Slot, Proof: sign.Proof}
	return s.Channel.SealM3(sign.Attempt, p3.Marshal()), nil
}

// Reply is what came back for an M3.
type Reply struct {
	Sent
	P4  message.P4
	Res deviceapi.CountersignResponse
}

// Named is the reply under another name, for the report.
func (r Reply) Named(what string) Sent {
	r.What = what
	return r.Sent
}

// Send posts an M3 under the session's own handle and at its own device.
func (s *Session) Send(ctx context.Context, m3 []byte) (Reply, error) {
	return s.SendAt(ctx, s.At, deviceapi.CountersignRequest{Handle: s.Handle, M3: m3})
}

// SendAt posts whatever wherever. An M4 is opened as this session's answer to the
// M3.
func (s *Session) SendAt(ctx context.Context, at *device.Device, req deviceapi.CountersignRequest) (Reply, error) {
	r := Reply{Sent: Sent{What: "countersign", Message: req.M3}}
	answer, err := at.Post(ctx, device.Call{Path: "/v1/countersign", Type: deviceapi.BodyType, Body: req.Marshal()})
	if err != nil {
		return r, err
	}
	r.Answer = answer.Body
	if answer.Status != http.StatusOK {
		r.Verdict = HTTP(answer.Status, answer.Code)
		return r, nil
	}
	if r.Res, err = deviceapi.ParseCountersignResponse(answer.Body); err != nil {
		return r, err
	}
	raw, err := s.Channel.OpenM4(req.M3, r.Res.M4)
	if err != nil {
		return r, fmt.Errorf("M4: %w", err)
	}
	if r.P4, err = message.ParseP4(raw); err != nil {
		return r, fmt.Errorf("P4: %w", err)
	}
	r.Verdict = InM4(r.P4.Result, r.P4.Reason)
	if r.P4.Result != r.Res.Result {
		return r, fmt.Errorf("the phone is told %s, the device %s", r.P4.Result, r.Res.Result)
	}
	return r, nil
}

// Try makes an M3 and sends it.
func (s *Session) Try(ctx context.Context, sign Sign) (Reply, error) {
	m3, err := s.M3(ctx, sign)
	if err != nil {
		return Reply{}, err
	}
	return s.Send(ctx, m3)
}

// Check is what the device knows, for a decision on this session or, with a second
// approver's, on this and that session.
func (s *Session) Check(second ...*Session) (receipt.Check, error) {
	last := s
	for _, last = range second {
	}
	check, err := s.At.Check(last.Req.Nonce, last.M2)
	if last != s {
		chal, chalErr := message.ChallengeOf(s.M2)
		check.Challenges, err = append([]protocol.Challenge{chal}, check.Challenges...), errors.Join(err, chalErr)
	}
	check.KeyCerts = append(check.KeyCerts, s.At.Trust.KeyCerts(trust.UseClientCA)...)
	check.Services, check.Amount, check.Floor, check.Strict = s.Req.Order.Services, s.Req.Order.Amount, s.P2.Level, s.Req.Strict
	return check, err
}
