package protocol_test

import (
	"context"
	"testing"

	"countersign/protocol"
	"countersign/protocol/message"
)

func benchSession(b *testing.B) *session {
	b.Helper()
	s := newSession(b, 2)
	s.run(b)
	b.ReportAllocs()
	return s
}

func BenchmarkSealM1(b *testing.B) {
	s := benchSession(b)
	for b.Loop() {
		if _, _, err := message.SealM1(s.recipient(), s.p1); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkOpenM1(b *testing.B) {
	s := benchSession(b)
	for b.Loop() {
		m1, err := message.ParseM1(s.m1)
		if err != nil {
			b.Fatal(err)
		}
		p1, _, err := m1.Open(s.kem, s.root)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := message.ParseP1(p1); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkSealM2(b *testing.B) {
	s := benchSession(b)
	p2 := s.payload2()
	for b.Loop() {
		s.server.SealM2(s.chal, p2.Marshal())
	}
}

func BenchmarkOpenM2(b *testing.B) {
	s := benchSession(b)
	for b.Loop() {
		p2, err := s.client1.OpenM2(s.m2)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := message.ParseP2(p2); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkSealM3(b *testing.B) {
	s := benchSession(b)
	p3 := message.P3{Verdict: protocol.Approve, Slot: protocol.SlotSigning, Proof: s.approval().Proof}
	for b.Loop() {
		s.client1.SealM3(0, p3.Marshal())
	}
}

func BenchmarkOpenM3(b *testing.B) {
	s := benchSession(b)
	for b.Loop() {
		_, p3, err := s.server.OpenM3(s.m3)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := message.ParseP3(p3); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCountersign(b *testing.B) {
	s := benchSession(b)
	stmt := message.NewStatement(s.root, s.p1, s.chal, s.p2)
	for b.Loop() {
		if _, err := message.Countersign(context.Background(), s.client, stmt, s.approval()); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkVerifyCountersign(b *testing.B) {
	s := benchSession(b)
	stmt := message.NewStatement(s.root, s.p1, s.chal, s.p2)
	sig, err := message.Countersign(context.Background(), s.client, stmt, s.approval())
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if err := message.VerifyCountersign(s.clientKey, stmt, s.approval(), sig[:]); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkSealM4(b *testing.B) {
	s := benchSession(b)
	p4 := message.P4{Result: protocol.ResultApproved}
	for b.Loop() {
		s.server.SealM4(s.m3, message.ReceiptNonce{1}, p4.Marshal())
	}
}

func BenchmarkOpenM4(b *testing.B) {
	s := benchSession(b)
	for b.Loop() {
		p4, err := s.client1.OpenM4(s.m3, s.m4)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := message.ParseP4(p4); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkParsePublicKey(b *testing.B) {
	s := benchSession(b)
	for b.Loop() {
		if _, err := protocol.ParsePublicKey(s.clientKey[:]); err != nil {
			b.Fatal(err)
		}
	}
}
