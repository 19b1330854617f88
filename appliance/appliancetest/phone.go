package appliancetest

import (
	"context"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"slices"
	"testing"

	"countersign/appliance/enrol"
	"countersign/appliance/store"
	"countersign/protocol"
	"countersign/protocol/derive"
	"countersign/protocol/deviceapi"
	protocolenrol "countersign/protocol/enrol"
	"countersign/protocol/message"
	"countersign/protocol/password"
	"countersign/protocol/receipt"
	"countersign/protocol/trust"
)

// Services of the default policy.
const (
	Door    protocol.Service = 100
	Payment protocol.Service = 200
	Vault   protocol.Service = 300
)

// EUR returns an amount in cents.
func EUR(minor uint64) *protocol.Amount { return &protocol.Amount{Minor: minor, Currency: "EUR"} }

// WrongProof is the proof of a wrong password.
var WrongProof = make([]byte, message.ProofSize)

// Phone is the client's side, from the protocol package alone.
type Phone struct {
	b        *Bench
	Name     string
	ID       protocol.ClientID
	Key      SoftKey
	UV       *SoftKey
	Verifier *password.Verifier
	Counter  uint32

	Attestation []byte // of the UV key; empty: none is sent
}

// SoftKey is a signing key in memory.
type SoftKey struct{ *ecdsa.PrivateKey }

// NewSoftKey returns a new key.
func NewSoftKey() SoftKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	return SoftKey{key}
}

// Point returns the public key.
func (k SoftKey) Point() protocol.PublicKey {
	p, err := protocol.CompressKey(&k.PublicKey)
	if err != nil {
		panic(err)
	}
	return p
}

// SignDigest implements [protocol.DigestSigner].
func (k SoftKey) SignDigest(_ context.Context, digest []byte) ([]byte, error) {
	r, s, err := ecdsa.Sign(rand.Reader, k.PrivateKey, digest)
	if err != nil {
		return nil, err
	}
	sig := make([]byte, protocol.SignatureSize)
	r.FillBytes(sig[:32])
	s.FillBytes(sig[32:])
	return sig, nil
}

// Stranger returns a phone that was never enrolled.
func (b *Bench) Stranger() *Phone {
	key := NewSoftKey()
	return &Phone{b: b, Key: key, ID: protocol.ClientIDOf(key.Point())}
}

// EnrolPhone enrols a phone without password or UV key.
func (b *Bench) EnrolPhone(name string) *Phone {
	b.Helper()
	return b.EnrolAs(name, b.Stranger())
}

// EnrolFull enrols a phone with password and UV key, with these roles.
func (b *Bench) EnrolFull(name string, roles ...string) *Phone {
	b.Helper()
	return b.EnrolAs(name, b.FullPhone(), roles...)
}

// FullPhone returns a phone with password and UV key that was never enrolled.
func (b *Bench) FullPhone() *Phone {
	p, uv := b.Stranger(), NewSoftKey()
	p.UV, p.Verifier = &uv, new(password.Verifier)
	_, _ = rand.Read(p.Verifier[:])
	return p
}

// EnrolAs invites and enrols a phone.
func (b *Bench) EnrolAs(name string, p *Phone, roles ...string) *Phone {
	b.Helper()
	p.Name = name
	code, _, err := b.Enrol.Invite(b.Context(), enrol.Invite{Kind: store.KindClient, Name: name, Roles: roles})
	if err != nil {
		b.Fatal(err)
	}
	if _, err := b.Enrol.Client(b.Context(), p.Request(code)); err != nil {
		b.Fatal(err)
	}
	return p
}

// Request returns the phone's enrolment request.
func (p *Phone) Request(code protocolenrol.ActivationCode) []byte {
	p.b.Helper()
	req := protocolenrol.Request{ActivationCode: code, SigningKey: p.Key.Point()}
	var uv protocol.DigestSigner
	if p.UV != nil {
		point := p.UV.Point()
		req.UVKey, uv = &point, *p.UV
		if len(p.Attestation) > 0 {
			req.Attestation = p.Attestation
		}
	}
	if p.Verifier != nil {
		req.Password = p.password()
	}
	req, err := protocolenrol.Sign(p.b.Context(), req, p.Key, uv)
	if err != nil {
		p.b.Fatal(err)
	}
	body, err := json.Marshal(req)
	if err != nil {
		p.b.Fatal(err)
	}
	return body
}

// password wraps the phone's verifier for the appliance's enrol key.
func (p *Phone) password() *protocolenrol.Password {
	p.b.Helper()
	ephemeral, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		p.b.Fatal(err)
	}
	point, err := protocol.CompressPoint(ephemeral.PublicKey().Bytes())
	if err != nil {
		p.b.Fatal(err)
	}
	enrol, _ := p.b.Trust.Key(trust.UseEnrol)
	wrapped, err := password.Wrap(*p.Verifier, ephemeral, derive.PasswordImport{
		Root: p.b.Trust.Root.RootID(), Ephemeral: point, Enrol: enrol.KeyCert.Key, SigningKey: p.Key.Point(),
	})
	if err != nil {
		p.b.Fatal(err)
	}
	d := password.Default
	return &protocolenrol.Password{
		MemoryKiB: d.MemoryKiB, Iterations: d.Iterations, Parallelism: uint8(d.Parallelism), Ephemeral: point, Wrapped: [40]byte(wrapped),
	}
}

// P1 returns the phone's next application.
func (p *Phone) P1(service protocol.Service) message.P1 {
	p.Counter++
	var random [8]byte
	_, _ = rand.Read(random[:])
	return message.P1{Client: p.ID, Serial: protocol.NewSerial(p.Counter, random), Service: service, Level: 1}
}

// Apply runs the first round trip.
func (p *Phone) Apply(p1 message.P1, order deviceapi.Order) (*Session, error) {
	p.b.Helper()
	return p.ApplyWith(p1, deviceapi.ApplyRequest{Order: order, Link: deviceapi.LinkWire})
}

// ApplyWith is Apply with the rest of what the device sends.
func (p *Phone) ApplyWith(p1 message.P1, req deviceapi.ApplyRequest) (*Session, error) {
	p.b.Helper()
	kem, ok := p.b.Trust.Key(trust.UseKEM)
	if !ok {
		p.b.Fatal("no kem key")
	}
	s := &Session{p: p, P1: p1}
	_, _ = rand.Read(s.Nonce[:])
	var err error
	if s.M1, s.es, err = message.SealM1(kem.Recipient(p.b.Trust.Root.RootID()), p1.Marshal()); err != nil {
		p.b.Fatal(err)
	}
	req.M1, req.Nonce = s.M1, s.Nonce
	s.Res, err = p.b.Authorize.Apply(p.b.Context(), p.b.Gate, req)
	if err != nil {
		return s, err
	}
	s.open()
	return s, nil
}

// SealOnly returns a session with an M1 that is not sent.
func (p *Phone) SealOnly() *Session {
	p.b.Helper()
	kem, _ := p.b.Trust.Key(trust.UseKEM)
	s := &Session{p: p, P1: p.P1(Door)}
	var err error
	if s.M1, s.es, err = message.SealM1(kem.Recipient(p.b.Trust.Root.RootID()), s.P1.Marshal()); err != nil {
		p.b.Fatal(err)
	}
	return s
}

// Session is one authorization as the phone sees it.
type Session struct {
	p         *Phone
	P1        message.P1
	M1        []byte
	Channel   message.Channel
	es        message.Secret
	Nonce     protocol.Nonce
	Res       deviceapi.ApplyResponse
	P2        message.P2
	Statement message.Statement
}

func (s *Session) open() {
	t := s.p.b
	t.Helper()
	chal, err := message.ChallengeOf(s.Res.M2)
	if err != nil {
		t.Fatal(err)
	}
	s.Channel = message.NewChannel(s.es, s.M1, chal)
	raw, err := s.Channel.OpenM2(s.Res.M2)
	if err != nil {
		t.Fatal(err)
	}
	if s.P2, err = message.ParseP2(raw); err != nil {
		t.Fatal(err)
	}
	s.Statement = message.NewStatement(t.Trust.Root.RootID(), s.P1.Marshal(), chal, raw)
}

// Challenge is Apply for an order of this one service, which must be granted.
func (p *Phone) Challenge(service protocol.Service, amount *protocol.Amount) *Session {
	p.b.Helper()
	s, err := p.Apply(p.P1(service), deviceapi.Order{Services: []protocol.Service{service}, Amount: amount})
	if err != nil {
		p.b.Fatal(err)
	}
	if s.P2.Code != 0 {
		p.b.Fatalf("challenge refused with code %d", s.P2.Code)
	}
	return s
}

// m3 is the phone's Answer.
func (s *Session) M3(v protocol.Verdict) []byte {
	s.p.b.Helper()
	approval := message.Approval{Verdict: v, Slot: protocol.SlotSigning}
	sig, err := message.Countersign(s.p.b.Context(), s.p.Key, s.Statement, approval)
	if err != nil {
		s.p.b.Fatal(err)
	}
	return s.Channel.SealM3(0, message.P3{Verdict: v, Signature: sig, Slot: protocol.SlotSigning}.Marshal())
}

// With returns an M3 with this attempt and proof; nil is the proof of the right password.
func (s *Session) With(attempt uint8, proof []byte) []byte {
	s.p.b.Helper()
	approval := message.Approval{Verdict: protocol.Approve, Slot: protocol.SlotSigning, Proof: proof}
	var signer protocol.DigestSigner = s.p.Key
	if s.P2.Factors.Has(protocol.FactorUV) {
		approval.Slot, signer = protocol.SlotUV, *s.p.UV
	}
	if proof == nil {
		right := s.p.Verifier.Proof(s.Statement.Hash())
		approval.Proof = right[:]
	}
	sig, err := message.Countersign(s.p.b.Context(), signer, s.Statement, approval)
	if err != nil {
		s.p.b.Fatal(err)
	}
	return s.Channel.SealM3(attempt, message.P3{Verdict: protocol.Approve, Signature: sig, Slot: approval.Slot, Proof: approval.Proof}.Marshal())
}

// Right answers with the right password.
func (s *Session) Right() Answer { return s.Must(s.With(0, nil)) }

// Approve approves without a password.
func (s *Session) Approve() Answer { return s.Must(s.M3(protocol.Approve)) }

// Answer is the answer to an M3.
type Answer struct {
	P4  message.P4
	Res deviceapi.CountersignResponse
}

// Send sends an M3.
func (s *Session) Send(m3 []byte) (Answer, error) { return s.SendIn(s.p.b.Context(), m3) }

// SendIn sends an M3 of a caller that may go away.
func (s *Session) SendIn(ctx context.Context, m3 []byte) (Answer, error) {
	t := s.p.b
	t.Helper()
	res, err := t.Authorize.Countersign(ctx, t.Gate, deviceapi.CountersignRequest{Handle: s.Res.Handle, M3: m3})
	if err != nil {
		return Answer{}, err
	}
	raw, err := s.Channel.OpenM4(m3, res.M4)
	if err != nil {
		t.Fatal(err)
	}
	p4, err := message.ParseP4(raw)
	if err != nil {
		t.Fatal(err)
	}
	if p4.Result != res.Result {
		t.Fatalf("the phone is told %s, the device %s", p4.Result, res.Result)
	}
	return Answer{P4: p4, Res: res}, nil
}

// Must sends an M3 that must be answered.
func (s *Session) Must(m3 []byte) Answer {
	s.p.b.Helper()
	a, err := s.Send(m3)
	if err != nil {
		s.p.b.Fatal(err)
	}
	return a
}

// Verify checks a decision as the device does.
func (s *Session) Verify(decision []byte, amount *protocol.Amount) (receipt.Decision, error) {
	chal, err := message.ChallengeOf(s.Res.M2)
	if err != nil {
		return receipt.Decision{}, err
	}
	return receipt.Check{
		Root: s.p.b.Trust.Root, KeyCerts: s.p.b.Trust.KeyCerts(trust.UseDecision), Now: uint64(s.p.b.Clock.Now().Unix()),
		Device: s.p.b.Gate.ID, Nonce: s.Nonce, Challenges: []protocol.Challenge{chal},
		Services: []protocol.Service{s.P1.Service}, Amount: amount, Floor: 1,
	}.Verify(decision)
}

// Check returns what a device at this level verifies a decision by.
func (s *Session) Check(level protocol.Level, services ...protocol.Service) receipt.Check {
	s.p.b.Helper()
	chal, err := message.ChallengeOf(s.Res.M2)
	if err != nil {
		s.p.b.Fatal(err)
	}
	certs := slices.Concat(s.p.b.Trust.KeyCerts(trust.UseDecision), s.p.b.Trust.KeyCerts(trust.UseClientCA))
	return receipt.Check{
		Root: s.p.b.Trust.Root, KeyCerts: certs, Now: uint64(s.p.b.Clock.Now().Unix()),
		Device: s.p.b.Gate.ID, Nonce: s.Nonce, Challenges: []protocol.Challenge{chal}, Services: services, Floor: level,
	}
}

// Decision approves a challenge and returns the verified decision.
func (s *Session) Decision() (receipt.Decision, error) {
	a, err := s.Send(s.M3(protocol.Approve))
	if err != nil {
		return receipt.Decision{}, err
	}
	return s.Verify(a.Res.Decision, nil)
}

// Expect requires an answer with this result and reason.
func Expect(t *testing.T, a Answer, result protocol.Result, reason protocol.Code) {
	t.Helper()
	if a.P4.Result != result || a.P4.Reason != reason {
		t.Fatalf("answered %s, code %d; want %s, code %d", a.P4.Result, a.P4.Reason, result, reason)
	}
}

// Pending runs a first approval of 10,000.00 EUR.
func (b *Bench) Pending(p *Phone) (*Session, Answer) {
	b.Helper()
	s := p.Challenge(Payment, EUR(1_000_000))
	if s.P2.Level != 4 || s.P2.Factors != 15 {
		b.Fatalf("level %d, factors %s", s.P2.Level, s.P2.Factors)
	}
	a := s.Must(s.With(0, nil))
	Expect(b.T, a, protocol.ResultPending, protocol.CodePending)
	if a.Res.NextHandle == nil || a.Res.Decision == nil {
		b.Fatalf("pending with a handle of %d bytes and a decision of %d", len(a.Res.NextHandle), len(a.Res.Decision))
	}
	return s, a
}

// Second is the challenge to a second approver.
func (p *Phone) Second(handle []byte) *Session {
	p.b.Helper()
	s, err := p.ApplyWith(p.P1(protocol.ServiceCoApproval), deviceapi.ApplyRequest{
		Order: deviceapi.Order{Services: []protocol.Service{Payment}, Amount: EUR(1_000_000)}, Link: deviceapi.LinkWire, Handle: handle,
	})
	if err != nil || s.P2.Code != 0 {
		p.b.Fatalf("second challenge: code %d, %v", s.P2.Code, err)
	}
	return s
}
