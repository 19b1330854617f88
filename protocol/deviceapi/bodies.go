// Package deviceapi implements the bodies that devices and the appliance exchange
// over HTTP: apply, countersign, outcome and problem+json (PROTOCOL.md §5).
package deviceapi

import (
	"slices"

	"countersign/protocol"
	"countersign/protocol/cbor"
	"countersign/protocol/internal/strict"
	"countersign/protocol/message"
)

// BodyType is the media type of the CBOR bodies of PROTOCOL.md §5.
const BodyType = "application/cbor"

// MaxHandle is the maximum length of a handle, in bytes, PROTOCOL.md §3.2.
const MaxHandle = 1024

// ApplyRequest is the body of POST /v1/apply:
// {1: M1, 2: order, 3: link class, ?4: floor, ?5: handle, 6: nonce, ?7: strict}.
type ApplyRequest struct {
	M1     []byte
	Order  Order
	Link   LinkClass
	Floor  protocol.Level // 0: none
	Handle []byte         // from the pending first countersign, for a co-approval; nil: none
	Nonce  protocol.Nonce
	Strict bool
}

type wireApply struct {
	M1     []byte          `cbor:"1,keyasint"`
	Order  cbor.RawMessage `cbor:"2,keyasint"`
	Link   LinkClass       `cbor:"3,keyasint"`
	Floor  *protocol.Level `cbor:"4,keyasint,omitempty"`
	Handle *[]byte         `cbor:"5,keyasint,omitempty"`
	Nonce  protocol.Nonce  `cbor:"6,keyasint"`
	Strict *uint64         `cbor:"7,keyasint,omitempty"`
}

// Marshal returns the encoding.
func (r ApplyRequest) Marshal() []byte {
	w := wireApply{M1: strict.NonNil(r.M1), Order: r.Order.marshal(), Link: r.Link, Nonce: r.Nonce, Handle: optionalBytes(r.Handle)}
	if r.Floor != 0 {
		w.Floor = &r.Floor
	}
	if r.Strict {
		w.Strict = new(uint64)
		*w.Strict = 1
	}
	return cbor.Marshal(w)
}

func optionalBytes(b []byte) *[]byte {
	if b == nil {
		return nil
	}
	return &b
}

// ParseApplyRequest decodes the body. Errors are CodeFormat. M1 is opaque.
func ParseApplyRequest(b []byte) (ApplyRequest, error) {
	var w wireApply
	if err := strict.Map(b, &w); err != nil {
		return ApplyRequest{}, err
	}
	order, err := parseOrder(w.Order)
	if err != nil {
		return ApplyRequest{}, err
	}
	r := ApplyRequest{M1: w.M1, Order: order, Link: w.Link, Nonce: w.Nonce, Strict: w.Strict != nil}
	if !r.Link.known() || r.Strict && *w.Strict != 1 {
		return ApplyRequest{}, protocol.CodeFormat.Errorf("apply: invalid link class or strict")
	}
	if w.Floor != nil {
		if r.Floor = *w.Floor; !isLevel(r.Floor) {
			return ApplyRequest{}, protocol.CodeFormat.Errorf("apply: invalid floor %d", r.Floor)
		}
	}
	if w.Handle != nil {
		r.Handle = *w.Handle
	}
	return r, checkLengths(carried{"M1", r.M1, message.MaxFrame, false}, carried{"handle", r.Handle, MaxHandle, w.Handle == nil})
}

// carried is a byte string within a body.
type carried struct {
	name     string
	value    []byte
	most     int
	optional bool
}

func checkLengths(list ...carried) error {
	for _, c := range list {
		if len(c.value) > c.most || len(c.value) == 0 && !c.optional {
			return protocol.CodeFormat.Errorf("%s of %d bytes: want 1 to %d", c.name, len(c.value), c.most)
		}
	}
	return nil
}

func isLevel(l protocol.Level) bool { _, ok := l.Factors(); return ok }

// ApplyResponse is the answer: {1: M2, 2: handle, 3: level, 4: ttl}. If M2 is an MU or in the error
// form it has key 1 only, and Handle is nil.
type ApplyResponse struct {
	M2     []byte
	Handle []byte
	Level  protocol.Level
	TTL    uint64 // seconds
}

type wireApplyAnswer struct {
	M2     []byte          `cbor:"1,keyasint"`
	Handle *[]byte         `cbor:"2,keyasint,omitempty"`
	Level  *protocol.Level `cbor:"3,keyasint,omitempty"`
	TTL    *uint64         `cbor:"4,keyasint,omitempty"`
}

// Marshal returns the encoding.
func (r ApplyResponse) Marshal() []byte {
	w := wireApplyAnswer{M2: strict.NonNil(r.M2)}
	if r.Handle != nil {
		w.Handle, w.Level, w.TTL = &r.Handle, &r.Level, &r.TTL
	}
	return cbor.Marshal(w)
}

// ParseApplyResponse decodes the body. Errors are CodeFormat.
func ParseApplyResponse(b []byte) (ApplyResponse, error) {
	var w wireApplyAnswer
	if err := strict.Map(b, &w); err != nil {
		return ApplyResponse{}, err
	}
	r := ApplyResponse{M2: w.M2}
	if w.Handle == nil && w.Level == nil && w.TTL == nil {
		return r, checkLengths(carried{"M2", r.M2, message.MaxFrame, false})
	}
	if w.Handle == nil || w.Level == nil || w.TTL == nil || !isLevel(*w.Level) {
		return ApplyResponse{}, protocol.CodeFormat.Errorf("apply answer: handle, level and ttl must come together")
	}
	r.Handle, r.Level, r.TTL = *w.Handle, *w.Level, *w.TTL
	return r, checkLengths(carried{"M2", r.M2, message.MaxFrame, false}, carried{"handle", r.Handle, MaxHandle, false})
}

// LinkClass is the kind of near-field link, as the device claims.
type LinkClass uint8

// The link classes of PROTOCOL.md §5.
const (
	LinkWire  LinkClass = 1
	LinkQR    LinkClass = 2
	LinkSound LinkClass = 3
	LinkNFC   LinkClass = 4
	LinkBLE   LinkClass = 5
)

// LinkClasses returns the names of the link classes, in the order of their numbers.
func LinkClasses() []string { return linkNames[LinkWire:] }

var linkNames = []string{LinkWire: "wire", LinkQR: "qr", LinkSound: "sound", LinkNFC: "nfc", LinkBLE: "ble"}

func (l LinkClass) known() bool { return l >= LinkWire && l <= LinkBLE }

func (l LinkClass) String() string {
	if !l.known() {
		return "unknown link"
	}
	return linkNames[l]
}

// ParseLinkClass parses a name of String.
func ParseLinkClass(s string) (LinkClass, error) {
	if i := slices.Index(linkNames, s); i >= int(LinkWire) {
		return LinkClass(i), nil
	}
	return 0, protocol.CodeFormat.Errorf("unknown link class %q", s)
}

// Order is the device's offer, key 2 of an [ApplyRequest]: {1: service or [service, …], ?2: [amount,
// currency], ?3: text, ?4: reference}.
type Order struct {
	Services  []protocol.Service // one is an order; several are the services that the device accepts without one
	Amount    *protocol.Amount
	Text      string // up to 44 bytes, shown to the user
	Reference string // up to 64 bytes, for the appliance's audit record
}

// MaxReferenceBytes is the maximum length of an order reference.
const MaxReferenceBytes = 64

// maxServices is the maximum number of services in an order.
const maxServices = 256

type wireOrder struct {
	Services  cbor.RawMessage  `cbor:"1,keyasint"`
	Amount    *protocol.Amount `cbor:"2,keyasint,omitempty"`
	Text      *string          `cbor:"3,keyasint,omitempty"`
	Reference *string          `cbor:"4,keyasint,omitempty"`
}

func (o Order) marshal() []byte {
	w := wireOrder{Services: cbor.Marshal(o.Services), Amount: o.Amount, Text: nonEmpty(o.Text), Reference: nonEmpty(o.Reference)}
	if len(o.Services) == 1 {
		w.Services = cbor.Marshal(o.Services[0])
	}
	return cbor.Marshal(w)
}

func nonEmpty(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

func parseOrder(b []byte) (o Order, err error) {
	var w wireOrder
	if err := strict.Map(b, &w); err != nil {
		return o, err
	}
	if o.Services, err = parseServices(w.Services); err != nil {
		return o, err
	}
	if o.Amount = w.Amount; o.Amount != nil {
		if err := o.Amount.Validate(); err != nil {
			return o, err
		}
	}
	if o.Text, err = parseOptionalText("order text", w.Text, message.MaxTextBytes); err != nil {
		return o, err
	}
	o.Reference, err = parseOptionalText("order reference", w.Reference, MaxReferenceBytes)
	return o, err
}

// parseServices decodes one service, or a list of two or more without repeats. A list of one would
// be a second encoding of the same order.
func parseServices(b []byte) ([]protocol.Service, error) {
	var one protocol.Service
	if strict.Item(b, &one) == nil {
		return []protocol.Service{one}, nil
	}
	var list []protocol.Service
	if err := strict.Item(b, &list); err != nil {
		return nil, err
	}
	if len(list) < 2 || len(list) > maxServices {
		return nil, protocol.CodeFormat.Errorf("order lists %d services", len(list))
	}
	sorted := slices.Sorted(slices.Values(list))
	if len(slices.Compact(sorted)) != len(list) {
		return nil, protocol.CodeFormat.Errorf("order lists a service twice")
	}
	return list, nil
}

func parseOptionalText(name string, s *string, maxBytes int) (string, error) {
	if s == nil {
		return "", nil
	}
	if *s == "" {
		return "", protocol.CodeFormat.Errorf("%s is empty", name)
	}
	return *s, message.CheckText(*s, maxBytes)
}

// CountersignRequest is the body of POST /v1/countersign: {1: handle, 2: M3}.
type CountersignRequest struct {
	Handle []byte `cbor:"1,keyasint"`
	M3     []byte `cbor:"2,keyasint"`
}

// Marshal returns the encoding.
func (r CountersignRequest) Marshal() []byte {
	return cbor.Marshal(CountersignRequest{Handle: strict.NonNil(r.Handle), M3: strict.NonNil(r.M3)})
}

// ParseCountersignRequest decodes the body. Errors are CodeFormat. M3 is opaque.
func ParseCountersignRequest(b []byte) (r CountersignRequest, err error) {
	if err := strict.Map(b, &r); err != nil {
		return CountersignRequest{}, err
	}
	return r, checkLengths(carried{"handle", r.Handle, MaxHandle, false}, carried{"M3", r.M3, message.MaxFrame, false})
}

// MaxDecision is the maximum length of a decision, in bytes. One with strict evidence of two clients
// in a batch receipt has about 2,000.
const MaxDecision = 8192

// CountersignResponse is the answer: {1: M4, 2: result, ?3: decision, ?4: next handle}.
type CountersignResponse struct {
	M4         []byte
	Result     protocol.Result
	Decision   []byte // nil: none
	NextHandle []byte // with ResultPending, for the second approver; nil: none
}

type wireCountersignAnswer struct {
	M4         []byte          `cbor:"1,keyasint"`
	Result     protocol.Result `cbor:"2,keyasint"`
	Decision   *[]byte         `cbor:"3,keyasint,omitempty"`
	NextHandle *[]byte         `cbor:"4,keyasint,omitempty"`
}

// Marshal returns the encoding.
func (r CountersignResponse) Marshal() []byte {
	return cbor.Marshal(wireCountersignAnswer{strict.NonNil(r.M4), r.Result, optionalBytes(r.Decision), optionalBytes(r.NextHandle)})
}

// ParseCountersignResponse decodes the body. Errors are CodeFormat. receipt.Check verifies the
// decision.
func ParseCountersignResponse(b []byte) (CountersignResponse, error) {
	var w wireCountersignAnswer
	if err := strict.Map(b, &w); err != nil {
		return CountersignResponse{}, err
	}
	r := CountersignResponse{M4: w.M4, Result: w.Result}
	if r.Result > protocol.ResultPending {
		return CountersignResponse{}, protocol.CodeFormat.Errorf("countersign answer: %v", r.Result)
	}
	if w.Decision != nil {
		r.Decision = *w.Decision
	}
	if w.NextHandle != nil {
		r.NextHandle = *w.NextHandle
	}
	return r, checkLengths(
		carried{"M4", r.M4, message.MaxFrame, false},
		carried{"decision", r.Decision, MaxDecision, w.Decision == nil},
		carried{"next handle", r.NextHandle, MaxHandle, w.NextHandle == nil},
	)
}

// OutcomeRequest is the body of POST /v1/outcome:
// {1: transaction id, 2: performed (0 or 1)}.
type OutcomeRequest struct {
	Transaction protocol.TransactionID
	Performed   bool // false refunds the limits
}

type wireOutcome struct {
	Transaction protocol.TransactionID `cbor:"1,keyasint"`
	Performed   uint64                 `cbor:"2,keyasint"`
}

// Marshal returns the encoding.
func (r OutcomeRequest) Marshal() []byte {
	w := wireOutcome{Transaction: r.Transaction}
	if r.Performed {
		w.Performed = 1
	}
	return cbor.Marshal(w)
}

// ParseOutcomeRequest decodes the body. Errors are CodeFormat.
func ParseOutcomeRequest(b []byte) (OutcomeRequest, error) {
	var w wireOutcome
	if err := strict.Map(b, &w); err != nil {
		return OutcomeRequest{}, err
	}
	if w.Performed > 1 {
		return OutcomeRequest{}, protocol.CodeFormat.Errorf("outcome: performed is %d", w.Performed)
	}
	return OutcomeRequest{Transaction: w.Transaction, Performed: w.Performed == 1}, nil
}
