package attack

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"time"

	"countersign/appliance/adminapi"
	"countersign/protocol"
	"countersign/protocol/deviceapi"
	"countersign/protocol/enrol"
	"countersign/protocol/message"
	"countersign/protocol/password"
	"countersign/protocol/receipt"
	"countersign/protocol/trust"
	"countersign/softhsm-test/harness"
	"countersign/softhsm-test/harness/device"
	"countersign/softhsm-test/harness/phone"
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
func (k Ask) Seal() (m1 []byte, es message.Secret) {
	kem, ok := k.Phone.Trust.Key(trust.UseKEM)
	if !ok {
		harness.Do(errors.New("phone: no kem key"))
		return nil, es
	}
	return harness.Must2(message.SealM1(kem.Recipient(k.Phone.Trust.Root.RootID()), k.P1.Marshal()))
}

// Apply relays the application. A refusal is no error.
func (k Ask) Apply(ctx context.Context) *Session {
	s := &Session{Ask: k}
	s.M1, s.ES = k.Seal()
	s.Req.M1 = s.M1
	if s.Req.Nonce == (protocol.Nonce{}) {
		_, _ = rand.Read(s.Req.Nonce[:]) // never fails, crypto/rand
	}
	s.Relay(ctx)
	return s
}

// Relay posts the apply of a session whose M1 is made, and opens what comes back.
func (s *Session) Relay(ctx context.Context) {
	s.Applied = Sent{What: "apply", Message: s.Req.M1}
	answer := harness.Must(s.At.Post(ctx, device.Call{Path: "/v1/apply", Type: deviceapi.BodyType, Body: s.Req.Marshal()}))
	s.Applied.Answer = answer.Body
	if answer.Status != http.StatusOK {
		s.Applied.Verdict = HTTP(answer.Status, answer.Code)
		return
	}
	res := harness.Must(deviceapi.ParseApplyResponse(answer.Body))
	s.M2, s.Handle, s.Level = res.M2, res.Handle, res.Level
	if kind, err := message.Kind(res.M2); err != nil || kind == message.KindKeyUpdate {
		s.Applied.Verdict = KeyUpdate
		harness.Do(err)
		return
	}
	s.Open(res.M2)
	s.Applied.Verdict = Challenged
	if s.P2.Code != 0 {
		s.Applied.Verdict = InM2(s.P2.Code)
	}
}

// Open opens M2 as the phone does.
func (s *Session) Open(m2 []byte) {
	chal := harness.Must(message.ChallengeOf(m2))
	channel := message.NewChannel(s.ES, s.M1, chal)
	raw := harness.Must(channel.OpenM2(m2))
	p2 := harness.Must(message.ParseP2(raw))
	s.Channel, s.P2 = channel, p2
	s.Stmt = message.NewStatement(s.Phone.Trust.Root.RootID(), s.P1.Marshal(), chal, raw)
}

// Must is Apply that must bring a challenge.
func (k Ask) Must(ctx context.Context) *Session {
	s := k.Apply(ctx)
	if s.Applied.Verdict != Challenged {
		harness.Fail("apply of %s for service %d: %s", k.Phone.Name, k.P1.Service, s.Applied.Verdict)
		return nil
	}
	return s
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
		k := cmp.Or(s.Phone.Verifier, new(password.Verifier)) // any proof, of a phone without a password
		proof := k.Proof(s.Stmt.Hash())
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
func (s *Session) M3(ctx context.Context, sign Sign) []byte {
	approval := message.Approval{Verdict: sign.Verdict, Slot: sign.Slot, Proof: sign.Proof}
	sig := harness.Must(message.Countersign(ctx, sign.Key, s.Stmt, approval))
	p3 := message.P3{Verdict: sign.Verdict, Signature: sig, Slot: sign.Slot, Proof: sign.Proof}
	return s.Channel.SealM3(sign.Attempt, p3.Marshal())
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
func (s *Session) Send(ctx context.Context, m3 []byte) Reply {
	return s.SendAt(ctx, s.At, deviceapi.CountersignRequest{Handle: s.Handle, M3: m3})
}

// SendAt posts any request to any device. It opens an M4 as the answer of this session.
func (s *Session) SendAt(ctx context.Context, at *device.Device, req deviceapi.CountersignRequest) Reply {
	r := Reply{Sent: Sent{What: "countersign", Message: req.M3}}
	answer := harness.Must(at.Post(ctx, device.Call{Path: "/v1/countersign", Type: deviceapi.BodyType, Body: req.Marshal()}))
	r.Answer = answer.Body
	if answer.Status != http.StatusOK {
		r.Verdict = HTTP(answer.Status, answer.Code)
		return r
	}
	r.Res = harness.Must(deviceapi.ParseCountersignResponse(answer.Body))
	raw := harness.Must(s.Channel.OpenM4(req.M3, r.Res.M4))
	r.P4 = harness.Must(message.ParseP4(raw))
	r.Verdict = InM4(r.P4.Result, r.P4.Reason)
	if r.P4.Result != r.Res.Result {
		harness.Fail("the phone is told %s, the device %s", r.P4.Result, r.Res.Result)
		return r
	}
	return r
}

// Try makes an M3 and sends it.
func (s *Session) Try(ctx context.Context, sign Sign) Reply {
	m3 := s.M3(ctx, sign)
	return s.Send(ctx, m3)
}

// Check is what the device knows, for a decision on this session or, with a second
// approver's, on this and that session.
func (s *Session) Check(second ...*Session) receipt.Check {
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
	harness.Do(err)
	return check
}

// Key is an ECDSA key in memory.
type Key = phone.Key

// NewKey makes a P-256 key.
func NewKey() Key { return phone.NewKey() }

// Phone is an enrolled client, or a stranger.
type Phone struct {
	phone.Phone
	Name string
	Cert []byte // its client certificate
}

// TrustDocument is the answer of GET /v1/trust.
func (a *Arena) TrustDocument(ctx context.Context) trust.Document {
	req := harness.Must(http.NewRequestWithContext(ctx, http.MethodGet, a.URL+"/v1/trust", nil))
	res := harness.Must(a.https.Do(req))
	defer func() { _ = res.Body.Close() }() // read to its end, or an error is returned
	raw := harness.Must(io.ReadAll(res.Body))
	return harness.Must(trust.ParseDocument(raw))
}

// Now is Unix seconds.
func Now() uint64 { return uint64(time.Now().Unix()) }

// Stranger makes a phone that is not enrolled.
func (a *Arena) Stranger() *Phone { return &Phone{Phone: *phone.Stranger(a.till.Trust)} }

// Full is a stranger with password and UV key.
func (a *Arena) Full() *Phone {
	p := a.Stranger()
	p.Give(phone.Full())
	return p
}

// Plain enrols a phone without password and UV key.
func (a *Arena) Plain(ctx context.Context, name string) *Phone {
	return a.Enrol(ctx, name, a.Stranger())
}

// Equipped enrols a phone with both, and with roles.
func (a *Arena) Equipped(ctx context.Context, name string, roles ...string) *Phone {
	return a.Enrol(ctx, name, a.Full(), roles...)
}

// Enrol enrols a stranger.
func (a *Arena) Enrol(ctx context.Context, name string, p *Phone, roles ...string) *Phone {
	code := a.Invitation(ctx, "client/"+name, adminapi.Invite{Roles: roles})
	body := harness.Must(json.Marshal(p.request(ctx, code)))
	answer := a.PostJSON(ctx, "/v1/enrol", body)
	if answer.Status != http.StatusOK {
		harness.Fail("enrolling %s: %s", name, answer.Verdict())
		return nil
	}
	response := harness.Must(enrol.ParseResponse(answer.Body))
	p.Name, p.Cert = name, response.ClientCert
	return p
}

// request is the enrolment request of an honest phone.
func (p *Phone) request(ctx context.Context, code enrol.ActivationCode) enrol.Request {
	_, req := harness.Must2(p.EnrolRequest(ctx, code))
	return req
}

// Next is an application at a level, with the next serial.
func (p *Phone) Next(service protocol.Service, level protocol.Level) message.P1 {
	p1 := p.Phone.Next(service)
	p1.Level = level
	return p1
}

// Random is n random bytes.
func Random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails, crypto/rand
	return b
}

// Move is one M3 of a session, and what must come back.
type Move struct {
	What string
	On   *Session
	Sign Sign
	Want Verdict
}

// Play makes moves one after the other, each a case.
func (a *Arena) Play(ctx context.Context, moves ...Move) {
	for _, m := range moves {
		reply := m.On.Try(ctx, m.Sign)
		a.Expect(reply.Named(m.What), m.Want)
	}
}

// Approve runs an honest authorization. A verdict other than want ends the test.
func (a *Arena) Approve(ctx context.Context, s *Session, want Verdict) (m3 []byte, r Reply) {
	m3 = s.M3(ctx, s.Honest())
	r = s.Send(ctx, m3)
	if r.Verdict != want {
		harness.Fail("honest countersignature of %s: %s; wanted %s", s.Phone.Name, r.Verdict, want)
		return nil, r
	}
	return m3, r
}

// Waiting is a first approval at level 4 that waits for an approver.
type Waiting struct {
	*Session
	M3    []byte
	Reply Reply
}

// Wait runs the first approval of a door at level 4.
func (a *Arena) Wait(ctx context.Context, p *Phone) Waiting {
	return a.WaitFor(ctx, a.AskFor(p, Door, 4))
}

// WaitFor runs any first approval at level 4.
func (a *Arena) WaitFor(ctx context.Context, ask Ask) (w Waiting) {
	w.Session = ask.Must(ctx)
	w.M3, w.Reply = a.Approve(ctx, w.Session, Pending)
	return w
}

// workers is how many calls are under way at once.
const workers = 8

// Each runs f for 0 to n-1, some at a time.
func Each(n int, f func(i int)) {
	harness.Each(n, workers, f)
}

// Storm sends one M3 n times at once. The appliance serves only a share of them at a time: those that find it busy are
// sent again until they get an answer.
func (s *Session) Storm(ctx context.Context, m3 []byte, n int) []Reply {
	replies := make([]Reply, n)
	busy := HTTP(429, protocol.CodeBusy)
	harness.Each(n, n, func(i int) {
		for replies[i] = s.Send(ctx, m3); replies[i].Verdict == busy && ctx.Err() == nil; {
			replies[i] = s.Send(ctx, m3)
		}
	})
	return replies
}
