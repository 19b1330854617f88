package protocol

// CountersignRequest is the body of POST /v1/countersign: {1: handle, 2: M3}.
type CountersignRequest struct {
	Handle []byte `cbor:"1,keyasint"`
	M3     []byte `cbor:"2,keyasint"`
}

// Marshal writes the body.
func (r CountersignRequest) Marshal() []byte {
	return marshal(CountersignRequest{Handle: present(r.Handle), M3: present(r.M3)})
}

// ParseCountersignRequest reads the body: CodeFormat. M3 is not looked into.
func ParseCountersignRequest(b []byte) (r CountersignRequest, err error) {
	if err := unmarshalExact(b, &r, 1, 2); err != nil {
		return CountersignRequest{}, err
	}
	return r, checkLengths(carried{"handle", r.Handle, MaxHandle, false}, carried{"M3", r.M3, MaxFrame, false})
}

// MaxDecision is the longest decision that is taken, in bytes: one with strict
// evidence of two in a batch receipt has about 2,000.
const MaxDecision = 8192

// CountersignResponse answers it:
// {1: M4, 2: result, ?3: decision, ?4: next handle}.
type CountersignResponse struct {
	M4         []byte
	Result     Result
	Decision   []byte // nil: none
	NextHandle []byte // with ResultPending, for the second approver; nil: none
}

type wireCountersignAnswer struct {
	M4         []byte  `cbor:"1,keyasint"`
	Result     Result  `cbor:"2,keyasint"`
	Decision   *[]byte `cbor:"3,keyasint,omitempty"`
	NextHandle *[]byte `cbor:"4,keyasint,omitempty"`
}

// Marshal writes the body.
func (r CountersignResponse) Marshal() []byte {
	return marshal(wireCountersignAnswer{present(r.M4), r.Result, optionalBytes(r.Decision), optionalBytes(r.NextHandle)})
}

// ParseCountersignResponse reads the body: CodeFormat. The decision is for
// [DecisionCheck].
func ParseCountersignResponse(b []byte) (CountersignResponse, error) {
	var w wireCountersignAnswer
	if err := unmarshalExact(b, &w, 1, 2, 3, 4); err != nil {
		return CountersignResponse{}, err
	}
	r := CountersignResponse{M4: w.M4, Result: w.Result}
	if r.Result > ResultPending {
		return CountersignResponse{}, formatError("countersign answer: %v", r.Result)
	}
	if w.Decision != nil {
		r.Decision = *w.Decision
	}
	if w.NextHandle != nil {
		r.NextHandle = *w.NextHandle
	}
	return r, checkLengths(
		carried{"M4", r.M4, MaxFrame, false},
		carried{"decision", r.Decision, MaxDecision, w.Decision == nil},
		carried{"next handle", r.NextHandle, MaxHandle, w.NextHandle == nil},
	)
}

// OutcomeRequest is the body of POST /v1/outcome:
// {1: transaction id, 2: performed (0 or 1)}.
type OutcomeRequest struct {
	Transaction TransactionID
	Performed   bool // false gives the limits back
}

type wireOutcome struct {
	Transaction TransactionID `cbor:"1,keyasint"`
	Performed   uint64        `cbor:"2,keyasint"`
}

// Marshal writes the body.
func (r OutcomeRequest) Marshal() []byte {
	w := wireOutcome{Transaction: r.Transaction}
	if r.Performed {
		w.Performed = 1
	}
	return marshal(w)
}

// ParseOutcomeRequest reads the body: CodeFormat.
func ParseOutcomeRequest(b []byte) (OutcomeRequest, error) {
	var w wireOutcome
	if err := unmarshalExact(b, &w, 1, 2); err != nil {
		return OutcomeRequest{}, err
	}
	if w.Performed > 1 {
		return OutcomeRequest{}, formatError("outcome: performed is %d", w.Performed)
	}
	return OutcomeRequest{Transaction: w.Transaction, Performed: w.Performed == 1}, nil
}
