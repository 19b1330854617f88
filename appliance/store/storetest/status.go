package storetest

import (
	"testing"
	"time"

	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/protocol"
	"countersign/protocol/message"
)

var statusTests = map[string]func(*testing.T, *fixture){
	"Status":           testStatus,
	"StatusUnspent":    testStatusUnspent,
	"StatusTried":      testStatusTried,
	"StatusPending":    testStatusPending,
	"StatusDenied":     testStatusDenied,
	"Performed":        testPerformed,
	"StatusRepeat":     testStatusRepeat,
	"Dry":              testDry,
	"ConcurrentStatus": testConcurrentStatus,
	"ConcurrentExpiry": testConcurrentExpiry,
}

// asking is a countersignature of service 2.
func (p Parties) asking(counter uint32, asked protocol.Serial) store.Spend {
	s := p.Spend(counter)
	s.Decision.Service, s.Decision.Amount = protocol.ServiceStatus, nil
	s.Dry, s.Asks = true, &asked
	return s
}

// asks requires this answer about a serial of f.p, now and when it is asked again.
func (f *fixture) asks(counter uint32, asked protocol.Serial, want message.AskedResult) {
	f.t.Helper()
	s := f.p.asking(counter, asked)
	out := f.concludes(s, protocol.ResultApproved, 0)
	if out.Asked == nil || *out.Asked != want {
		f.t.Fatalf("answer about serial %v: %+v, want %+v", asked, out.Asked, want)
	}
	if out.Decision.Result != protocol.ResultDenied {
		f.t.Fatalf("what decides nothing has a decision of result %v", out.Decision.Result)
	}
	f.same(f.highest(), int64(counter))
	got, err := f.Answered(f.t.Context(), s.AnswerKey)
	f.must(err)
	out.Replayed = true
	f.same(got, out)
	var last audit.Record
	for _, rec := range f.records() {
		if rec.Kind == audit.KindDecision {
			last = rec
		}
	}
	f.same(last.Words()["asked"], []any{uint64(want.Result), uint64(want.Reason)})
}

func testStatus(_ *testing.T, f *fixture) {
	approved, refused, dry := f.p.Spend(1), denied(f.p.Spend(2), protocol.CodeUserRefused), f.p.Spend(3)
	dry.Dry = true
	f.approves(approved)
	f.spend(refused, protocol.CodeUserRefused)
	f.concludes(dry, protocol.ResultApproved, 0)
	before := f.tally()
	f.asks(10, approved.Serial, message.AskedResult{Result: protocol.ResultApproved})
	f.asks(11, refused.Serial, message.AskedResult{Reason: protocol.CodeUserRefused})
	f.asks(12, dry.Serial, message.AskedResult{Result: protocol.ResultApproved})
	f.asks(13, f.p.Spend(2).Serial, message.AskedResult{Reason: protocol.CodeSerial}) // another random part
	f.asks(14, protocol.NewSerial(10, [8]byte{}), message.AskedResult{Reason: protocol.CodeSerial})
	before.Questions += 5
	before.Records += 5
	f.same(f.tally(), before)
}

// A serial that was never spent is denied for good, above the highest or below.
func testStatusUnspent(t *testing.T, f *fixture) {
	f.approves(f.p.Spend(7))
	for i, late := range []store.Spend{f.p.Spend(8), f.p.Spend(5)} {
		before := f.tally()
		f.asks(uint32(10+10*i), late.Serial, message.AskedResult{Reason: protocol.CodeExpired})
		before.Questions++
		before.Decisions++ // the serial that was asked about
		before.Records += 2
		f.same(f.tally(), before)
		all := f.records()
		if rec := all[len(all)-1]; rec.Kind != audit.KindSettled || rec.Subject != "client/"+late.Client.String() ||
			rec.Words()["reason"] != uint64(protocol.CodeExpired) {
			t.Fatalf("record of what was settled: %+v, %v", rec, rec.Words())
		}
		f.spend(late, protocol.CodeSerial)
		f.asks(uint32(11+10*i), late.Serial, message.AskedResult{Reason: protocol.CodeExpired})
		_, err := f.Answered(t.Context(), late.AnswerKey)
		f.fails(err, store.ErrNotFound)
	}
}

// A serial whose password was being tried takes no more.
func testStatusTried(_ *testing.T, f *fixture) {
	a := f.p.Attempt(5)
	f.begins(a)
	f.wrong(a, 2)
	second := Next(a)
	f.begins(second)
	f.asks(6, a.Serial, message.AskedResult{Reason: protocol.CodeExpired})
	f.wrong(second, 1)
	f.refusesTry(Next(second), protocol.CodeSerial)
	s := f.p.Spend(5)
	s.AnswerKey, s.Right = Next(second).AnswerKey, true
	f.spend(s, protocol.CodeSerial)
	f.same(f.guard().Wrong, uint32(2))
}

func testStatusPending(t *testing.T, f *fixture) {
	q := f.approver("bob")
	first := f.waits(f.p.pending(5))
	f.asks(6, first.Serial, message.AskedResult{Result: protocol.ResultPending, Reason: protocol.CodePending})
	f.approves(q.approves(1, first))
	f.asks(7, first.Serial, message.AskedResult{Result: protocol.ResultApproved})

	late := f.p.pending(8)
	late.Charges = nil
	f.waits(late)
	s := f.p.asking(9, late.Serial)
	s.Now = Epoch.Add(expiry + time.Microsecond)
	if out := f.concludes(s, protocol.ResultApproved, 0); *out.Asked != (message.AskedResult{Reason: protocol.CodeExpired}) {
		t.Fatalf("answer about what waited too long: %+v", out.Asked)
	}
	if n := f.kinds(audit.KindFinal); n != 2 {
		t.Fatalf("%d records of an end", n)
	}
	f.spend(q.approves(2, late), protocol.CodeSerial) // though its own clock says there is time
	f.asks(10, late.Serial, message.AskedResult{Reason: protocol.CodeExpired})
}

// performed requires what the device has reported about a serial of p: "yes", "no" or "".
func (f *fixture) performed(p Parties, serial protocol.Serial, want string) {
	f.t.Helper()
	got, err := f.Performed(f.t.Context(), p.Client.ID, serial)
	f.must(err)
	is := ""
	if got != nil {
		is = map[bool]string{true: "yes", false: "no"}[*got]
	}
	f.same(is, want)
}

func testPerformed(_ *testing.T, f *fixture) {
	q := f.approver("bob")
	done, jammed := f.approvedPlain(1), f.approvedPlain(2)
	f.performed(f.p, done.Serial, "")
	f.report(done, true)
	f.report(jammed, false)
	f.report(jammed, true) // the first one stands
	f.performed(f.p, done.Serial, "yes")
	f.performed(f.p, jammed.Serial, "no")
	f.performed(q, done.Serial, "")
	f.performed(f.p, protocol.NewSerial(1, [8]byte{}), "") // another random part
	f.performed(f.p, f.p.Spend(9).Serial, "")
	refusal, dry := denied(f.p.Spend(3), protocol.CodeUserRefused), f.p.Spend(4)
	dry.Dry = true
	f.spend(refusal, protocol.CodeUserRefused)
	f.concludes(dry, protocol.ResultApproved, 0)
	f.performed(f.p, refusal.Serial, "")
	f.performed(f.p, dry.Serial, "")

	first := f.waits(f.p.pending(5))
	f.performed(f.p, first.Serial, "")
	second := q.approves(1, first)
	f.approves(second)
	f.performed(f.p, first.Serial, "")
	f.report(second, false)
	f.performed(f.p, first.Serial, "no")
	f.performed(q, second.Serial, "no")
	refused := f.waits(f.p.pending(6))
	f.spend(denied(q.approves(2, refused), protocol.CodeUserRefused), protocol.CodeUserRefused)
	f.performed(f.p, refused.Serial, "")
}

// A question that is denied settles nothing.
func testStatusDenied(t *testing.T, f *fixture) {
	open := f.p.Spend(50)
	counter := uint32(60)
	refuses := func(reason protocol.Code, change func(*store.Spend)) {
		t.Helper()
		counter++
		s := f.p.asking(counter, open.Serial)
		change(&s)
		if out := f.concludes(s, protocol.ResultDenied, reason); out.Asked != nil {
			t.Fatalf("denied with %v, and told %+v", reason, out.Asked)
		}
	}
	refuses(protocol.CodeUserRefused, func(s *store.Spend) { s.Denial = protocol.CodeUserRefused })
	refuses(protocol.CodePolicy, func(s *store.Spend) { s.PolicyVersion = 2 })
	refuses(protocol.CodeSerial, func(s *store.Spend) { s.Asks = &s.Serial })
	refuses(protocol.CodeSerial, func(s *store.Spend) { later := protocol.NewSerial(counter+1, [8]byte{}); s.Asks = &later })
	f.setClient(store.Suspended)
	refuses(protocol.CodeSuspended, func(*store.Spend) {})
	f.setClient(store.Active)
	if n := f.kinds(audit.KindSettled); n != 0 {
		t.Fatalf("%d serials were settled", n)
	}
	before := f.tally()
	conflict := f.p.asking(counter, open.Serial)
	f.concludes(conflict, protocol.ResultDenied, protocol.CodeClone)
	f.same(f.tally(), before)
}

// The answer stays what it was, even where the serial's outcome went on.
func testStatusRepeat(_ *testing.T, f *fixture) {
	q := f.approver("bob")
	first := f.waits(f.p.pending(5))
	s := f.p.asking(6, first.Serial)
	out := f.concludes(s, protocol.ResultApproved, 0)
	f.approves(q.approves(1, first))
	out.Replayed = true
	f.same(f.concludes(s, protocol.ResultApproved, 0), out)
	f.same(*out.Asked, message.AskedResult{Result: protocol.ResultPending, Reason: protocol.CodePending})
}

// A dry run is decided and recorded like the real request, and has no effect.
func testDry(t *testing.T, f *fixture) {
	s := f.p.charged(1, daily(1000, 1000, 1))
	s.Dry = true
	out := f.concludes(s, protocol.ResultApproved, 0)
	if out.Asked != nil || out.Decision.Result != protocol.ResultDenied || out.Decision.Reason != protocol.CodeRefused {
		t.Fatalf("dry run: %+v", out)
	}
	f.same(f.highest(), int64(1))
	f.unchanged(store.ErrNotFound, func() error { return f.Report(t.Context(), reportOf(s, false), Note("")) })
	over := f.p.charged(2, daily(1001, 1000, 1))
	over.Dry = true
	f.spend(over, protocol.CodeLimit)
	four := f.p.pending(3)
	four.Dry = true
	f.concludes(four, protocol.ResultApproved, 0) // a dry run does not wait
	f.approves(f.p.charged(4, daily(1000, 1000, 1)))
}

// A late M3 races the question about its serial: one of the two wins, and the answer stays true.
func testConcurrentStatus(t *testing.T, f *fixture) {
	won := map[protocol.Result]int{}
	for round := range uint32(100) {
		late := f.p.Spend(2 * round)
		ask := f.p.asking(2*round+1, late.Serial)
		pair := f.spendTogether([]store.Spend{late, ask})
		m3, told := pair[0].out, pair[1].out.Asked
		switch {
		case told == nil:
			t.Fatalf("round %d: %+v", round, pair[1].out)
		case m3.Reason == 0 && *told == (message.AskedResult{Result: protocol.ResultApproved}):
		case m3.Reason == protocol.CodeSerial && *told == (message.AskedResult{Reason: protocol.CodeExpired}):
		default:
			t.Fatalf("round %d: M3 was answered %d, the question %+v", round, m3.Reason, *told)
		}
		won[told.Result]++
		if again := f.concludes(late, m3.Result, m3.Reason); again.Replayed != (m3.Reason == 0) {
			t.Fatalf("round %d: again %+v", round, again)
		}
	}
	t.Logf("results told: %v", won)
}

// The last approver against the question: a decision has one end.
func testConcurrentExpiry(t *testing.T, f *fixture) {
	q := f.approver("bob")
	for round := range uint32(50) {
		first := f.p.pending(2 * round)
		first.Charges = nil
		f.waits(first)
		ask := f.p.asking(2*round+1, first.Serial)
		ask.Now = Epoch.Add(expiry + time.Second)
		pair := f.spendTogether([]store.Spend{q.approves(round, first), ask})
		approver, told := pair[0].out, pair[1].out.Asked
		approved := approver.Reason == 0 && *told == (message.AskedResult{Result: protocol.ResultApproved})
		expired := approver.Reason == protocol.CodeSerial && *told == (message.AskedResult{Reason: protocol.CodeExpired})
		if !approved && !expired {
			t.Fatalf("round %d: the approver was answered %d, the question %+v", round, approver.Reason, *told)
		}
	}
	if n := f.kinds(audit.KindFinal); n != 50 {
		t.Fatalf("%d records of an end", n)
	}
}
