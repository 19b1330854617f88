package store

import (
	"crypto/sha256"
	"slices"

	"countersign/appliance/store/audit"
	"countersign/protocol"
	"countersign/protocol/message"
	"countersign/protocol/receipt"
)

// Conclusion is what Conclude decided: the changes that a driver stores.
type Conclusion struct {
	Outcome Outcome
	// Spend raises the highest counter of the client, stores the decision with Waits, and deletes
	// the attempt with the same bytes.
	Spend bool
	// Waits is set if the decision is pending.
	Waits *Pending
	// ResetGuard resets the password guard of the client.
	ResetGuard bool
	// Charge adds the charges to their windows; of the first client if the Spend approves.
	Charge bool
	// Finalize ends a pending decision, by compare-and-swap.
	Finalize *Finalization
	// Settle is a denial to store too. It raises no counter.
	Settle *Spent
	// Record to append; nil for a repeat, and if nothing is spent.
	Record *audit.Record
	// Further is the record of Finalize or Settle.
	Further *audit.Record
}

// Finalization ends the pending decision of a serial.
type Finalization struct {
	Client protocol.ClientID
	Serial protocol.Serial
	Final
}

// Conclude decides on a countersignature within the transaction. It is the same for every driver
// and depends only on its arguments. Any objection makes the approval a denial. A spent counter and
// an attempt out of turn change nothing (PROTOCOL.md §4); the caller records them.
func (s Spend) Conclude(v View) Conclusion {
	if again := s.answered(v); again != nil {
		return Conclusion{Outcome: *again}
	}
	if code := s.conflict(v); code != 0 {
		out := s.denied(code)
		out.Unspent = true
		return Conclusion{Outcome: out}
	}
	against := s.objection(v)
	c := Conclusion{Outcome: s.outcome(against.code), Spend: true, ResetGuard: s.Right}
	switch {
	case s.Approves != nil:
		s.finalize(&c, against)
	case s.Asks != nil && against.code == 0:
		s.ask(&c, v)
	}
	c.Charge = c.Outcome.Result == protocol.ResultApproved && !s.dry()
	if c.Outcome.Result == protocol.ResultPending {
		c.Waits = s.Pending
	}
	c.Record = s.record(c.Outcome, audit.KindDecision)
	return c
}

// answered returns the outcome of an earlier, identical countersignature.
func (s Spend) answered(v View) *Outcome {
	if v.Spent != nil && v.Spent.AnswerKey == s.AnswerKey {
		again := v.Spent.Outcome
		again.Replayed = true
		return &again
	}
	if b := s.among(v.Begun); b != nil && b.Answered {
		again := b.Outcome()
		return &again
	}
	return nil
}

// conflict returns the reason why this countersignature cannot spend the serial, ever or for now.
func (s Spend) conflict(v View) protocol.Code {
	if code := s.spent(v.Spent, v.Client); code != 0 {
		return code
	}
	if s.among(v.Begun) != nil {
		return 0
	}
	return s.outOfTurn(v.Begun)
}

// objection is a reason against the approval.
type objection struct {
	code protocol.Code // 0: none
	ends bool          // the pending decision that was to be approved is denied for it
}

// objection returns the first reason against the approval.
func (s Spend) objection(v View) objection {
	for _, o := range []objection{{code: partiesObjection(v)}, s.firstObjection(v), s.ownObjection(v)} {
		if o.code != 0 {
			return o
		}
	}
	return objection{}
}

func partiesObjection(v View) protocol.Code {
	switch {
	case v.Client.Status == Suspended:
		return protocol.CodeSuspended
	case v.Client.Status != Active, v.Device.Status != Active:
		return protocol.CodeRefused
	default:
		return 0
	}
}

// firstObjection looks at the decision to approve. A countersignature by a client that may not
// approve it leaves it waiting.
func (s Spend) firstObjection(v View) objection {
	switch {
	case s.Approves == nil:
		return objection{}
	case !s.waiting(v):
		return objection{code: protocol.CodeSerial}
	case v.First.Pending.expired(s.Now):
		return objection{protocol.CodeExpired, true}
	case s.Client == s.Approves.Client:
		return objection{code: protocol.CodeOwnApproval}
	case v.First.Pending.Role == RoleUV, !slices.Contains(v.Client.Roles, v.First.Pending.Role):
		return objection{code: protocol.CodePolicy}
	case v.FirstClient.Status != Active:
		return objection{protocol.CodeRefused, true}
	default:
		return objection{}
	}
}

// waiting reports whether the decision to approve exists, waits, and is the one that s.Decision was
// made from.
func (s Spend) waiting(v View) bool {
	if v.First == nil || v.FirstClient == nil || v.First.Pending == nil || v.First.Final != nil {
		return false
	}
	first := v.First.Outcome.Decision
	return v.First.Outcome.Result == protocol.ResultPending &&
		v.First.Client == s.Approves.Client && v.First.Serial == s.Approves.Serial &&
		first.Transaction == s.Decision.Transaction && first.Statement == s.Decision.Statement &&
		first.Device == s.Decision.Device
}

// ownObjection looks at the evidence. Only a refusal by the user, or a limit, ends the decision to
// approve. After a change of policy the approver may try again. An amount that by now
// needs a higher level than the client signed is denied.
func (s Spend) ownObjection(v View) objection {
	switch {
	case s.Asks != nil && s.Asks.Counter() >= s.Serial.Counter():
		return objection{code: protocol.CodeSerial}
	case s.Denial != 0:
		return objection{s.Denial, s.Denial == protocol.CodeUserRefused}
	case v.PolicyVersion != s.PolicyVersion:
		return objection{code: protocol.CodePolicy}
	case s.anyCharge(v.Used, Charge.exceeds):
		return objection{protocol.CodeLimit, true}
	case s.anyCharge(v.Used, Charge.outgrows):
		return objection{code: protocol.CodePolicy}
	default:
		return objection{}
	}
}

func (s Spend) finalize(c *Conclusion, against objection) {
	if against.code != 0 && !against.ends {
		return
	}
	s.end(c, Finalization{Client: s.Approves.Client, Serial: s.Approves.Serial, Final: Final{
		Result: c.Outcome.Result, Reason: c.Outcome.Reason, At: Stamp(s.Now),
	}})
}

func (s Spend) end(c *Conclusion, f Finalization) {
	c.Finalize, c.Further = &f, s.finalRecord(f)
}

// ask answers a question about a serial. An unspent serial, and a decision that has waited too
// long, are denied from then on.
func (s Spend) ask(c *Conclusion, v View) {
	expired := message.AskedResult{Result: protocol.ResultDenied, Reason: protocol.CodeExpired}
	asked, open := message.AskedResult{}, v.Asked != nil && v.Asked.Pending != nil && v.Asked.Final == nil
	switch {
	case v.Asked == nil:
		asked = expired
		denied := s.deniedUnseen()
		c.Settle, c.Further = &denied, s.settledRecord(denied)
	case v.Asked.Serial != *s.Asks:
		asked.Reason = protocol.CodeSerial
	case open && v.Asked.Pending.expired(s.Now):
		asked = expired
		s.end(c, Finalization{s.Client, *s.Asks, Final{asked.Result, asked.Reason, Stamp(s.Now)}})
	case v.Asked.Final != nil:
		asked = message.AskedResult{Result: v.Asked.Final.Result, Reason: v.Asked.Final.Reason}
	default:
		asked = message.AskedResult{Result: v.Asked.Outcome.Result, Reason: v.Asked.Outcome.Reason}
	}
	c.Outcome.Asked = &asked
}

// deniedUnseen returns the denial of a serial that was never spent. It answers no M3.
func (s Spend) deniedUnseen() Spent {
	reason, _ := receipt.ReasonFor(protocol.ResultDenied) // a denial has one
	return Spent{
		AnswerKey: AnswerKey{Client: s.Client, Serial: *s.Asks},
		Outcome: Outcome{
			Result: protocol.ResultDenied, Reason: protocol.CodeExpired, At: Stamp(s.Now),
			Decision: receipt.Decision{Reason: reason, Device: s.Decision.Device, IssuedAt: s.Decision.IssuedAt},
		},
	}
}

func (s Spend) dry() bool { return s.Dry || s.Asks != nil }

// outcome turns a reason, or none, into result and decision.
func (s Spend) outcome(reason protocol.Code) Outcome {
	switch {
	case reason != 0:
		return s.denied(reason)
	case s.dry():
		out := s.decided(protocol.ResultDenied)
		out.Result = protocol.ResultApproved
		return out
	case s.Pending != nil && s.Approves == nil:
		out := s.decided(protocol.ResultPending)
		out.Reason = protocol.CodePending
		return out
	default:
		return s.decided(protocol.ResultApproved)
	}
}

// Unopposed returns the outcome if the transaction finds no objection: the denial that follows from
// the evidence, or the approval.
func (s Spend) Unopposed() Outcome { return s.outcome(s.Denial) }

func (s Spend) denied(reason protocol.Code) Outcome {
	out := s.decided(protocol.ResultDenied)
	out.Reason = reason
	return out
}

// decided sets the result of the decision. The device learns only that it is denied, not why
// (PROTOCOL.md §3.1, field 12).
func (s Spend) decided(result protocol.Result) Outcome {
	d := s.Decision
	d.Result = result
	d.Reason, _ = receipt.ReasonFor(result) // no result here is without
	return Outcome{Result: result, Decision: d, At: Stamp(s.Now)}
}

func (s Spend) record(out Outcome, kind string) *audit.Record {
	d := out.Decision
	return &audit.Record{
		At: Stamp(s.Now), Kind: kind, Subject: "client/" + s.Client.String(), Salt: s.Salt,
		Body: audit.Encode(audit.Decision{
			Statement: s.Evidence.Statement,
			Signature: s.Evidence.Signature[:],
			Slot:      s.Evidence.Approval.Slot,
			Proof:     append([]byte{}, s.Evidence.Approval.Proof...),
			Factors:   d.Factors,
			Decision:  d.Marshal(),
			Policy:    d.Policy[:],
			Reason:    out.Reason,
			Reference: s.Evidence.Reference,
			Asked:     askedFields(out.Asked),
		}),
	}
}

func askedFields(a *message.AskedResult) []uint64 {
	if a == nil {
		return nil
	}
	return []uint64{uint64(a.Result), uint64(a.Reason)}
}

// finalRecord returns the record of the end of a pending decision by s.
func (s Spend) finalRecord(f Finalization) *audit.Record {
	return s.further(audit.KindFinal, f.Client, map[string]any{
		"serial": f.Serial[:], "result": f.Result, "reason": f.Reason, "by": s.Client[:], "by_serial": s.Serial[:],
	})
}

// settledRecord returns the record of a serial that is denied because s asks about it.
func (s Spend) settledRecord(denied Spent) *audit.Record {
	return s.further(audit.KindSettled, denied.Client, map[string]any{
		"serial": denied.Serial[:], "result": denied.Outcome.Result, "reason": denied.Outcome.Reason, "by_serial": s.Serial[:],
	})
}

// further returns a second record of the same transaction. Its salt is derived from the salt of the
// first record, and is secret as long as that is.
func (s Spend) further(kind string, client protocol.ClientID, fields map[string]any) *audit.Record {
	salt := sha256.Sum256(append([]byte(kind), s.Salt[:]...))
	return &audit.Record{
		At: Stamp(s.Now), Kind: kind, Subject: "client/" + client.String(), Salt: [16]byte(salt[:16]), Body: audit.Encode(fields),
	}
}

// Refused returns the record of a verified countersignature that is refused with this code without
// spending its serial, for example because the password was wrong (10). Its body is the body of the
// corresponding denial.
func (s Spend) Refused(code protocol.Code) audit.Record {
	return *s.record(s.denied(code), audit.KindRefused)
}
