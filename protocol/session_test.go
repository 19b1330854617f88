package protocol_test

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"testing"

	"countersign/protocol"
	"countersign/protocol/message"
)

// session is one authorization with both ends.
type session struct {
	kem       message.KEM
	kemKey    protocol.PublicKey
	root      protocol.RootID
	client    keySigner
	clientKey protocol.PublicKey
	chal      protocol.Challenge
	level     protocol.Level

	p1, p2, m1, m2, m3, m4 []byte
	client1, server        message.Channel
}

func newSession(t testing.TB, level protocol.Level) *session {
	t.Helper()
	key, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s := &session{client: newKeySigner(t), level: level, chal: protocol.NewChallenge(protocol.Nonce{1}, protocol.Nonce{2})}
	s.kem = message.NewKEM(message.Suite1, key)
	s.kemKey = must(protocol.CompressPoint(key.PublicKey().Bytes()))
	s.clientKey = s.client.public(t)
	s.root = newKeySigner(t).public(t).RootID()
	s.p1 = message.P1{Client: protocol.ClientIDOf(s.clientKey), Serial: protocol.NewSerial(7, [8]byte{9}), Service: 1027, Level: level}.Marshal()
	s.p2 = s.payload2().Marshal()
	return s
}

func (s *session) recipient() message.Recipient {
	return message.Recipient{Root: s.root, Suite: message.Suite1, Epoch: 16, Key: s.kemKey}
}

func (s *session) payload2() message.P2 {
	factors, _ := s.level.Factors()
	p := message.P2{
		TTL: 90, Now: 1_795_000_000, Level: s.level, Factors: factors,
		Device: protocol.DeviceHandle{1, 2, 3, 4}, DeviceName: "Blue Gate Coffee #4",
	}
	if s.level > 1 {
		p.Amount, p.Text = &protocol.Amount{Minor: 125_442, Currency: "EUR"}, "Order 88213, 1 laptop"
	}
	return p
}

func (s *session) approval() message.Approval {
	a := message.Approval{Verdict: protocol.Approve, Slot: protocol.SlotSigning}
	if s.level > 1 {
		a.Proof = bytes.Repeat([]byte{5}, message.ProofSize)
	}
	return a
}

// run makes and opens the four messages.
func (s *session) run(t testing.TB) {
	t.Helper()
	var es message.Secret
	var err error
	if s.m1, es, err = message.SealM1(s.recipient(), s.p1); err != nil {
		t.Fatal(err)
	}
	s.client1 = message.NewChannel(es, s.m1, s.chal)
	parsed, err := message.ParseM1(s.m1)
	if err != nil {
		t.Fatal(err)
	}
	p1, serverES, err := parsed.Open(s.kem, s.root)
	if err != nil || serverES != es || parsed.Epoch != 16 || parsed.Suite != 1 {
		t.Fatalf("M1 opens with %v, epoch %d, suite %d", err, parsed.Epoch, parsed.Suite)
	}
	mustEqual(t, "P1", p1, s.p1)
	s.server = message.NewChannel(serverES, s.m1, s.chal)
	s.m2 = s.server.SealM2(s.chal, s.p2)
	p2, err := s.client1.OpenM2(s.m2)
	mustOpen(t, "P2", err)
	mustEqual(t, "P2", p2, s.p2)
	s.finish(t)
}

func (s *session) finish(t testing.TB) {
	t.Helper()
	stmt := message.NewStatement(s.root, s.p1, s.chal, s.p2)
	sig, err := message.Countersign(context.Background(), s.client, stmt, s.approval())
	mustOpen(t, "countersignature", err)
	sent := message.P3{Verdict: protocol.Approve, Signature: sig, Proof: s.approval().Proof, Slot: protocol.SlotSigning}
	s.m3 = s.client1.SealM3(0, sent.Marshal())
	attempt, raw, err := s.server.OpenM3(s.m3)
	mustOpen(t, "M3", err)
	p3, err := message.ParseP3(raw)
	mustOpen(t, "P3", err)
	if err := message.VerifyCountersign(s.clientKey, stmt, p3.Approval(), p3.Signature[:]); err != nil || attempt != 0 {
		t.Fatalf("attempt %d: %v", attempt, err)
	}
	s.m4 = s.server.SealM4(s.m3, message.ReceiptNonce{3}, message.P4{Result: protocol.ResultApproved}.Marshal())
	raw, err = s.client1.OpenM4(s.m3, s.m4)
	mustOpen(t, "M4", err)
	p4, err := message.ParseP4(raw)
	if err != nil || p4.Result != protocol.ResultApproved {
		t.Fatalf("P4 is %+v: %v", p4, err)
	}
}

func mustOpen(t testing.TB, what string, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

func mustEqual(t testing.TB, what string, got, want []byte) {
	t.Helper()
	if !bytes.Equal(got, want) {
		t.Fatalf("%s is\n%x, want\n%x", what, got, want)
	}
}
