package storetest

import (
	"fmt"
	"testing"
	"time"

	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/protocol"
	"countersign/protocol/message"
)

var approvalTests = map[string]func(*testing.T, *fixture){
	"Pending":             testPending,
	"PendingDenied":       testPendingDenied,
	"Approve":             testApprove,
	"ApproveReport":       testApproveReport,
	"ApproveEnds":         testApproveEnds,
	"ApproveStays":        testApproveStays,
	"ApproveReserved":     testApproveReserved,
	"ApproveExpiry":       testApproveExpiry,
	"ApproveOrder":        testApproveOrder,
	"ApproveNothing":      testApproveNothing,
	"ApproveConflict":     testApproveConflict,
	"ConcurrentApprovers": testConcurrentApprovers,
}

// concludes commits s and requires this result and reason.
func (f *fixture) concludes(s store.Spend, result protocol.Result, reason protocol.Code) store.Outcome {
	f.t.Helper()
	out, err := f.Spend(f.t.Context(), s)
	f.must(err)
	if out.Result != result || out.Reason != reason {
		f.t.Fatalf("outcome is %v, reason %d; want %v, %d", out.Result, out.Reason, result, reason)
	}
	return out
}

// expiry is how long pending ones of the suite wait, from Epoch on.
const expiry = 5 * time.Minute

// pending is a countersignature at level 4 that waits for a second approver.
func (p Parties) pending(counter uint32) store.Spend {
	s := p.Spend(counter)
	s.Decision.Level = 4
	s.Pending = &store.Pending{Role: "approver", Expires: Epoch.Add(expiry)}
	s.Charges = []store.Charge{daily(600, 1000, 0)}
	return s
}

func (f *fixture) waits(s store.Spend) store.Spend {
	f.t.Helper()
	f.concludes(s, protocol.ResultPending, protocol.CodePending)
	return s
}

// approves is the countersignature by which p approves first.
func (p Parties) approves(counter uint32, first store.Spend) store.Spend {
	s := p.Spend(counter)
	second := s.Decision.Statement
	u := s.Decision.U
	s.Decision = first.Decision
	s.Decision.U, s.Decision.SecondStatement = u, &second
	s.Decision.Factors |= protocol.FactorSecondApprover
	s.Charges = first.Charges
	s.Approves = &store.Approves{Client: first.Client, Serial: first.Serial}
	return s
}

// approver enrols a client with the role.
func (f *fixture) approver(name string) Parties {
	f.t.Helper()
	q, err := Seed(f.t.Context(), f.Store, name)
	f.must(err)
	f.grant(q, "guest", "approver")
	return q
}

func (f *fixture) grant(p Parties, roles ...string) {
	f.t.Helper()
	f.change(p, func(c *store.Client) { c.Roles = roles })
}

func (f *fixture) change(p Parties, how func(*store.Client)) {
	f.t.Helper()
	c, err := f.Client(f.t.Context(), p.Client.ID)
	f.must(err)
	how(&c)
	c.Version++
	f.must(f.UpdateClient(f.t.Context(), c, Note("changed")))
}

// kinds counts the records of a kind.
func (f *fixture) kinds(kind string) (n int) {
	f.t.Helper()
	for _, rec := range f.records() {
		if rec.Kind == kind {
			n++
		}
	}
	return n
}

func testPending(t *testing.T, f *fixture) {
	s := f.p.pending(5)
	out := f.concludes(s, protocol.ResultPending, protocol.CodePending)
	want := s.Decision
	want.Result, want.Reason = protocol.ResultPending, protocol.CodePending
	f.same(out.Decision, want)
	f.same(f.highest(), int64(5))
	out.Replayed = true
	got, err := f.Answered(t.Context(), s.AnswerKey)
	f.must(err)
	f.same(got, out)
	f.same(f.concludes(s, protocol.ResultPending, protocol.CodePending), out)
	f.approves(f.p.charged(6, daily(1000, 1000, 0))) // nothing was charged
	f.unchanged(store.ErrNotFound, func() error { return f.Report(t.Context(), reportOf(s, true), Note("")) })
}

// A decision that is denied now does not wait.
func testPendingDenied(t *testing.T, f *fixture) {
	f.spend(denied(f.p.pending(1), protocol.CodeUserRefused), protocol.CodeUserRefused)
	over := f.p.pending(2)
	over.Charges = []store.Charge{daily(1001, 1000, 0)}
	f.spend(over, protocol.CodeLimit)
	q := f.approver("bob")
	f.spend(q.approves(1, over), protocol.CodeSerial)
	if n := f.kinds(audit.KindFinal); n != 0 {
		t.Fatalf("%d decisions ended that did not wait", n)
	}
}

func testApprove(t *testing.T, f *fixture) {
	q := f.approver("bob")
	first := f.waits(f.p.pending(5))
	second := q.approves(1, first)
	out := f.spend(second, 0)
	f.same(out.Decision, second.Decision)
	out.Replayed = true
	got, err := f.Answered(t.Context(), second.AnswerKey)
	f.must(err)
	f.same(got, out)
	f.same(f.spend(second, 0), out)
	f.concludes(first, protocol.ResultPending, protocol.CodePending) // as it was answered

	f.spend(f.p.charged(6, daily(401, 1000, 0)), protocol.CodeLimit) // the first client is charged
	f.approves(q.charged(2, daily(1000, 1000, 0)))
	if n := f.kinds(audit.KindFinal); n != 1 {
		t.Fatalf("%d records of an end", n)
	}
	all := f.records()
	for _, rec := range all {
		if rec.Kind != audit.KindFinal {
			continue
		}
		words := rec.Words()
		if rec.Subject != "client/"+first.Client.String() || words["result"] != uint64(1) || words["reason"] != uint64(0) {
			t.Fatalf("record of the end: %+v, %v", rec, words)
		}
	}
	f.spend(q.approves(3, first), protocol.CodeSerial) // once
}

// A report on what a second approved is on what the first client is charged.
func testApproveReport(_ *testing.T, f *fixture) {
	q := f.approver("bob")
	first := f.waits(f.p.pending(5))
	second := q.approves(1, first)
	f.approves(second)
	f.approves(q.charged(2, daily(700, 1000, 0)))
	f.report(second, false)
	f.report(second, false)
	f.approves(f.p.charged(6, daily(1000, 1000, 0)))
	f.spend(q.charged(3, daily(301, 1000, 0)), protocol.CodeLimit)
}

// The end of the pending decision: the answer to the approver, and the answer of service 2.
func testApproveEnds(t *testing.T, f *fixture) {
	q := f.approver("bob")
	counter := uint32(10)
	ends := func(name string, reason protocol.Code, change func(second *store.Spend)) {
		t.Helper()
		counter += 2
		first := f.waits(f.p.pending(counter))
		second := q.approves(counter, first)
		change(&second)
		before := f.kinds(audit.KindFinal)
		f.spend(second, reason)
		f.change(f.p, func(c *store.Client) { c.Status = store.Active })
		if n := f.kinds(audit.KindFinal); n != before+1 {
			t.Fatalf("%s: %d records of an end", name, n-before)
		}
		f.spend(q.approves(counter+1, first), protocol.CodeSerial)
		f.asks(counter+1, first.Serial, message.AskedResult{Reason: reason})
	}
	ends("refused", protocol.CodeUserRefused, func(s *store.Spend) { s.Denial = protocol.CodeUserRefused })
	ends("expired", protocol.CodeExpired, func(s *store.Spend) { s.Now = Epoch.Add(expiry + time.Microsecond) })
	ends("first suspended", protocol.CodeRefused, func(*store.Spend) { f.setClient(store.Suspended) })
	ends("limit", protocol.CodeLimit, func(s *store.Spend) { s.Charges = []store.Charge{daily(1001, 1000, 0)} })
	f.approves(f.p.charged(counter+2, daily(1000, 1000, 0))) // nothing of it was charged
}

// An approver who is denied leaves the decision to others.
func testApproveStays(t *testing.T, f *fixture) {
	q, stranger := f.approver("bob"), f.approver("eve")
	f.grant(stranger, "guest", "approver2", "Approver", "")
	first := f.waits(f.p.pending(50))
	counter := uint32(50)
	stays := func(p Parties, reason protocol.Code, change func(*store.Spend)) {
		t.Helper()
		counter++
		s := p.approves(counter, first)
		if change != nil {
			change(&s)
		}
		f.spend(s, reason)
		c, err := f.Client(t.Context(), p.Client.ID)
		f.must(err)
		f.same(c.Highest, int64(counter)) // its own serial is spent
	}
	stays(stranger, protocol.CodePolicy, nil)
	stays(stranger, protocol.CodePolicy, func(s *store.Spend) { s.Denial = protocol.CodeUserRefused })
	f.grant(f.p, "approver")
	stays(f.p, protocol.CodeOwnApproval, nil) // no client approves its own decision
	stays(q, protocol.CodePassword, func(s *store.Spend) { s.Denial = protocol.CodePassword })
	stays(q, protocol.CodeLocked, func(s *store.Spend) { s.Denial = protocol.CodeLocked })
	stays(q, protocol.CodePolicy, func(s *store.Spend) { s.PolicyVersion = 2 })
	f.change(q, func(c *store.Client) { c.Status = store.Suspended })
	stays(q, protocol.CodeSuspended, func(s *store.Spend) { s.Denial = protocol.CodeUserRefused })
	f.change(q, func(c *store.Client) { c.Status = store.Active })
	f.setDevice(store.Suspended)
	stays(q, protocol.CodeRefused, nil)
	f.setDevice(store.Active)
	if n := f.kinds(audit.KindFinal); n != 0 {
		t.Fatalf("%d decisions ended", n)
	}
	f.approves(q.approves(counter+1, first))
}

// The role of clients with a UV key approves nothing, even if a decision waits for it.
func testApproveReserved(t *testing.T, f *fixture) {
	q := f.approver("bob")
	f.grant(q, "approver", store.RoleUV)
	s := f.p.pending(50)
	s.Pending.Role = store.RoleUV
	first := f.waits(s)
	f.spend(q.approves(51, first), protocol.CodePolicy)
	if n := f.kinds(audit.KindFinal); n != 0 {
		t.Fatalf("%d decisions ended", n)
	}
}

func testApproveExpiry(_ *testing.T, f *fixture) {
	q := f.approver("bob")
	at := func(counter uint32, now time.Time) store.Spend {
		first := f.p.pending(counter)
		first.Charges = nil
		s := q.approves(counter, f.waits(first))
		s.Now = now
		return s
	}
	f.approves(at(1, Epoch.Add(expiry))) // to the last moment
	f.spend(at(2, Epoch.Add(expiry+time.Microsecond)), protocol.CodeExpired)
}

// Of several reasons the first in the order of checks is returned.
func testApproveOrder(_ *testing.T, f *fixture) {
	q, stranger := f.approver("bob"), f.approver("eve")
	f.grant(stranger)
	counter := uint32(0)
	all := func(p Parties) store.Spend {
		counter++
		s := p.approves(counter, f.waits(f.p.pending(counter)))
		s.Denial, s.PolicyVersion, s.Charges = protocol.CodeUserRefused, 2, []store.Charge{daily(2, 1, 0)}
		return s
	}
	late := all(stranger)
	late.Now = Epoch.Add(time.Hour)
	f.spend(late, protocol.CodeExpired) // before the role
	f.spend(all(stranger), protocol.CodePolicy)
	s := all(q)
	f.setClient(store.Suspended)
	f.spend(s, protocol.CodeRefused) // before the refusal
	f.setClient(store.Active)
	f.spend(all(q), protocol.CodeUserRefused)
	s = all(q)
	s.Denial = 0
	f.spend(s, protocol.CodePolicy)
	s = all(q)
	s.Denial, s.PolicyVersion = 0, 1
	f.spend(s, protocol.CodeLimit)
}

func testApproveNothing(t *testing.T, f *fixture) {
	q := f.approver("bob")
	first := f.waits(f.p.pending(5))
	approved, deniedOne, other := f.p.Spend(6), denied(f.p.Spend(7), protocol.CodeUserRefused), q.Spend(0)
	f.approves(approved)
	f.spend(deniedOne, protocol.CodeUserRefused)
	counter := uint32(0)
	for name, change := range map[string]func(*store.Spend){
		"unknown client":    func(s *store.Spend) { s.Approves.Client[0]++ },
		"another client":    func(s *store.Spend) { s.Approves.Client = q.Client.ID },
		"unknown counter":   func(s *store.Spend) { s.Approves.Serial[3]++ },
		"unknown serial":    func(s *store.Spend) { s.Approves.Serial[11]++ },
		"approved":          func(s *store.Spend) { s.Approves.Serial = approved.Serial },
		"denied":            func(s *store.Spend) { s.Approves.Serial = deniedOne.Serial },
		"other statement":   func(s *store.Spend) { s.Decision.Statement[0]++ },
		"other transaction": func(s *store.Spend) { s.Decision.Transaction[0]++ },
		"other device":      func(s *store.Spend) { s.Decision.Device = other.Decision.Device },
	} {
		t.Log(name)
		counter++
		s := q.approves(counter, first)
		change(&s)
		f.spend(s, protocol.CodeSerial)
	}
	f.approves(q.approves(counter+1, first))
}

// A conflicting serial changes nothing.
func testApproveConflict(t *testing.T, f *fixture) {
	q := f.approver("bob")
	first := f.waits(f.p.pending(5))
	f.approves(q.Spend(9))
	before := f.tally()
	f.spend(denied(q.approves(9, first), protocol.CodeUserRefused), protocol.CodeClone)
	f.spend(denied(q.approves(8, first), protocol.CodeUserRefused), protocol.CodeSerial)
	f.same(f.tally(), before)
	if n := f.kinds(audit.KindFinal); n != 0 {
		t.Fatalf("%d decisions ended", n)
	}
	f.approves(q.approves(10, first))
}

// Exactly one of many concurrent approvers counts.
func testConcurrentApprovers(t *testing.T, f *fixture) {
	first := f.waits(f.p.pending(5))
	spends := make([]store.Spend, 50)
	for i := range spends {
		spends[i] = f.approver(fmt.Sprintf("approver%02d", i)).approves(uint32(i), first)
		if i%5 == 4 {
			spends[i].Denial = protocol.CodeUserRefused
		}
	}
	reasons := map[protocol.Code]int{}
	var want message.AskedResult
	for _, a := range f.spendTogether(spends) {
		reasons[a.out.Reason]++
		if a.out.Reason != protocol.CodeSerial {
			want = message.AskedResult{Result: a.out.Result, Reason: a.out.Reason}
		}
	}
	if reasons[protocol.CodeSerial] != 49 || reasons[0]+reasons[protocol.CodeUserRefused] != 1 {
		t.Fatalf("reasons of 50 approvers: %v", reasons)
	}
	if n := f.kinds(audit.KindFinal); n != 1 {
		t.Fatalf("%d records of an end", n)
	}
	f.asks(6, first.Serial, want)
	left := uint64(1000)
	if want.Result == protocol.ResultApproved {
		left = 400
	}
	f.spend(f.p.charged(7, daily(left+1, 1000, 0)), protocol.CodeLimit)
	f.approves(f.p.charged(8, daily(left, 1000, 0)))
}
