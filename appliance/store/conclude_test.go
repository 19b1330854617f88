package store

import (
	"encoding/hex"
	"reflect"
	"testing"
	"time"

	"countersign/appliance/store/audit"
	"countersign/protocol"
	"countersign/protocol/message"
	"countersign/protocol/receipt"
)

// sampleApproval is a second approval with the view that lets it pass.
func sampleApproval() (Spend, View) {
	s, v := sampleSpend(), sampleView()
	first := AnswerKey{Client: protocol.ClientID{8}, Serial: protocol.NewSerial(3, [8]byte{3})}
	s.Approves = &Approves{Client: first.Client, Serial: first.Serial}
	pending := s.Decision
	pending.Result, pending.Reason = protocol.ResultPending, protocol.CodePending
	v.Client.Roles = []string{"a", "b"}
	v.First = &Spent{
		AnswerKey: first, Pending: &Pending{Role: "b", Expires: now.Add(time.Minute)},
		Outcome: Outcome{Result: protocol.ResultPending, Reason: protocol.CodePending, Decision: pending},
	}
	v.FirstClient = &Client{ID: first.Client, Status: Active}
	return s, v
}

// against are what may stand against a second approval, in the order in which they
// are told, and whether each ends the pending decision.
var against = []struct {
	name  string
	apply func(*Spend, *View)
	code  protocol.Code
	ends  bool
}{
	{"suspended", func(_ *Spend, v *View) { v.Client.Status = Suspended }, protocol.CodeSuspended, false},
	{"device", func(_ *Spend, v *View) { v.Device.Status = Revoked }, protocol.CodeRefused, false},
	{"ended", func(_ *Spend, v *View) { v.First.Final = &Final{} }, protocol.CodeSerial, false},
	{"expired", func(_ *Spend, v *View) { v.First.Pending.Expires = now.Add(-1) }, protocol.CodeExpired, true},
	{"role", func(_ *Spend, v *View) { v.Client.Roles = v.Client.Roles[:1] }, protocol.CodePolicy, false},
	{"first client", func(_ *Spend, v *View) { v.FirstClient.Status = Suspended }, protocol.CodeRefused, true},
	{"refused", func(s *Spend, _ *View) { s.Denial = protocol.CodeUserRefused }, protocol.CodeUserRefused, true},
	{"policy", func(_ *Spend, v *View) { v.PolicyVersion++ }, protocol.CodePolicy, false},
	{"limit", func(_ *Spend, v *View) { v.Used[0].Amount++ }, protocol.CodeLimit, true},
	{"sum", func(s *Spend, v *View) { s.Charges[0].Below = v.Used[0].Amount + s.Charges[0].Amount }, protocol.CodePolicy, false},
}

// TestConcludeApproval goes through every combination: the first that applies is told.
func TestConcludeApproval(t *testing.T) {
	for bits := range 1 << len(against) {
		s, v := sampleApproval()
		s.Right = bits%2 == 0
		code, ends := protocol.Code(0), true
		for i := len(against) - 1; i >= 0; i-- {
			if bits&(1<<i) != 0 {
				against[i].apply(&s, &v)
				code, ends = against[i].code, against[i].ends
			}
		}
		c := s.Conclude(v)
		result := protocol.ResultDenied
		if code == 0 {
			result = protocol.ResultApproved
		}
		var want *Finalization
		if ends {
			want = &Finalization{v.First.Client, v.First.Serial, Final{result, code, Stamp(now)}}
		}
		switch {
		case c.Outcome.Result != result || c.Outcome.Reason != code || c.Outcome.Decision.Result != result:
			t.Errorf("%010b: %v, reason %d; want %d", bits, c.Outcome.Result, c.Outcome.Reason, code)
		case !reflect.DeepEqual(c.Finalize, want) || (c.Further != nil) != ends:
			t.Errorf("%010b: end %+v, want %+v", bits, c.Finalize, want)
		case !c.Spend || c.Charge != (code == 0) || c.ResetGuard != s.Right || c.Waits != nil || c.Settle != nil:
			t.Errorf("%010b: %+v", bits, c)
		case c.Record.Kind != audit.KindDecision:
			t.Errorf("%010b: record %+v", bits, c.Record)
		}
		if c.Further != nil && (c.Further.Kind != audit.KindFinal || c.Further.Salt == c.Record.Salt || c.Further.Salt == [16]byte{}) {
			t.Errorf("%010b: record of the end %+v", bits, c.Further)
		}
	}
}

// TestConcludeNotWaiting checks that any decision but exactly the waiting one is a conflict, which
// ends nothing.
func TestConcludeNotWaiting(t *testing.T) {
	for name, change := range map[string]func(*Spend, *View){
		"none":              func(_ *Spend, v *View) { v.First = nil },
		"no client":         func(_ *Spend, v *View) { v.FirstClient = nil },
		"not pending":       func(_ *Spend, v *View) { v.First.Pending = nil },
		"approved":          func(_ *Spend, v *View) { v.First.Outcome.Result = protocol.ResultApproved },
		"other random part": func(_ *Spend, v *View) { v.First.Serial[11]++ },
		"other client":      func(_ *Spend, v *View) { v.First.Client[0]++ },
		"other statement":   func(s *Spend, _ *View) { s.Decision.Statement[0]++ },
		"other transaction": func(s *Spend, _ *View) { s.Decision.Transaction[0]++ },
	} {
		s, v := sampleApproval()
		s.Denial = protocol.CodeUserRefused
		change(&s, &v)
		c := s.Conclude(v)
		if c.Outcome.Reason != protocol.CodeSerial || !c.Spend || c.Charge || c.Finalize != nil || c.Further != nil {
			t.Errorf("%s: %+v", name, c)
		}
	}
}

// TestConcludeSelf checks that the first client does not approve, in any role.
func TestConcludeSelf(t *testing.T) {
	s, v := sampleApproval()
	s.Client = s.Approves.Client
	if c := s.Conclude(v); c.Outcome.Reason != protocol.CodeOwnApproval || c.Finalize != nil || !c.Spend {
		t.Errorf("%+v", c)
	}
	s, v = sampleApproval()
	v.First.Pending.Role, v.Client.Roles = "", nil
	if c := s.Conclude(v); c.Outcome.Reason != protocol.CodePolicy || c.Finalize != nil {
		t.Errorf("without a role in the policy, no client may approve: %+v", c)
	}
}

func TestConcludePending(t *testing.T) {
	s, v := sampleSpend(), sampleView()
	s.Pending = &Pending{Role: "b", Expires: now}
	c := s.Conclude(v)
	out := c.Outcome
	if out.Result != protocol.ResultPending || out.Reason != protocol.CodePending ||
		out.Decision.Result != protocol.ResultPending || out.Decision.Reason != protocol.CodePending {
		t.Errorf("outcome %+v", out)
	}
	if !c.Spend || c.Charge || c.Waits != s.Pending || c.Record.Words()["reason"] != uint64(protocol.CodePending) {
		t.Errorf("conclusion %+v", c)
	}
	v.Used[0].Amount++
	if c := s.Conclude(v); c.Outcome.Reason != protocol.CodeLimit || c.Waits != nil {
		t.Errorf("over the limit: %+v", c)
	}
}

func TestConcludeAsks(t *testing.T) {
	key := AnswerKey{Client: protocol.ClientID{1}, Serial: protocol.NewSerial(5, [8]byte{5})}
	spent := func(result protocol.Result, reason protocol.Code) *Spent {
		return &Spent{AnswerKey: key, Outcome: Outcome{Result: result, Reason: reason}}
	}
	waits := func(expires time.Duration, final *Final) *Spent {
		s := spent(protocol.ResultPending, protocol.CodePending)
		s.Pending, s.Final = &Pending{Role: "b", Expires: now.Add(expires)}, final
		return s
	}
	clone := spent(protocol.ResultApproved, 0)
	clone.Serial[11]++
	expired := message.AskedResult{Reason: protocol.CodeExpired}
	for _, c := range []struct {
		name     string
		asked    *Spent
		want     message.AskedResult
		ends     bool
		settles  bool
		kindNext string
	}{
		{"never spent", nil, expired, false, true, audit.KindSettled},
		{"approved", spent(protocol.ResultApproved, 0), message.AskedResult{Result: 1}, false, false, ""},
		{"denied", spent(protocol.ResultDenied, protocol.CodeLimit), message.AskedResult{Reason: protocol.CodeLimit}, false, false, ""},
		{"another serial", clone, message.AskedResult{Reason: protocol.CodeSerial}, false, false, ""},
		{"waits", waits(0, nil), message.AskedResult{Result: 3, Reason: protocol.CodePending}, false, false, ""},
		{"waited too long", waits(-1, nil), expired, true, false, audit.KindFinal},
		{"approved since", waits(-1, &Final{Result: 1}), message.AskedResult{Result: 1}, false, false, ""},
		{"refused since", waits(1, &Final{Reason: protocol.CodeUserRefused}), message.AskedResult{Reason: protocol.CodeUserRefused}, false, false, ""},
	} {
		s, v := sampleSpend(), sampleView()
		s.Asks, s.Charges, v.Asked = &key.Serial, nil, c.asked
		got := s.Conclude(v)
		out := got.Outcome
		if out.Result != protocol.ResultApproved || out.Reason != 0 || out.Asked == nil || *out.Asked != c.want {
			t.Errorf("%s: %v, %d, %+v", c.name, out.Result, out.Reason, out.Asked)
			continue
		}
		if (got.Finalize != nil) != c.ends || (got.Settle != nil) != c.settles || got.Charge || !got.Spend {
			t.Errorf("%s: %+v", c.name, got)
		}
		if c.ends && *got.Finalize != (Finalization{s.Client, *s.Asks, Final{0, protocol.CodeExpired, Stamp(now)}}) {
			t.Errorf("%s: end %+v", c.name, got.Finalize)
		}
		if c.settles && (got.Settle.Serial != *s.Asks || got.Settle.Client != s.Client || got.Settle.Outcome.Reason != protocol.CodeExpired) {
			t.Errorf("%s: settles %+v", c.name, got.Settle)
		}
		if (got.Further != nil) != (c.kindNext != "") || got.Further != nil && got.Further.Kind != c.kindNext {
			t.Errorf("%s: further record %+v", c.name, got.Further)
		}
	}
}

func TestConcludeDry(t *testing.T) {
	s, v := sampleSpend(), sampleView()
	s.Dry, s.Right = true, true
	c := s.Conclude(v)
	if c.Outcome.Result != protocol.ResultApproved || c.Outcome.Decision.Result != protocol.ResultDenied || c.Charge || !c.Spend || !c.ResetGuard {
		t.Errorf("%+v", c)
	}
	if _, err := receipt.Parse(c.Outcome.Decision.Marshal()); err != nil {
		t.Error(err)
	}
}

// TestConcludeTurn: attempts have their order, and a stored answer is final.
func TestConcludeTurn(t *testing.T) {
	s, v := sampleSpend(), sampleView()
	s.AnswerKey, s.Right = sampleAttempt(1).AnswerKey, true
	v.Begun = answeredTries(1)
	if c := s.Conclude(v); c.Outcome.Reason != 0 || !c.Spend || !c.ResetGuard {
		t.Errorf("in its turn: %+v", c)
	}
	v.Begun = append(v.Begun, Begun{AnswerKey: s.AnswerKey})
	if c := s.Conclude(v); c.Outcome.Reason != 0 || !c.Spend {
		t.Errorf("begun before: %+v", c)
	}
	v.Begun[1].Answered, v.Begun[1].TriesLeft = true, 1
	c := s.Conclude(v)
	if c.Outcome.Result != protocol.ResultRetry || c.Outcome.TriesLeft != 1 || !c.Outcome.Replayed {
		t.Errorf("answered before: %+v", c.Outcome)
	}
	if c.Outcome = (Outcome{}); !reflect.DeepEqual(c, Conclusion{}) {
		t.Errorf("answered before: %+v", c)
	}
	v.Begun[1].Answered, v.Begun[1].M3[0] = false, 99
	c = s.Conclude(v)
	if c.Outcome.Reason != protocol.CodeSerial || c.Spend || c.ResetGuard || c.Record != nil || !c.Outcome.Unspent {
		t.Errorf("another was begun: %+v", c)
	}
}

func TestRefused(t *testing.T) {
	s := sampleSpend()
	s.Dry, s.Pending = true, &Pending{}
	rec := s.Refused(protocol.CodePassword)
	words := rec.Words()
	if rec.Kind != audit.KindRefused || rec.Salt != s.Salt || words["reason"] != uint64(protocol.CodePassword) {
		t.Errorf("%+v: %v", rec, words)
	}
	d := s.Decision
	d.Result, d.Reason = protocol.ResultDenied, protocol.CodeRefused
	if body := (audit.Record{Body: rec.Body}).Words()["decision"]; body != hex.EncodeToString(d.Marshal()) {
		t.Errorf("decision of the record: %v", body)
	}
}
