package storetest

import (
	"encoding/hex"
	"testing"
	"time"

	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/protocol"
	"countersign/protocol/message"
	"countersign/protocol/receipt"
)

var spendTests = map[string]func(*testing.T, *fixture){
	"SpendApproved":     testSpendApproved,
	"SpendReplay":       testSpendReplay,
	"SpendStrict":       testSpendStrict,
	"SpendConflict":     testSpendConflict,
	"SpendDenied":       testSpendDenied,
	"SpendUnknown":      testSpendUnknown,
	"SpendBounds":       testSpendBounds,
	"SpendTransaction":  testSpendTransaction,
	"SpendRecord":       testSpendRecord,
	"SpendOtherClients": testSpendOtherClients,
}

// spend commits s and requires this reason.
func (f *fixture) spend(s store.Spend, reason protocol.Code) store.Outcome {
	f.t.Helper()
	out, err := f.Spend(f.t.Context(), s)
	f.must(err)
	want := protocol.ResultDenied
	if reason == 0 {
		want = protocol.ResultApproved
	}
	if out.Result != want || out.Reason != reason || out.Decision.Result != want {
		f.t.Fatalf("outcome is %v, reason %d; want %v, %d", out.Result, out.Reason, want, reason)
	}
	return out
}

func (f *fixture) approves(s store.Spend) store.Outcome {
	f.t.Helper()
	out := f.spend(s, 0)
	if out.Replayed {
		f.t.Fatal("a first countersignature was answered as a repeat")
	}
	return out
}

func (f *fixture) highest() int64 {
	f.t.Helper()
	c, err := f.Client(f.t.Context(), f.p.Client.ID)
	f.must(err)
	return c.Highest
}

func (f *fixture) setClient(status store.Status) {
	f.t.Helper()
	c, err := f.Client(f.t.Context(), f.p.Client.ID)
	f.must(err)
	c.Status, c.Version = status, c.Version+1
	f.must(f.UpdateClient(f.t.Context(), c, Note(status.String())))
}

func (f *fixture) setDevice(status store.Status) {
	f.t.Helper()
	d, err := f.Device(f.t.Context(), f.p.Device.ID)
	f.must(err)
	d.Status, d.Version = status, d.Version+1
	f.must(f.UpdateDevice(f.t.Context(), d, Note(status.String())))
}

func testSpendApproved(t *testing.T, f *fixture) {
	s := f.p.Spend(0) // counters begin at 0
	s.Now = s.Now.In(time.FixedZone("", 3600)).Add(789)
	out := f.approves(s)
	f.same(out.Decision, s.Decision)
	f.same(out.At, Epoch)
	if got := f.highest(); got != 0 {
		t.Fatalf("highest counter is %d, want 0", got)
	}
	got, err := f.Answered(t.Context(), s.AnswerKey)
	f.must(err)
	out.Replayed = true
	f.same(got, out)
}

func testSpendReplay(t *testing.T, f *fixture) {
	s := f.p.Spend(5)
	_, err := f.Answered(t.Context(), s.AnswerKey)
	f.fails(err, store.ErrNotFound)
	first := f.approves(s)
	before := f.tally()

	// The answer stays the same after any change.
	f.setClient(store.Revoked)
	s.PolicyVersion, s.Denial, s.Salt, s.Now = 9, protocol.CodeUserRefused, audit.NewSalt(), Epoch.Add(time.Hour)
	s.Decision = f.p.Spend(5).Decision
	again := f.spend(s, 0)
	first.Replayed = true
	f.same(again, first)
	before.Records++ // the revocation's
	f.same(f.tally(), before)

	for name, change := range map[string]func(*store.AnswerKey){
		"client":  func(k *store.AnswerKey) { k.Client[0]++ },
		"counter": func(k *store.AnswerKey) { k.Serial[3]++ },
		"serial":  func(k *store.AnswerKey) { k.Serial[11]++ },
		"attempt": func(k *store.AnswerKey) { k.Attempt++ },
		"m3":      func(k *store.AnswerKey) { k.M3[31]++ },
	} {
		key := s.AnswerKey
		change(&key)
		if _, err := f.Answered(t.Context(), key); err == nil {
			t.Errorf("another %s has the same answer", name)
		} else {
			f.fails(err, store.ErrNotFound)
		}
	}
}

// Strict evidence is part of the decision and has to come back with it.
func testSpendStrict(t *testing.T, f *fixture) {
	s := f.third(1)
	s.Decision.Amount = nil
	s.Decision.Evidence = []receipt.Evidence{{
		Statement: []byte("statement"), ClientCert: []byte("cert"), Signature: s.Evidence.Signature,
		Approval: message.Approval{Verdict: protocol.Approve, Slot: protocol.SlotUV, Proof: make([]byte, 16)},
	}}
	f.approves(s)
	got, err := f.Answered(t.Context(), s.AnswerKey)
	f.must(err)
	f.same(got.Decision, s.Decision)
}

func testSpendConflict(t *testing.T, f *fixture) {
	first := f.p.Spend(10)
	f.approves(first)
	stored, err := f.Answered(t.Context(), first.AnswerKey)
	f.must(err)

	otherBytes, otherAttempt := f.p.Spend(10), f.p.Spend(10)
	otherBytes.Serial, otherAttempt.AnswerKey = first.Serial, first.AnswerKey
	otherAttempt.Attempt = 1
	for _, c := range []struct {
		name   string
		spend  store.Spend
		reason protocol.Code
	}{
		{"same counter, another random part", f.p.Spend(10), protocol.CodeClone},
		{"same serial, other bytes", otherBytes, protocol.CodeSerial},
		{"same serial, another attempt", otherAttempt, protocol.CodeSerial},
		{"counter below the highest", f.p.Spend(9), protocol.CodeSerial},
		{"counter 0", f.p.Spend(0), protocol.CodeSerial},
	} {
		before := f.tally()
		if out := f.spend(c.spend, c.reason); !out.Unspent { // the caller records it
			t.Errorf("%s: %+v", c.name, out)
		}
		if got := f.tally(); got != before {
			t.Errorf("%s: tally %+v, want %+v", c.name, got, before)
		}
	}
	again, err := f.Answered(t.Context(), first.AnswerKey)
	f.must(err)
	f.same(again, stored)
	if got := f.highest(); got != 10 {
		t.Fatalf("highest counter is %d, want 10", got)
	}
}

// A denial spends its serial all the same, and is answered the same for ever.
func testSpendDenied(t *testing.T, f *fixture) {
	counter := uint32(100)
	denied := func(reason protocol.Code, change func(*store.Spend)) {
		t.Helper()
		counter++
		s := f.p.Spend(counter)
		if change != nil {
			change(&s)
		}
		out := f.spend(s, reason)
		if out.Decision.Reason != protocol.CodeRefused {
			t.Fatalf("the device is told %v", out.Decision.Reason)
		}
		if got := f.highest(); got != int64(counter) {
			t.Fatalf("highest counter is %d, want %d", got, counter)
		}
		again, err := f.Answered(t.Context(), s.AnswerKey)
		f.must(err)
		out.Replayed = true
		f.same(again, out)
	}
	denied(protocol.CodeUserRefused, func(s *store.Spend) { s.Denial = protocol.CodeUserRefused })
	denied(protocol.CodePolicy, func(s *store.Spend) { s.PolicyVersion = 2 })
	f.setClient(store.Suspended)
	denied(protocol.CodeSuspended, nil)
	denied(protocol.CodeSuspended, func(s *store.Spend) { s.Denial = protocol.CodeUserRefused })
	f.setClient(store.Active)
	f.approves(f.p.Spend(counter + 1))
	counter++
	f.setDevice(store.Suspended)
	denied(protocol.CodeRefused, nil)
	f.setDevice(store.Revoked)
	denied(protocol.CodeRefused, nil)
	f.setDevice(store.Active)
	f.must(f.AddPolicy(t.Context(), store.Policy{Version: 2}, Note("")))
	denied(protocol.CodePolicy, nil)
	f.approvesUnder(2, counter+1)
	counter++
	f.setClient(store.Revoked)
	denied(protocol.CodeRefused, nil)
}

func (f *fixture) approvesUnder(policy uint64, counter uint32) {
	f.t.Helper()
	s := f.p.Spend(counter)
	s.PolicyVersion = policy
	f.approves(s)
}

func testSpendUnknown(t *testing.T, f *fixture) {
	stranger, elsewhere := f.p.Spend(1), f.p.Spend(1)
	stranger.Client[0]++
	elsewhere.Decision.Device[0]++
	for _, s := range []store.Spend{stranger, elsewhere} {
		f.unchanged(store.ErrNotFound, func() error {
			_, err := f.Spend(t.Context(), s)
			return err
		})
	}
}

func testSpendBounds(t *testing.T, f *fixture) {
	s := f.third(1<<32 - 1)
	s.Decision.Service, s.Decision.Lifetime = 1<<64-1, 1<<64-1
	s.Decision.Amount.Minor = protocol.MaxMinor
	f.approves(s)
	got, err := f.Answered(t.Context(), s.AnswerKey)
	f.must(err)
	f.same(got.Decision, s.Decision)
	if got := f.highest(); got != 1<<32-1 {
		t.Fatalf("highest counter is %d, want 2^32-1", got)
	}
	f.spend(f.p.Spend(0), protocol.CodeSerial)
}

// Two approved transactions of one id could not be told apart in a report.
func testSpendTransaction(t *testing.T, f *fixture) {
	first, second := f.p.Spend(1), f.p.Spend(2)
	second.Decision.Transaction = first.Decision.Transaction
	f.approves(first)
	f.unchanged(store.ErrExists, func() error {
		_, err := f.Spend(t.Context(), second)
		return err
	})
	f.approves(f.p.Spend(2)) // the failure has spent nothing
}

func testSpendRecord(t *testing.T, f *fixture) {
	s := f.p.Spend(3)
	s.Evidence.Reference = "order 17"
	s.Evidence.Approval.Proof, _ = hex.DecodeString("00112233445566778899aabbccddeeff")
	s.Denial = protocol.CodeUserRefused
	out := f.spend(s, protocol.CodeUserRefused)
	all := f.records()
	rec := all[len(all)-1]
	f.same(rec.Words(), map[string]any{
		"statement": hex.EncodeToString(s.Evidence.Statement),
		"signature": hex.EncodeToString(s.Evidence.Signature[:]),
		"slot":      uint64(protocol.SlotSigning),
		"proof":     "00112233445566778899aabbccddeeff",
		"factors":   uint64(protocol.FactorSignature),
		"decision":  hex.EncodeToString(out.Decision.Marshal()),
		"policy":    out.Decision.Policy.String(),
		"reason":    uint64(protocol.CodeUserRefused),
		"reference": "order 17",
	})
	rec.Body, rec.Sequence = nil, 0
	f.same(rec, audit.Record{At: s.Now, Kind: audit.KindDecision, Subject: "client/" + s.Client.String(), Salt: s.Salt})
}

func testSpendOtherClients(t *testing.T, f *fixture) {
	q, err := Seed(t.Context(), f.Store, "bob")
	f.must(err)
	f.approves(f.p.Spend(9))
	f.approves(q.Spend(1)) // counters are each client's own
	mixed := q.Spend(9)
	mixed.Decision.Device = f.p.Device.ID
	f.approves(mixed)
	f.spend(f.p.Spend(1), protocol.CodeSerial)
}
