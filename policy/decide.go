package policy

import "countersign/protocol"

// Evidence is the verified facts about a countersignature, or about a change that administrators
// countersign. A field is true only after its check succeeded; the zero value proves nothing.
type Evidence struct {
	Verdict        protocol.Verdict
	Signature      bool // the countersignature verifies under the enrolled key of its slot
	Password       bool // the password proof was recomputed inside the HSM and is equal
	UVKey          bool // the verified signature was made by the client's UV key (slot 3)
	SecondApprover bool // another client with the right role approved the same statement
	// Signers are [Local] and the administrators who may sign now and whose signature of the
	// change's hash is valid. A repeated name counts once.
	Signers []string
}

// signers returns the number of distinct signers.
func (e Evidence) signers() int {
	distinct := map[string]bool{}
	for _, s := range e.Signers {
		distinct[s] = s != ""
	}
	delete(distinct, "")
	return len(distinct)
}

// Factors returns the factors that the evidence proves.
func (e Evidence) Factors() protocol.Factors {
	var f protocol.Factors
	for _, proof := range []struct {
		given bool
		bit   protocol.Factors
	}{
		{e.Signature, protocol.FactorSignature},
		{e.Password, protocol.FactorPassword},
		{e.UVKey, protocol.FactorUV},
		{e.SecondApprover, protocol.FactorSecondApprover},
	} {
		if proof.given {
			f |= proof.bit
		}
	}
	return f
}

// Ruling is the result of [Decide]. Only this package can make one that approves;
// the zero value denies.
type Ruling struct {
	approved bool
	pending  bool
	refused  bool
	verified protocol.Factors
	missing  protocol.Factors
	signed   int
	required int // administrators
}

// Approved reports whether everything required is proved.
func (r Ruling) Approved() bool { return r.approved }

// Pending reports whether the second approver or further administrators are missing
// and nothing else. Nothing is granted yet.
func (r Ruling) Pending() bool { return r.pending }

// Refused reports a denial by the user's own, signed answer (code 18).
func (r Ruling) Refused() bool { return r.refused }

// Verified returns every proved factor, required or not.
func (r Ruling) Verified() protocol.Factors { return r.verified }

// Missing returns the factors without which the ruling cannot improve.
func (r Ruling) Missing() protocol.Factors { return r.missing }

// Signed returns the number of distinct administrators who countersigned.
func (r Ruling) Signed() int { return r.signed }

// MissingAdministrators returns the number of administrators who still have to countersign.
func (r Ruling) MissingAdministrators() int { return max(r.required-r.signed, 0) }

// Requirement is the proof that an approval needs: factors of one user, countersignatures of
// administrators, or both. Nothing meets the zero value.
type Requirement struct {
	Factors        protocol.Factors
	Administrators int // distinct ones
}

// known reports whether Decide supports the requirement.
func (r Requirement) known() bool {
	return r.Factors.Has(protocol.FactorSignature) || r.Factors == 0 && r.Administrators > 0
}

// Decide judges evidence against the factors of a [Grant] or the quorum of a change. It approves
// only if the verdict is to approve and everything required is proved. It denies factors without a
// signature, which is not a valid requirement.
func Decide(required Requirement, e Evidence) Ruling {
	required.Factors &^= protocol.FactorStrict
	r := Ruling{verified: e.Factors(), signed: e.signers(), required: required.Administrators}
	r.missing = required.Factors &^ r.verified
	begun := required.Factors != 0 || r.signed > 0
	switch {
	case !required.known():
		r.missing |= protocol.FactorSignature
	case e.Verdict == protocol.Refuse:
		// A refusal is signed, but carries no other factor (PROTOCOL.md §3).
		r.missing &= protocol.FactorSignature
		r.refused = e.Signature
	case e.Verdict != protocol.Approve:
	case r.missing == 0 && r.MissingAdministrators() == 0:
		r.approved = true
	case r.missing&^protocol.FactorSecondApprover == 0 && begun:
		r.pending = true
	}
	return r
}
