package policy

import "fmt"

// Choice is what the user answered. The zero value is no answer, which never
// approves.
type Choice uint8

// The answers of P3.1.
const (
	Unanswered Choice = iota
	Refuse
	Approve
)

var choiceNames = []string{"unanswered", "refuse", "approve"}

// ParseChoice reads what [Choice.String] writes.
func ParseChoice(s string) (Choice, error) {
	for i, name := range choiceNames {
		if s == name {
			return Choice(i), nil
		}
	}
	return Unanswered, fmt.Errorf("choice %q: want unanswered, refuse or approve", s)
}

func (c Choice) String() string { return nameOf(choiceNames, int(c)) }

// Evidence is what was established about one countersignature, or about a change
// that administrators countersign. A field is true only after the check it names
// succeeded; the zero value is no evidence.
type Evidence struct {
	Choice         Choice
	Signature      bool // the countersignature verifies under the enrolled key of its slot
	Password       bool // the password proof was recomputed inside the HSM and is equal
	UVKey          bool // the verified signature was made by the client's UV key (slot 3)
	SecondApprover bool // another client with the right role approved the same statement
	// Signers are the administrators whose signature of a change's hash verifies and
	// who may sign now, and [Local]. One of them who is named twice counts once.
	Signers []string
}

// signers is how many there are.
func (e Evidence) signers() int {
	distinct := map[string]bool{}
	for _, s := range e.Signers {
		distinct[s] = s != ""
	}
	delete(distinct, "")
	return len(distinct)
}

// Factors returns the factors that the evidence proves.
func (e Evidence) Factors() Factors {
	var f Factors
	for _, proof := range []struct {
		given bool
		bit   Factors
	}{
		{e.Signature, FactorSignature},
		{e.Password, FactorPassword},
		{e.UVKey, FactorUVKey},
		{e.SecondApprover, FactorSecondApprover},
	} {
		if proof.given {
			f |= proof.bit
		}
	}
	return f
}

// Outcome is the verdict of a [Decision]. The order is from least to most
// allowed; the zero value denies.
type Outcome uint8

// The outcomes. Pending lacks the second approver or further administrators and
// nothing else: nothing is given yet.
const (
	Denied Outcome = iota
	Pending
	Approved
)

var outcomeNames = []string{"denied", "pending", "approved"}

// ParseOutcome reads what [Outcome.String] writes.
func ParseOutcome(s string) (Outcome, error) {
	for i, name := range outcomeNames {
		if s == name {
			return Outcome(i), nil
		}
	}
	return Denied, fmt.Errorf("outcome %q: want denied, pending or approved", s)
}

func (o Outcome) String() string { return nameOf(outcomeNames, int(o)) }

// Decision is the result of [Decide]. Only this package can make one that
// approves; the zero value denies.
type Decision struct {
	outcome  Outcome
	refused  bool
	verified Factors
	missing  Factors
	signed   int
	required int // administrators
}

// Outcome returns the verdict.
func (d Decision) Outcome() Outcome { return d.outcome }

// Approved reports whether the service may be given.
func (d Decision) Approved() bool { return d.outcome == Approved }

// Refused reports a denial that is the user's own will, under a verified
// signature (code 18).
func (d Decision) Refused() bool { return d.refused }

// Verified returns every factor that was proved, needed or not.
func (d Decision) Verified() Factors { return d.verified }

// Missing returns the factors that must be added before anything else than
// this outcome is possible.
func (d Decision) Missing() Factors { return d.missing }

// Signed returns how many administrators countersigned, each counted once.
func (d Decision) Signed() int { return d.signed }

// MissingAdministrators returns how many more have to countersign.
func (d Decision) MissingAdministrators() int { return max(d.required-d.signed, 0) }

// Requirement is what must be proved before anything is allowed: factors of one
// user, administrators who countersign, or both. The zero value can not be met.
type Requirement struct {
	Factors        Factors
	Administrators int // different ones
}

// known reports whether the requirement is one that Decide knows.
func (r Requirement) known() bool {
	return r.Factors.Has(FactorSignature) || r.Factors == 0 && r.Administrators > 0
}

// Decide judges evidence against the factors of a [Grant] or the quorum of a change.
// It approves only if the answer is to approve and everything required is proved.
// Factors without a signature are no requirement that Decide knows, and it denies.
func Decide(required Requirement, e Evidence) Decision {
	required.Factors &^= FactorStrict
	d := Decision{verified: e.Factors(), signed: e.signers(), required: required.Administrators}
	d.missing = required.Factors &^ d.verified
	begun := required.Factors != 0 || d.signed > 0
	switch {
	case !required.known():
		d.missing |= FactorSignature
	case e.Choice == Refuse:
		// A refusal is signed, but carries no other factor (PROTOCOL.md §3).
		d.missing &= FactorSignature
		d.refused = e.Signature
	case e.Choice != Approve:
	case d.missing == 0 && d.MissingAdministrators() == 0:
		d.outcome = Approved
	case d.missing&^FactorSecondApprover == 0 && begun:
		d.outcome = Pending
	}
	return d
}

func nameOf(names []string, i int) string {
	if i < len(names) {
		return names[i]
	}
	return fmt.Sprintf("unknown (%d)", i)
}
